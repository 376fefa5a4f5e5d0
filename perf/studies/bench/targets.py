"""Holds what was measured against the targets: a ratio per target, and whether it is met."""

from typing import Any

import pandas as pd

from perf.harness.cells import BASE_DEFERRAL
from perf.harness.frame import TargetVerdict, figure, find_cell, ratio
from perf.studies.leak import Growth


class CellLookup:
    """Finds cells by what was measured.

    Args:
        cells: frame of all scenarios.
    """

    def __init__(self, cells: pd.DataFrame) -> None:
        self._cells = cells

    def find(self, route: str, *, scenario: str = "three_cnn", **load: Any) -> pd.Series | None:
        """The closed loop of a route whose load has these fields; batch 1 and 15 % unless said."""
        wanted = {"batch": 1, "deferral": BASE_DEFERRAL, "share_of_capacity": None, "sender": "closed", **load}
        return find_cell(self._cells, scenario=scenario, route=route, **wanted)

    def poisson(self, route: str, of_route: str | None) -> pd.Series | None:
        """The Poisson cell of a route at 80 % of another's capacity."""
        if of_route is None:
            return None
        return self.find(route, sender="poisson", share_of_capacity=0.8, of_route=of_route)

    def better_concatenate(self) -> str | None:
        """The form that rates were taken from."""
        of_route = self._cells.of_route.dropna()
        return next((name for name in of_route if name.startswith("concatenate")), None)

    def best(self, route: str, *, batch: int, scenario: str = "three_cnn") -> pd.Series | None:
        """The closed loop with the base mix in which a route reached the most rows/s."""
        cells = self._cells
        cells = cells[(cells.scenario == scenario) & (cells.route == route) & (cells.sender == "closed")]
        cells = cells[(cells.batch == batch) & (cells.deferral == BASE_DEFERRAL)]
        return None if cells.empty else cells.loc[cells.rows_per_s.idxmax()]

    def last_member(self, scenario: str) -> str:
        """The route of a scenario's last member."""
        routes = self._cells.route[self._cells.scenario == scenario]
        return max((name for name in routes if name.startswith("member_")), default="member_0")


def verdicts(
    cells: pd.DataFrame, *, members: int, predicted_speedup: float | None, leak: Growth | None
) -> list[TargetVerdict]:
    """Every target with what was measured.

    Args:
        cells: frame of all scenarios.
        members: of the three-CNN scenario.
        predicted_speedup: what the glyphs plan promises against its largest member, None where not known.
        leak: what `perf leak` found, None where not measured.
    """
    lookup = CellLookup(cells)
    largest = f"member_{members - 1}"
    return [
        *_against_tutorial(lookup),
        *_tails(lookup),
        *_against_bound(lookup, largest),
        *_against_largest(lookup, largest, predicted_speedup),
        TargetVerdict(
            target="perf leak: growth of resident and shared memory after warm-up, percent",
            needed=2.0,
            sense="at most",
            measured=None if leak is None else leak.percent,
            note="" if leak is None else leak.note,
        ),
    ]


def _rates(*cells: pd.Series | None) -> float | None:
    """Requests/s of one cell over another's."""
    return ratio(*(figure(cell, "requests_per_s") for cell in cells))


def _row_rates(*cells: pd.Series | None) -> float | None:
    """Rows/s of one cell over another's."""
    return ratio(*(figure(cell, "rows_per_s") for cell in cells))


def _saved(ours: pd.Series | None, theirs: pd.Series | None) -> str:
    """Their ratio by processor time, which does not count the core that one call at a time leaves idle."""
    saved = ratio(*(figure(cell, "cpu_ms_per_request") for cell in (theirs, ours)))
    return "" if saved is None else f"by the server's processor time per request {saved:.2f}"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _against_tutorial(lookup: CellLookup) -> list[TargetVerdict]:
    found = []
    for concurrency in (16, 64):
        ours, theirs, several = (
            lookup.find(route, concurrency=concurrency) for route in ("committee", "tutorial", "tutorial_4")
        )
        possible = ratio(figure(ours, "bound_requests_per_s"), figure(theirs, "requests_per_s"))
        against_several = _rates(ours, several)
        found.append(
            TargetVerdict(
                target=f"requests/s against the tutorial form, concurrency {concurrency}",
                needed=1.6,
                sense="at least",
                measured=_rates(ours, theirs),
                note=_joined(
                    "" if possible is None else f"0.9 x bound / tutorial is {0.9 * possible:.2f}",
                    "" if against_several is None else f"against 4 instances of it {against_several:.2f}",
                    _saved(ours, theirs),
                ),
                cells=(ours, theirs),
            )
        )
    at_16 = [lookup.find(route, concurrency=16) for route in ("committee", "tutorial")]
    return [
        *found,
        TargetVerdict(
            target="p50 of easy rows against the tutorial form, concurrency 16",
            needed=0.1,
            sense="at most",
            measured=ratio(*(figure(cell, "easy_p50_ms") for cell in at_16)),
            cells=at_16,
        ),
    ]


