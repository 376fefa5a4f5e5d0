"""The targets of the bench: ratios of cells of one run, each held against what is wanted."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from perf.harness.frame import TargetVerdict, figure, find_cell, interval_of, ratio
from perf.harness.serving import BASE_DEFERRAL
from perf.routes.spec import CLIENTS, IN_PROCESS, RIVALS, SERVER_RIVALS
from perf.studies.leak import Growth

CONCURRENCIES = (16, 64)
# Of the best rival's capacity: the arrivals at which tails are compared.
TAIL_SHARE = 0.8
# Of the bound; a rival so near to it that more is not to be had is not held against us.
OF_BOUND = 0.92
# A form that answers fewer requests than this share of ours may answer easy ones as quickly as it likes.
EQUAL_SHARE = 0.9
# A figure of a cell: the cell, None where it was not measured, and the column.
Figure = tuple[pd.Series | None, str]


class CellLookup:
    """Finds cells in the frame of all scenarios by what was measured."""

    def __init__(self, cells: pd.DataFrame) -> None:
        self._cells = cells

    def find(self, route: str | None, *, scenario: str = "three_cnn", **load: Any) -> pd.Series | None:
        """The closed loop of a route whose load has these fields; batch 1 and 15 % unless said."""
        wanted = {"batch": 1, "deferral": BASE_DEFERRAL, "share_of_capacity": None, "sender": "closed", **load}
        return find_cell(self._cells, scenario=scenario, route=route, **wanted)

    def pair(self, *routes: str | None, **load: Any) -> list[pd.Series | None]:
        """The cells of two routes, as `find`."""
        return [self.find(route, **load) for route in routes]

    def rivals(self, routes: Sequence[str], *, concurrency: int, at_least: float = 0.0) -> list[pd.Series]:
        """The closed loops of those of the routes that reached so many requests/s."""
        cells = [self.find(route, concurrency=concurrency) for route in routes]
        return [cell for cell in cells if cell is not None and cell.requests_per_s >= at_least]

    def tail_rival(self) -> str | None:
        """The rival whose capacity the arrivals were a share of."""
        tails = self._cells[self._cells.share_of_capacity == TAIL_SHARE]
        return next((name for name in tails.of_route if name in RIVALS), None)

    def best(self, route: str, *, batch: int = 1, scenario: str = "three_cnn") -> pd.Series | None:
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
        *(_throughput(lookup, concurrency) for concurrency in CONCURRENCIES),
        *(_easy(lookup, concurrency, SERVER_RIVALS, "committee", 0.8) for concurrency in CONCURRENCIES),
        *(_easy(lookup, concurrency, CLIENTS, IN_PROCESS, 1.0) for concurrency in CONCURRENCIES),
        _tails(lookup),
        *_against_bound(lookup, largest),
        *_alone(lookup),
        *_against_largest(lookup, largest, predicted_speedup),
        _target(
            "at most",
            2.0,
            "perf leak: growth of resident and shared memory after warm-up, percent",
            measured=None if leak is None else leak.percent,
            note="" if leak is None else leak.note,
        ),
    ]


def _target(sense: Any, needed: float, target: str, *, measured: float | None, **more: Any) -> TargetVerdict:
    return TargetVerdict(target=target, needed=needed, sense=sense, measured=measured, **more)


def _held(
    sense: Any, needed: float, target: str, above: Figure, below: Figure, *, note: str = ""
) -> TargetVerdict:
    """A target that is one figure over another."""
    return _target(
        sense,
        needed,
        target,
        measured=ratio(figure(*above), figure(*below)),
        interval=interval_of(above, below),
        note=note,
        cells=(above[0], below[0]),
    )


def _over(name: str, *cells: pd.Series | None) -> float | None:
    """A figure of one cell over another's."""
    return ratio(*(figure(cell, name) for cell in cells))


def _saved(ours: pd.Series | None, theirs: pd.Series | None) -> str:
    """Their ratio by processor time, which does not count the core that one call at a time leaves idle."""
    return _noted("by the server's processor time per request {:.2f}", _over("cpu_ms_per_request", theirs, ours))


def _noted(words: str, value: float | None) -> str:
    return "" if value is None else words.format(value)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _throughput(lookup: CellLookup, concurrency: int) -> TargetVerdict:
    ours, in_process = lookup.pair("committee", IN_PROCESS, concurrency=concurrency)
    found = lookup.rivals(RIVALS, concurrency=concurrency)
    best = max(found, key=lambda cell: cell.requests_per_s, default=None)
    name = "requests_per_s"
    possible = ratio(figure(ours, "bound_requests_per_s"), figure(best, name))
    note = _joined(
        "" if best is None else f"the best one is {best.route}",
        _noted(f"{OF_BOUND} of the bound is {{:.2f}} of it", None if possible is None else OF_BOUND * possible),
        _noted("with the first stage in process {:.2f}", _over(name, in_process, best)),
        _noted("of the tutorial form {:.2f}", _over(name, ours, lookup.find("tutorial", concurrency=concurrency))),
        _saved(ours, best),
    )
    needed = 1.05 if possible is None else min(1.05, OF_BOUND * possible)
    target = f"requests/s against the best rival, {concurrency} in flight"
    return _held("at least", needed, target, (ours, name), (best, name), note=note)


