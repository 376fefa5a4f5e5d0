"""Blocks of rows through a served model: bounded requests in flight, results in order, guilty rows found.

When a request of many rows is refused it is halved until the rows at fault stand alone, so the others are
answered. A failure that is not the caller's (a member's, say) is looked into the same way while the server
says it is ready, but it ends the job when no row of the request gets through: then it was not the rows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.errors import ClientError, RefusedError, TimeLimitError, UnknownModelError
from orchestrator.rows.blocks import RefusedRow, RowBlock

Rows = npt.NDArray[Any]
# Finished blocks that wait for an earlier, slower one; more would only cost memory.
AHEAD = 4


class AsksBatches(Protocol):
    """The part of a client that a batch job uses."""

    async def infer(self, model: str, rows: Rows) -> ServedAnswers:
        """Answers of rows."""
        ...

    async def ready(self, model: str | None = None) -> bool:
        """Whether the server and the model would answer now."""
        ...


@dataclass(frozen=True, kw_only=True)
class Answered:
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
class Settled:
    """What became of one block.

    Args:
        size: rows of the file it stands for.
        answered: rows with answers, in order.
        refused: rows without an answer.
        faults: failures so far that were not the rows'.
    """

    size: int
    answered: list[Answered] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    faults: int = 0

    def hopeless(self) -> bool:
        """Whether halving has gone all the way down and beside, and met nothing but failures."""
        return not self.answered and self.faults > self.size.bit_length() + 2


async def settled_blocks(
    client: AsksBatches, model: str, blocks: Iterator[RowBlock], *, in_flight: int
) -> AsyncGenerator[Settled, None]:
    """Asks about blocks and gives what became of them, in their order.

    Args:
        client: who is asked.
        model: which model.
        blocks: read one by one, in a thread, as room comes free.
        in_flight: requests under way at once.

    Raises:
        ClientError: the server is gone, too slow, or fails whatever the rows.
        DataError: a block cannot be read.
    """
    gate = asyncio.Semaphore(in_flight)
    waiting: deque[asyncio.Task[Settled]] = deque()
    # Reading and decoding happen in a thread, so that requests under way are not held up by them.
    following: RowBlock | None = await asyncio.to_thread(next, blocks, None)
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < AHEAD * in_flight:
                waiting.append(asyncio.create_task(_gated(client, model, following, gate)))
                following = await asyncio.to_thread(next, blocks, None)
                if waiting[0].done():
                    break
            yield await waiting[0]
            waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _gated(client: AsksBatches, model: str, block: RowBlock, gate: asyncio.Semaphore) -> Settled:
    async with gate:
        return await settle(client, model, block)


async def settle(client: AsksBatches, model: str, block: RowBlock) -> Settled:
    """Asks about one block, in smaller parts where it is refused.

    Raises:
        ClientError: see the module.
    """
    settled = Settled(size=block.size, refused=list(block.refused))
    if not len(block.ids):
        return settled
    first = await _ask(client, model, block, settled=settled)
    if first is not None and not isinstance(first, RefusedError) and not settled.answered:
        raise first
    return settled


async def _ask(client: AsksBatches, model: str, block: RowBlock, *, settled: Settled) -> ClientError | None:
    """Adds what became of the rows; returns the error of asking for all of them at once, if that failed."""
    try:
        answers = await client.infer(model, block.rows)
    except (UnknownModelError, TimeLimitError):
        raise
    except ClientError as error:
        if not isinstance(error, RefusedError):
            settled.faults += 1
            if settled.hopeless() or not await client.ready(model):
                raise
        count = len(block.ids)
        if count == 1:
            settled.refused.append(RefusedRow(id=block.ids[0].item(), reason=str(error.got or error)))
        else:
            for half in np.split(np.arange(count), [count // 2]):
                await _ask(client, model, block.picked(half), settled=settled)
        return error
    _keep(block, answers, settled)
    return None


def _keep(block: RowBlock, answers: ServedAnswers, settled: Settled) -> None:
    """Adds answers; rows that a member or native ensemble had no finite output for are refused ones."""
    good = answers.label >= 0
    for row_id in block.ids[~good]:
        reason = "the model gave no finite output for it"
        settled.refused.append(RefusedRow(id=row_id.item(), reason=reason))
    if not good.all():
        columns = {name: np.asarray(column)[good] for name, column in vars(answers).items()}
        block, answers = block.picked(np.flatnonzero(good)), ServedAnswers(**columns)
    if good.any():
        # Not the rows: finished blocks wait for slower ones.
        settled.answered.append(Answered(ids=block.ids, answers=answers, kept=block.kept))
