"""The order of a run: interleaved rounds, windows taken again, and rates that follow from what was measured.

Rules of this file: closed loops come first, because Poisson rates are shares of what they show. Each round visits
every cell once. A window with the wrong mix of rows is taken again at once; after the rounds, a cell whose rounds
lie too far apart gets its farthest round again, once, and is called unstable if that did not help.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from orchestrator.errors import ClientError, DataError
from perf.harness.cells import BASE_DEFERRAL, CONCATENATE, CONCATENATE_FORMS, Cell
from perf.harness.frame import is_unstable, judged_by
from perf.harness.windows import REACH_TOLERANCE, Journal, WindowRecord


class TakeWindow(Protocol):
    """Takes one window of a cell."""

    def __call__(self, cell: Cell, *, round_number: int, attempt: int, why: str) -> WindowRecord:
        """The figures of the window."""


@dataclass(frozen=True, kw_only=True)
class MeasuredCells:
    """The cells that could be measured, and the failures of the others.

    Args:
        cells: measured ones, their rates and routes known.
        failures: what went wrong with the others, by key.
    """

    cells: tuple[Cell, ...]
    failures: dict[str, str]


def capacity_of(route: str, cells: Iterable[Cell], journal: Journal) -> float | None:
    """The most requests/s a route reached with single rows of the base mix; None where it was not measured."""
    medians = [
        float(np.median([one["requests_per_s"] for one in records]))
        for cell in cells
        if (cell.route, cell.sender, cell.batch, cell.deferral) == (route, "closed", 1, BASE_DEFERRAL)
        and (records := journal.of(cell.key))
    ]
    return max(medians, default=None)


def with_rates(cells: Iterable[Cell], closed: Sequence[Cell], journal: Journal) -> list[Cell]:
    """Cells with their rates, and with the better concatenating form where that was asked for.

    Cells whose rate follows from something that was not measured are left out.
    """
    found = {form: rate for form in CONCATENATE_FORMS if (rate := capacity_of(form, closed, journal))}
    best = max(found, key=lambda form: found[form], default=None)

    def named(route: str | None) -> str | None:
        return best if route == CONCATENATE else route

    resolved = []
    for cell in cells:
        route, of_route = named(cell.route), named(cell.of_route)
        capacity = capacity_of(of_route, closed, journal) if of_route is not None else None
        if route is not None and capacity is not None and cell.share is not None:
            resolved.append(replace(cell, route=route, of_route=of_route, rate=cell.share * capacity))
    return list({cell.key: cell for cell in resolved}.values())


class Rounds:
    """Runs cells to the end.

    Args:
        take: takes a window.
        journal: where windows go; a round that it holds already is not measured again.
        rounds: windows per cell.
        end_s: by the clock; no window is taken a second time where that would end a run later.
        window_s: what one window takes, about.
        progress: told what is measured.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        take: TakeWindow,
        journal: Journal,
        *,
        rounds: int,
        end_s: float,
        window_s: float,
        progress: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._take_window = take
        self._journal = journal
        self._rounds = rounds
        self._progress = progress
        self._clock = clock
        self._start = clock()
        self._end_s = end_s
        self._window_s = window_s
        self._failures: dict[str, str] = {}
        self._done = 0
        self._total = 0

    def run(self, cells: Sequence[Cell]) -> MeasuredCells:
        """Measures every cell in every round.

        Raises:
            ServingError: the server ended.
        """
        closed = [cell for cell in cells if cell.share is None]
        others = [cell for cell in cells if cell.share is not None]
        self._total = self._rounds * len(cells)
        self._all_rounds(closed)
        opened = with_rates(others, closed, self._journal)
        for cell in others:
            if not with_rates([cell], closed, self._journal):
                self._failures[cell.key] = f"its rate is a share of what {cell.of_route} can do: not measured"
        self._all_rounds(opened)
        measured = tuple(cell for cell in (*closed, *opened) if self._journal.of(cell.key))
        return MeasuredCells(cells=measured, failures=self._failures)

    def _all_rounds(self, cells: Sequence[Cell]) -> None:
        for number in range(1, self._rounds + 1):
            # Forwards, then backwards: drift and heat hit all cells alike, and no cell always follows another.
            for cell in cells if number % 2 else cells[::-1]:
                self._visit(cell, number)
        for cell in cells:
            self._settle(cell)

    def _visit(self, cell: Cell, number: int) -> None:
        self._done += 1
        if any(record["round"] == number for record in self._journal.of(cell.key)):
            return
        record = self._take(cell, number, attempt=0, why="")
        if record is not None and record["reach_off"] > REACH_TOLERANCE and self._has_time():
            self._take(cell, number, attempt=1, why="reach")

    def _settle(self, cell: Cell) -> None:
        records = self._journal.of(cell.key)
        again = any(one["key"] == cell.key and one["why"] == "spread" for one in self._journal.records)
        if again or not is_unstable(records, cell) or not self._has_time():
            return
        values = np.array(judged_by(records, cell))
        farthest = records[int(np.argmax(np.abs(values - np.median(values))))]
        self._take(cell, farthest["round"], attempt=farthest["attempt"] + 1, why="spread")

    def _take(self, cell: Cell, number: int, *, attempt: int, why: str) -> WindowRecord | None:
        if cell.key in self._failures:
            return None
        # A load that fails may be sent once more; a baseline that fails again must not cost the others their hour.
        for text in (self._words(cell, number, why), self._words(cell, number, "it failed")):
            self._progress(text)
            try:
                record = self._take_window(cell, round_number=number, attempt=attempt, why=why)
            except (ClientError, DataError) as error:
                failure = str(error)
                continue
            self._journal.add(record)
            return record
        self._failures[cell.key] = failure
        return None

    def _has_time(self) -> bool:
        """Whether a further window leaves time for those that every cell must have."""
        needed = self._total - self._done + 1
        return self._clock() + needed * self._window_s <= self._end_s

    def _words(self, cell: Cell, number: int, why: str) -> str:
        done, left = self._done - 1, ""
        if done:
            left_s = (self._clock() - self._start) / done * (self._total - done)
            left = f"; about {max(1, round(left_s / 60))} min left"
        again = f", again ({why})" if why else ""
        return f"round {number} of {self._rounds}: {cell.route}, {cell.words}{again}{left}"
