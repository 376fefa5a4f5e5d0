"""Blocks of rows through a model, in order: requests are bounded, rows at fault found, absent servers awaited.

A request that is refused is halved until the rows at fault stand alone, so that the others are answered. A failure
that is not the caller's, such as a member's, is halved in the same way while the server says that it is ready. It
ends the work when no row of the request gets an answer: then the rows were not the reason.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import OutputKinds, ServedAnswers
from orchestrator.decision import Policy
from orchestrator.errors import (
    ClientError,
    CommitteeError,
    RefusedError,
    TimeLimitError,
    UnavailableError,
    UnknownModelError,
)
from orchestrator.predictor.pacing import RequestRows
from orchestrator.rows.blocks import RefusedRow, RowBlock, without_odd_texts
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import ModelInfo

T = TypeVar("T")
Rows = npt.NDArray[Any]
# Requests that wait for an earlier, slower one, for each under way; more would only cost memory.
AHEAD = 4
COLUMNS = {name: column for name, column in ANSWER_COLUMNS.items() if not column.is_vector}
PROBABILITIES = next(name for name, column in ANSWER_COLUMNS.items() if column.is_vector)
# Pauses while a server is away: they double up to the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


class AsyncAnswers(Protocol):
    """What answers rows: a client of one server, of several, or members in this process.

    Errors are `ClientError`; what is `UnavailableError` may be asked again.
    """

    kinds: OutputKinds

    async def metadata(self, model: str) -> ModelInfo:
        """The model's tensors and batch limit."""

    async def infer(self, model: str, rows: AnyRows, *, policy: Policy | None = None) -> ServedAnswers:
        """Answers to rows, in their order."""

    async def ready(self, model: str | None = None) -> bool:
        """Whether it would answer now."""

    async def close(self) -> None:
        """Lets go what it holds."""


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
        patience_s: how long a server that is away is waited for, before each answer.
        probabilities: whether answers have the whole distribution.
    """

    client: AsyncAnswers
    info: ModelInfo
    policy: Policy | None
    size: RequestRows
    in_flight: int
    patience_s: float = 0.0
    probabilities: bool = False

    async def outcomes(self, blocks: Iterator[RowBlock]) -> AsyncGenerator[BlockOutcome, None]:
        """The outcomes of blocks in order, one for each request or block.

        Blocks are read one by one, in a thread, as requests end, and cut by the size of the moment. What
        was read before a block that cannot be is answered first.

        Raises:
            ClientError: the server is gone, too slow, or fails whatever the rows.
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
            if fault is not None:
                raise fault
        finally:
            await pieces.aclose()
            tasks = [task for every in waiting for task in every]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
            return await patiently(
                partial(self._outcome, block), self.client, patience_s=self.patience_s, model_is_known=True
            )

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
                outcome.refused.append(RefusedRow(id=block.ids[0].item(), reason=str(error.got or error)))
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


async def patiently(
    ask: Callable[[], Awaitable[T]], client: AsyncAnswers, *, patience_s: float, model_is_known: bool = False
) -> T:
    """What a coroutine function gives, called again while the server is away, for at most so many seconds.

    A server that starts again does not know its models at first, and one that hangs is not ready. Raises the
    ClientError of the last call.
    """
    since_s, pause_s = math.nan, FIRST_PAUSE_S
    while True:
        try:
            return await ask()
        except ClientError as error:
            since_s = time.monotonic() if math.isnan(since_s) else since_s
            left_s = patience_s - (time.monotonic() - since_s)
            if left_s <= 0 or not await _is_away(error, client, model_is_known=model_is_known):
                raise
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _is_away(error: ClientError, client: AsyncAnswers, *, model_is_known: bool) -> bool:
    """Whether an error is one of a server that may return."""
    if isinstance(error, UnavailableError):
        return True
    if isinstance(error, RefusedError):
        return isinstance(error, UnknownModelError) and model_is_known
    return not await client.ready()
