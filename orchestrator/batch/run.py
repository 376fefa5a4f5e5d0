"""Blocks of rows through a served model: bounded requests in flight, results in order, rows at fault found.

A request that is refused is halved until the rows at fault stand alone, so that the others are answered. A failure
that is not the caller's, such as a member's, is halved in the same way while the server says that it is ready. It
ends the job when no row of the request gets an answer: then the rows were not the reason.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, RefusedError, TimeLimitError, UnknownModelError
from orchestrator.rows.blocks import RefusedRow, RowBlock

Rows = npt.NDArray[Any]
# Finished blocks that wait for an earlier, slower one; more would only cost memory.
AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class AnsweredPart:
    """Rows with answers, in order.

    Args:
        ids: (n,).
        answers: n of them.
        kept: name -> column (n,) that goes with them.
    """

    ids: Rows
    answers: ServedAnswers
    kept: Mapping[str, Any]


@dataclass
class BlockOutcome:
    """Answered and refused rows of one block.

    Args:
        size: number of stored rows that the block stands for.
        answered: rows with answers, in order.
        refused: rows without an answer.
        faults: failures so far that are not the caller's.
    """

    size: int
    answered: list[AnsweredPart] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    faults: int = 0

    def hopeless(self) -> bool:
        """Whether every request so far failed although halving has reached single rows."""
        return not self.answered and self.faults > self.size.bit_length() + 2


async def block_outcomes(
    client: AsyncGrpcClient,
    model: str,
    blocks: Iterator[RowBlock],
    *,
    in_flight: int,
    policy: Policy | None = None,
) -> AsyncGenerator[BlockOutcome, None]:
    """Asks about blocks and gives their outcomes in the same order.

    Args:
        client: sends the requests.
        model: Triton model name.
        blocks: read one by one, in a thread, as requests end.
        in_flight: requests under way at once.
        policy: of every request; None lets the model decide by itself.

    Raises:
        ClientError: the server is gone, too slow, or fails whatever the rows.
        DataError: a block cannot be read.
    """
    gate = asyncio.Semaphore(in_flight)

    async def gated(block: RowBlock) -> BlockOutcome:
        async with gate:
            return await _outcome_of(asker, block)

    asker = _Asker(client, model, policy)
    waiting: deque[asyncio.Task[BlockOutcome]] = deque()
    # Reading and decoding happen in a thread, so that requests under way are not held up by them.
    following: RowBlock | None = await asyncio.to_thread(next, blocks, None)
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < AHEAD * in_flight:
                waiting.append(asyncio.create_task(gated(following)))
                following = await asyncio.to_thread(next, blocks, None)
                if waiting[0].done():
                    break
            yield await waiting[0]
            waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class _Asker(NamedTuple):
    client: AsyncGrpcClient
    model: str
    policy: Policy | None


async def _outcome_of(asker: _Asker, block: RowBlock) -> BlockOutcome:
    """Asks about one block, in halves where it is refused."""
    outcome = BlockOutcome(size=block.size, refused=list(block.refused))
    if not len(block.ids):
        return outcome
    first = await _ask(asker, block, outcome=outcome)
    if first is not None and not isinstance(first, RefusedError) and not outcome.answered:
        raise first
    return outcome


async def _ask(asker: _Asker, block: RowBlock, *, outcome: BlockOutcome) -> ClientError | None:
    """Adds the rows to the outcome; returns the error of asking about all of them at once, if that failed."""
    try:
        answers = await asker.client.infer(asker.model, block.rows, policy=asker.policy)
    except (UnknownModelError, TimeLimitError):
        raise
    except ClientError as error:
        if not isinstance(error, RefusedError):
            outcome.faults += 1
            if outcome.hopeless() or not await asker.client.ready(asker.model):
                raise
        count = len(block.ids)
        if count == 1:
            outcome.refused.append(RefusedRow(id=block.ids[0].item(), reason=str(error.got or error)))
        else:
            for half in np.split(np.arange(count), [count // 2]):
                await _ask(asker, block.picked(half), outcome=outcome)
        return error
    _keep(block, answers, outcome)
    return None


def _keep(block: RowBlock, answers: ServedAnswers, outcome: BlockOutcome) -> None:
    """Adds answers; rows for which a member or a native ensemble had no finite output are refused."""
    good = answers.label >= 0
    for row_id in block.ids[~good]:
        reason = "the model gave no finite output for it"
        outcome.refused.append(RefusedRow(id=row_id.item(), reason=reason))
    if not good.all():
        columns = {name: np.asarray(column)[good] for name, column in vars(answers).items()}
        block, answers = block.picked(np.flatnonzero(good)), ServedAnswers(**columns)
    if good.any():
        # The rows themselves are let go, since finished blocks wait for slower ones.
        outcome.answered.append(AnsweredPart(ids=block.ids, answers=answers, kept=block.kept))