def _easy(lookup: CellLookup, concurrency: int, routes: Sequence[str], route: str, needed: float) -> TargetVerdict:
    ours, name = lookup.find(route, concurrency=concurrency), "easy_p50_ms"
    least = EQUAL_SHARE * (figure(ours, "requests_per_s") or 0.0)
    found = [one for one in lookup.rivals(routes, concurrency=concurrency, at_least=least) if figure(one, name)]
    best = min(found, key=lambda cell: cell[name], default=None)
    whose = "client-driven form, first stage in process" if routes == CLIENTS else "server-side form"
    note = "" if best is None else f"the best one is {best.route}"
    if ours is not None and best is None:
        note = f"none of them reaches {EQUAL_SHARE} of our requests/s"
    target = f"p50 of easy rows against the best {whose}, {concurrency} in flight"
    return _held("at most", needed, target, (ours, name), (best, name), note=note)


def _tails(lookup: CellLookup) -> TargetVerdict:
    rival = lookup.tail_rival()
    load = {"sender": "poisson", "share_of_capacity": TAIL_SHARE, "of_route": rival}
    ours, theirs = lookup.pair("committee", rival, **load)
    note = "" if ours is None else f"that one is {rival}; {len(ours.windows or ())} windows"
    share = f"{100 * TAIL_SHARE:.0f} %"
    target = f"p99 of all rows at the same Poisson arrivals, {share} of the best rival's capacity, against it"
    return _held("at most", 0.8, target, (ours, "p99_ms"), (theirs, "p99_ms"), note=note)


def _against_bound(lookup: CellLookup, largest: str) -> list[TargetVerdict]:
    at_64 = lookup.find("committee", concurrency=64)
    easy = lookup.pair("committee", "pass_through", concurrency=16, deferral=0.0)
    hard = [lookup.find("committee", concurrency=number, deferral=1.0) for number in (16, 64)]
    every = max((cell for cell in hard if cell is not None), key=lambda cell: cell.requests_per_s, default=None)
    last = lookup.best(largest)
    bound_by = None if at_64 is None else at_64.bound_by
    name = "requests_per_s"
    return [
        _target(
            "at least",
            OF_BOUND,
            "requests/s against the bound, 64 in flight",
            measured=figure(at_64, "efficiency"),
            note="" if bound_by is None else f"the bound is set by {bound_by}",
            cells=(at_64,),
        ),
        _held(
            "at least",
            0.9,
            "0 % deferral: requests/s against the BLS pass-through, 16 in flight",
            *((cell, name) for cell in easy),
        ),
        _held(
            "at least",
            0.9,
            "100 % deferral: rows/s against the last member alone",
            (every, "rows_per_s"),
            (last, "rows_per_s"),
        ),
    ]


def _alone(lookup: CellLookup) -> list[TargetVerdict]:
    """One request in flight."""
    ours, passed, tutorial, called = (
        lookup.find(route, concurrency=1) for route in (IN_PROCESS, "pass_through", "tutorial", "committee")
    )
    easy = ratio(figure(called, "easy_p50_ms"), figure(passed, "p50_ms"))
    rate = _over("requests_per_s", called, tutorial)
    return [
        _held(
            "at most",
            0.9,
            "p50 of easy rows against the BLS pass-through, one in flight, first stage in process",
            (ours, "easy_p50_ms"),
            (passed, "p50_ms"),
            note=_noted("called as a model {:.2f}", easy),
        ),
        _held(
            "at least",
            1.0,
            "requests/s against the tutorial form, one in flight, first stage in process",
            (ours, "requests_per_s"),
            (tutorial, "requests_per_s"),
            note=_noted("called as a model {:.2f}", rate),
        ),
    ]


def _against_largest(lookup: CellLookup, largest: str, predicted: float | None) -> list[TargetVerdict]:
    name = "rows_per_s"
    ours, alone = (lookup.best(route) for route in ("committee", largest))
    two = _over(name, ours, lookup.best("largest_2"))
    last = lookup.last_member("glyphs")
    both = [lookup.best(route, scenario="glyphs", batch=32) for route in ("committee", last)]
    glyphs = _over(name, *both)
    return [
        _held(
            "at least",
            5.8,
            "requests/s against the largest member alone, three CNNs",
            (ours, name),
            (alone, name),
            note=_joined(_noted("against 2 instances of it {:.2f}", two), _saved(ours, alone)),
        ),
        _target(
            "at least",
            0.7,
            "glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts",
            measured=ratio(glyphs, predicted),
            note="" if predicted is None or glyphs is None else _glyphs_note(lookup, last, glyphs, predicted),
            cells=both,
        ),
    ]


def _glyphs_note(lookup: CellLookup, last: str, speedup: float, predicted: float) -> str:
    """The parts of the ratio, and the ratio by processor time: one member alone leaves cores idle."""
    saved = _over("cpu_ms_per_request", *lookup.pair(last, "committee", scenario="glyphs", batch=32))
    words = f"{speedup:.2f}x, predicted {predicted:.2f}x; earned mix"
    if saved is None:
        return words
    return (
        f"{words}; the largest has one thread and the plan's stages one each: by the server's processor time per "
        f"request it is {saved:.2f}x, {saved / predicted:.2f} of what is predicted"
    )
