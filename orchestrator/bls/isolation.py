"""Finding the rows that break a member's batch: rows of a refused call are asked about again, in halves.

A backend that runs a batch as one call fails all of it for one row, and Triton's ONNX Runtime backend does so. The
member's own batcher also merges the calls of several workers, so a call can fail for a row that was not in it.
Therefore a refused call is made again while no other worker asks that member: whole, then in halves, and in the
end twice more for rows that are still refused. Other cascades and clients go on meanwhile, so that a bad row of
theirs can still fail one of ours, rarely. One bad row among n costs about 2 log2(n) further calls, and there is a
bound:
- While the member has answered no call it may itself be broken, and every further call is load on it: 31 calls,
  which suffice to find every good row among 16.
- A member that has answered part of a batch is alive: calls for eight bad rows.
Rows left then fail without being asked about. A member that is not there is asked once and no more.
"""

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
# How often a row that alone is refused is asked about again: another client's row may have been in its batch.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call gave no outputs.

    Args:
        text: one line.
        is_final: whether any other rows would be refused as well, so that asking about fewer is of no use.
        is_absent: whether the server has no such model or version, or it is dead.
    """

    text: str
    is_final: bool = False
    is_absent: bool = False


Ask = Callable[[int, int], list[Rows] | Refusal]


@dataclass(slots=True)
class BatchPieces:
    """The rows of a batch, answered or failed piece by piece.

    Args:
        room: further calls that a member which has answered some call may get.
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
        """Keeps the outputs of rows, or why there are none; returns whether they were answered."""
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
            # NaN marks rows that failed, and whole numbers have none.
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
    """Asks about rows in parts of a given size, and again in halves about parts that are refused.

    Args:
        ask: gives the outputs of the rows from a first one to an end.
        rows: how many there are.
        size: largest part.
        alone: keeps other callers of the member out; gives what to ask with meanwhile.
        owners: gives int64 (n,), the request of each row, where the rows of a request fail together anyway; called
            only when a part was refused.
        first: the refusal of the first part, where that was asked about already.
    """
    depth = (min(size, rows) - 1).bit_length()
    # A bad row costs both halves at every level, and itself again at the end.
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
    """Asks about refused parts again, and about halves of them, as long as there is room."""
    whose = None if owners is None else owners()
    bad = []
    # Each part whole first, because a row of another client may have been at fault; the next part is the last.
    waiting = refused[::-1]
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
    """Whether half of the rows may be answered although all together were refused."""
    if end - start < 2:
        return False
    return whose is None or bool((whose[start:end] != whose[start]).any())
