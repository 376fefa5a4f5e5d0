"""Blocks of rows through a model, in order: requests are bounded, rows at fault found, absent servers awaited.

A request that is refused is halved until the rows at fault stand alone, so that the others are answered. A failure
that is not the caller's, such as a member's, is halved in the same way while the server says that it is ready. It
ends the work when no row of the request gets an answer: then the rows were not the reason.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.decision import Policy
from orchestrator.errors import (
    ClientError,
    CommitteeError,
    RefusedError,
    TimeLimitError,
    UnknownModelError,
)
from orchestrator.predictor.pacing import RequestRows
from orchestrator.predictor.patience import AsyncAnswers, Patience, require_same
from orchestrator.rows.blocks import RefusedRow, RowBlock, id_at, without_odd_texts
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.served_model import ModelInfo

Rows = npt.NDArray[Any]
# Requests that wait for an earlier, slower one, for each under way; more would only cost memory.
AHEAD = 4
COLUMNS = {name: column for name, column in ANSWER_COLUMNS.items() if not column.is_vector}
PROBABILITIES = next(name for name, column in ANSWER_COLUMNS.items() if column.is_vector)
# How often the model is compared with the one that the work began with.
COMPARE_S = 5.0


class AnsweredPart(NamedTuple):
    """Rows with answers: their ids (n,), columns (n,) or (n, k) of answers, and columns (n,) carried along."""

    ids: Rows
    answers: dict[str, Rows]
    kept: Mapping[str, Any]


@dataclass
class BlockOutcome:
    """Answered and refused rows of one block, which stands for `size` stored rows.

    Args:
        answered: the rows with answers, in order.
        faults: failures so far that are not the caller's.
    """

    size: int
    answered: list[AnsweredPart] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    faults: int = 0

    def hopeless(self) -> bool:
        """Whether every request so far failed although halving has reached single rows."""
        return not self.answered and self.faults > self.size.bit_length() + 2


@dataclass(kw_only=True)
class ModelAsker:
    """Asks one model.

    Args:
        client: of the server or servers.
        info: the model.
        policy: request parameters; None leaves the decision to the model.
        size: rows per request.
        in_flight: requests under way at once.
        patience: waits for the server.
        identity: what it served as the model when the work began.
        probabilities: whether answers have the whole distribution.
    """

    client: AsyncAnswers
    info: ModelInfo
    policy: Policy | None
    size: RequestRows
    in_flight: int
    patience: Patience
    identity: str
    probabilities: bool = False
    _compared_s: float = field(default_factory=time.monotonic)

    async def outcomes(self, blocks: Iterator[RowBlock]) -> AsyncGenerator[BlockOutcome, None]:
        """The outcomes of blocks in order, one for each request or block.

        Blocks are read one by one, in a thread, as requests end, and cut by the size of the moment. What
        was read before a block that cannot be is answered first.

        Raises:
            ClientError: the server is gone, too slow, fails whatever the rows, or serves another plan.
            DataError: a block cannot be read.
        """
        gate = asyncio.Semaphore(self.in_flight)
        waiting: deque[list[asyncio.Task[BlockOutcome]]] = deque()
        pieces = self._pieces(blocks)
        following, fault = await _next_of(pieces)
        try:
            while following is not None or waiting:
                while following is not None and sum(map(len, waiting)) < AHEAD * self.in_flight:
                    waiting.append([asyncio.create_task(self._gated(gate, part)) for part in following])
                    following, fault = await _next_of(pieces)
                    if all(task.done() for task in waiting[0]):
                        break
                yield _joined([await task for task in waiting[0]])
                waiting.popleft()
                if time.monotonic() - self._compared_s > COMPARE_S:
                    await self.require_same_model()
            if fault is not None:
                raise fault
        finally:
            await pieces.aclose()
            tasks = [task for every in waiting for task in every]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def require_same_model(self) -> None:
        """Raises ChangedModelError where another plan is served than at first; not while nobody answers."""
        await require_same(self.client, self.info.name, self.identity)
        self._compared_s = time.monotonic()

    async def _pieces(self, blocks: Iterator[RowBlock]) -> AsyncGenerator[list[RowBlock], None]:
        """Rows of one request each, those together whose outcomes cannot be told apart.

        Where rows of a block could not be read, nobody knows between which others they are. Reading and decoding
        happen in a thread, so that requests under way are not held up by them.
        """
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            block = without_odd_texts(block, self.info.inputs, only=self.info.inputs[0].name)
            if block.refused:
                unread = RowBlock(ids=block.ids[:0], rows=block.rows, refused=block.refused)
                yield [unread, *self._cut(block)]
            else:
                for piece in self._cut(block):
                    yield [piece]

    def _cut(self, block: RowBlock) -> Iterator[RowBlock]:
        """The readable rows of a block, by the size of requests when each piece is taken."""
        at, count = 0, len(block.ids)
        while at < count:
            stop = min(at + self.size.rows, count)
            yield block.picked(np.arange(at, stop))
            at = stop

    async def _gated(self, gate: asyncio.Semaphore, block: RowBlock) -> BlockOutcome:
        async with gate:
            return await self.patience.answer_of(partial(self._outcome, block), model_is_known=True)

    async def _outcome(self, block: RowBlock) -> BlockOutcome:
        outcome = BlockOutcome(size=block.size, refused=list(block.refused))
        if len(block.ids):
            first = await self._ask(block, outcome)
            if first is not None and not isinstance(first, RefusedError) and not outcome.answered:
                raise first
        return outcome

    async def _ask(self, block: RowBlock, outcome: BlockOutcome) -> ClientError | None:
        """Adds the rows to the outcome; returns the error of asking about all of them at once, if that failed."""
        count = len(block.ids)
        try:
            answers = await self.client.infer(self.info.name, block.rows, policy=self.policy)
        except (UnknownModelError, TimeLimitError):
            raise
        except ClientError as error:
            if not isinstance(error, RefusedError):
                outcome.faults += 1
                if outcome.hopeless() or not await self.client.ready(self.info.name):
                    raise
            if count == 1:
                outcome.refused.append(RefusedRow(id=id_at(block.ids, 0), reason=str(error.got or error)))
            else:
                for half in np.split(np.arange(count), [count // 2]):
                    await self._ask(block.picked(half), outcome)
            return error
        self.size.answered(count, now_s=time.monotonic())
        # Rows for which a member or a native ensemble had no finite output are refused.
        good = answers.label >= 0
        reason = "the model gave no finite output for it"
        outcome.refused += [RefusedRow(id=row_id, reason=reason) for row_id in block.ids[~good].tolist()]
        if good.any():
            # The rows themselves are let go, since finished blocks wait for slower ones.
            outcome.answered.append(self._answered(block, answers, good))
        return None

    def _answered(self, block: RowBlock, answers: ServedAnswers, good: npt.NDArray[np.bool_]) -> AnsweredPart:
        if not good.all():
            block = block.picked(np.flatnonzero(good))
        names = [*COLUMNS, *([PROBABILITIES] if self.probabilities else [])]
        return AnsweredPart(block.ids, {name: getattr(answers, name)[good] for name in names}, block.kept)


async def _next_of(
    pieces: AsyncGenerator[list[RowBlock], None],
) -> tuple[list[RowBlock] | None, CommitteeError | None]:
    """The next pieces; None at the end, or with the error where their block cannot be read."""
    try:
        return await anext(pieces, None), None
    except CommitteeError as error:
        return None, error


def _joined(outcomes: Sequence[BlockOutcome]) -> BlockOutcome:
    return BlockOutcome(
        size=sum(one.size for one in outcomes),
        answered=[part for one in outcomes for part in one.answered],
        refused=[row for one in outcomes for row in one.refused],
    )