def _tails(lookup: CellLookup) -> list[TargetVerdict]:
    best = lookup.better_concatenate()
    found = []
    for title, baseline, needed in (
        ("the tutorial form", "tutorial", 0.5),
        ("the better of the concatenating forms", best, 0.7),
    ):
        pair = [None if route is None else lookup.poisson(route, baseline) for route in ("committee", baseline)]
        found.append(
            TargetVerdict(
                target=f"p99 of all rows at the same Poisson arrivals, 80 % of its capacity, against {title}",
                needed=needed,
                sense="at most",
                measured=ratio(*(figure(cell, "p99_ms") for cell in pair)),
                note="" if best is None or baseline != best else f"the better one is {best}",
                cells=pair,
            )
        )
    return found


def _against_bound(lookup: CellLookup, largest: str) -> list[TargetVerdict]:
    at_64 = lookup.find("committee", concurrency=64)
    alone = [lookup.find(route, concurrency=1) for route in ("committee", "pass_through")]
    easy = [lookup.find(route, concurrency=16, deferral=0.0) for route in ("committee", "pass_through")]
    hard = [lookup.find("committee", concurrency=number, deferral=1.0) for number in (16, 64)]
    every = max((cell for cell in hard if cell is not None), key=lambda cell: cell.requests_per_s, default=None)
    last = lookup.best(largest, batch=1)
    bound_by = None if at_64 is None else at_64.bound_by
    return [
        TargetVerdict(
            target="requests/s against the bound, concurrency 64",
            needed=0.90,
            sense="at least",
            measured=figure(at_64, "efficiency"),
            note="" if bound_by is None else f"the bound is set by {bound_by}",
            cells=(at_64,),
        ),
        TargetVerdict(
            target="easy-row p50 at concurrency 1 against the BLS pass-through",
            needed=1.15,
            sense="at most",
            measured=ratio(figure(alone[0], "easy_p50_ms"), figure(alone[1], "p50_ms")),
            cells=alone,
        ),
        TargetVerdict(
            target="0 % deferral: requests/s against the BLS pass-through, concurrency 16",
            needed=0.90,
            sense="at least",
            measured=_rates(*easy),
            cells=easy,
        ),
        TargetVerdict(
            target="100 % deferral: rows/s against the last member alone",
            needed=0.90,
            sense="at least",
            measured=_row_rates(every, last),
            cells=(every, last),
        ),
    ]


def _against_largest(lookup: CellLookup, largest: str, predicted: float | None) -> list[TargetVerdict]:
    cnn = [lookup.best(route, batch=1) for route in ("committee", largest)]
    two = _row_rates(cnn[0], lookup.best("largest_2", batch=1))
    last = lookup.last_member("glyphs")
    both = [lookup.best(route, scenario="glyphs", batch=32) for route in ("committee", last)]
    glyphs = _row_rates(*both)
    return [
        TargetVerdict(
            target="requests/s against the largest member alone, three CNNs",
            needed=5.5,
            sense="at least",
            measured=_row_rates(*cnn),
            note=_joined("" if two is None else f"against 2 instances of it {two:.2f}", _saved(*cnn)),
            cells=cnn,
        ),
        TargetVerdict(
            target="glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts",
            needed=0.7,
            sense="at least",
            measured=ratio(glyphs, predicted),
            note="" if predicted is None or glyphs is None else _glyphs_note(lookup, last, glyphs, predicted),
            cells=both,
        ),
    ]


def _glyphs_note(lookup: CellLookup, last: str, speedup: float, predicted: float) -> str:
    """The parts of the ratio, and the ratio by processor time: one member alone leaves cores idle."""
    cells = [lookup.find(route, scenario="glyphs", batch=32) for route in (last, "committee")]
    saved = ratio(*(figure(cell, "cpu_ms_per_request") for cell in cells))
    words = f"{speedup:.2f}x, predicted {predicted:.2f}x; earned mix"
    if saved is None:
        return words
    return (
        f"{words}; the largest has one thread and the plan's stages one each: by the server's processor time per "
        f"request it is {saved:.2f}x, {saved / predicted:.2f} of what is predicted"
    )
