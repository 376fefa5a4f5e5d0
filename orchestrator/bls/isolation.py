"""Finding the rows that break a member's batch: what is refused is asked again in halves.

A backend that runs a batch as one call fails all of it for one row, and Triton's ONNX Runtime backend does so. One
bad row among n costs 2 log2(n) further calls. Their number is bounded:
- While nothing was answered the member itself may be what is broken, and every further call is load on it: 30,
  which is all it takes to ask for each of 16 rows alone.
- A member that has answered part of a batch is alive: room for eight bad rows.
Pieces that are still refused then fail as they are. A member that is not there is asked once and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[Any]
Owners = Callable[[], npt.NDArray[np.int64]]
CALLS_TO_SILENT = 30
BAD_ROWS_OF_ALIVE = 8


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call gave nothing.

    Args:
        text: one line.
        is_final: whether any other rows would be refused as well, so that asking for fewer is of no use.
    """

    text: str
    is_final: bool = False


@dataclass(slots=True)
class Pieces:
    """What became of the rows of a batch.

    Args:
        answered: first row, end and outputs of each piece that was answered, in the order of the rows.
        failed: by row, why it has no answer.
        further_calls: calls beyond one per part.
    """

    answered: list[tuple[int, int, list[Rows]]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    further_calls: int = 0

    def outputs(self, rows: int) -> list[Rows] | None:
        """Every output for all n rows, NaN where a row has no answer; None where no row has one."""
        if not self.answered:
            return None
        parts = [outputs for _, _, outputs in self.answered]
        if not self.failed:
            return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        whole = []
        for index, first in enumerate(parts[0]):
            dtype = first.dtype if np.issubdtype(first.dtype, np.floating) else np.float32
            output = np.full((rows, *first.shape[1:]), np.nan, dtype)
            for start, end, outputs in self.answered:
                output[start:end] = outputs[index]
            whole.append(output)
        return whole


def ask_in_pieces(
    ask: Callable[[int, int], list[Rows] | Refusal], rows: int, *, size: int, owners: Owners | None = None
) -> Pieces:
    """Asks for rows in parts of a given size, and in halves for parts that are refused.

    Args:
        ask: gives the outputs of the rows from a first one to an end.
        rows: how many there are.
        size: largest part.
        owners: int64 (n,), whose each row is, where rows of one owner fail together anyway; asked for only
            when something was refused.
    """
    pieces = Pieces()
    # The next piece is the last one here; a half comes before what stood behind it, so answers come in order.
    waiting = [(start, min(start + size, rows)) for start in range(0, rows, size)][::-1]
    whose = None
    while waiting:
        start, end = waiting.pop()
        said = ask(start, end)
        if not isinstance(said, Refusal):
            pieces.answered.append((start, end, said))
            continue
        if said.is_final:
            for first, last in [(start, end), *waiting]:
                pieces.failed.update(dict.fromkeys(range(first, last), said.text))
            break
        if owners is not None and whose is None:
            whose = owners()
        room = _room(min(size, rows)) if pieces.answered else CALLS_TO_SILENT
        if pieces.further_calls + 2 <= room and _divides(start, end, whose):
            middle = (start + end) // 2
            waiting += [(middle, end), (start, middle)]
            pieces.further_calls += 2
        else:
            pieces.failed.update(dict.fromkeys(range(start, end), said.text))
    return pieces


def _room(rows: int) -> int:
    """Further calls to a member that is alive, for parts of n rows: both halves of every level per bad row."""
    return max(CALLS_TO_SILENT, BAD_ROWS_OF_ALIVE * 2 * (rows - 1).bit_length())


def _divides(start: int, end: int, whose: npt.NDArray[np.int64] | None) -> bool:
    """Whether half of the rows may be answered where all were refused."""
    if end - start < 2:
        return False
    return whose is None or bool((whose[start:end] != whose[start]).any())
