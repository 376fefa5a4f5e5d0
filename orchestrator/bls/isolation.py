"""Finding the rows that break a member's batch: what is refused is asked again in halves.

A backend that runs a batch as one call fails all of it for one row, and Triton's ONNX Runtime backend does so. The
member's own batcher merges the calls of several workers, too, so a call can fail for a row that was not in it.
Therefore what is refused is asked again while no other worker asks that member: whole, then in halves, and in the
end twice more for what is still refused. Other cascades and clients go on meanwhile, so that a bad row of theirs
fails one of ours rarely, not never. One bad row among n costs about 2 log2(n) further calls, and there is a bound:
- While nothing was answered the member itself may be what is broken, and every further call is load on it: 31,
  which is all it takes to find every good one among 16 rows.
- A member that has answered part of a batch is alive: room for eight bad rows.
What is left then fails unasked. A member that is not there is asked once and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
Owners = Callable[[], npt.NDArray[np.int64]]
CALLS_TO_SILENT = 31
BAD_ROWS_OF_ALIVE = 8
# How often what cannot be divided is asked for again: a row of somebody else may have been in its batch.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call gave nothing.

    Args:
        text: one line.
        is_final: whether any other rows would be refused as well, so that asking for fewer is of no use.
        is_absent: whether the server has no such model or version, or it is dead.
    """

    text: str
    is_final: bool = False
    is_absent: bool = False


Ask = Callable[[int, int], list[Rows] | Refusal]


@dataclass(slots=True)
class BatchPieces:
    """What became of the rows of a batch.

    Args:
        room: further calls to a member that has answered something.
        answered: first row, end and outputs of each piece that was answered.
        failed: by row, why it has no answer.
        further_calls: calls beyond one per part.
        is_over: whether a refusal was final.
    """

    room: int
    answered: list[tuple[int, int, list[Rows]]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    further_calls: int = 0
    is_over: bool = False

    def note(self, start: int, end: int, said: list[Rows] | Refusal) -> bool:
        """Takes what was said of rows; returns whether they were answered."""
        if isinstance(said, Refusal):
            self.failed.update(dict.fromkeys(range(start, end), said.text))
            self.is_over |= said.is_final
            return False
        self.answered.append((start, end, said))
        for row in range(start, end) if self.failed else ():
            self.failed.pop(row, None)
        return True

    @property
    def has_room(self) -> bool:
        """Whether a further call may be made."""
        return not self.is_over and self.further_calls < (self.room if self.answered else CALLS_TO_SILENT)

    def outputs(self, rows: int) -> list[Rows] | None:
        """Every output for all n rows, NaN where a row has no answer; None where no row has one."""
        if not self.answered:
            return None
        if len(self.answered) == 1 and not self.failed:
            return self.answered[0][2]
        whole = []
        for index, first in enumerate(self.answered[0][2]):
            dtype = np.float32 if self.failed and not np.issubdtype(first.dtype, np.floating) else first.dtype
            output = np.empty((rows, *first.shape[1:]), dtype)
            if self.failed:
                output.fill(np.nan)
            for start, end, outputs in self.answered:
                output[start:end] = outputs[index]
            whole.append(output)
        return whole


def ask_in_pieces(
    ask: Ask,
    rows: int,
    *,
    size: int,
    alone: Callable[[], AbstractContextManager[Ask]],
    owners: Owners | None = None,
    first: Refusal | None = None,
) -> BatchPieces:
    """Asks for rows in parts of a given size, and in halves for parts that are refused.

    Args:
        ask: gives the outputs of the rows from a first one to an end.
        rows: how many there are.
        size: largest part.
        alone: keeps other callers of the member out; gives what to ask with meanwhile.
        owners: int64 (n,), whose each row is, where rows of one owner fail together anyway; asked for only
            when something was refused.
        first: what the first part was refused with, where it was asked for already.
    """
    depth = (min(size, rows) - 1).bit_length()
    # For a bad row both halves at every level, and the row itself again at the end.
    pieces = BatchPieces(room=max(CALLS_TO_SILENT, BAD_ROWS_OF_ALIVE * (2 * depth + REPEATS)))
    refused = []
    for start in range(0, rows, size):
        end = min(start + size, rows)
        said: list[Rows] | Refusal = first if first and not start else ask(start, end)
        if not pieces.note(start, end, said):
            refused.append((start, end))
        if pieces.is_over:
            text = pieces.failed[start]
            pieces.failed.update(dict.fromkeys(range(end, rows), text))
            return pieces
    if refused:
        with alone() as ask_alone:
            _isolate(ask_alone, refused, pieces, owners)
    return pieces


def _isolate(ask: Ask, refused: list[tuple[int, int]], pieces: BatchPieces, owners: Owners | None) -> None:
    """Asks for refused parts again, and for halves of them, as long as there is room."""
    whose = None if owners is None else owners()
    bad = []
    waiting = refused[::-1]  # the next one is the last
    while waiting and pieces.has_room:
        start, end = waiting.pop()
        pieces.further_calls += 1
        if pieces.note(start, end, ask(start, end)):
            continue
        if _divides(start, end, whose):
            middle = (start + end) // 2
            waiting += [(middle, end), (start, middle)]
        else:
            bad.append((start, end))
    for _ in range(REPEATS):
        for start, end in bad:
            if start in pieces.failed and pieces.has_room:
                pieces.further_calls += 1
                pieces.note(start, end, ask(start, end))


def _divides(start: int, end: int, whose: npt.NDArray[np.int64] | None) -> bool:
    """Whether half of the rows may be answered where all were refused."""
    if end - start < 2:
        return False
    return whose is None or bool((whose[start:end] != whose[start]).any())
