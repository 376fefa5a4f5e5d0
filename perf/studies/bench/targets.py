"""Holds what was measured against the targets: a ratio per target, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perf.harness.cells import BASE_DEFERRAL
from perf.harness.summary import Summary, flags_of
from perf.studies.bench.leak_file import Growth

Ratio = Callable[["Measured"], "float | None"]


@dataclass(frozen=True, kw_only=True)
class TargetVerdict:
    """One target.

    Args:
        target: in words.
        needed: the ratio asked for.
        sense: whether the ratio must be at least or at most that.
        measured: the ratio, None where the run did not measure it.
        note: what else a reader needs.
        cells: the ratio is made of, None where one was not measured.
    """

    target: str
    needed: float
    sense: Literal["at least", "at most"]
    measured: float | None
    note: str = ""
    cells: Sequence[Summary | None] = ()

    @property
    def remarks(self) -> str:
        """The note, and what is wrong with the cells the ratio is made of."""
        found = [self.note] if self.note else []
        for one in self.cells:
            found += [] if one is None else [f"{one.cell.route}: {flag}" for flag in flags_of(one)]
        return "; ".join(found)

    @property
    def met(self) -> bool | None:
        """None where it was not measured, or a cell lost requests or answered another mix of rows."""
        if self.measured is None or any(
            one is not None and (one.failed or one.reach_is_off) for one in self.cells
        ):
            return None
        return self.measured >= self.needed if self.sense == "at least" else self.measured <= self.needed

    def as_json(self) -> dict[str, Any]:
        """As verdict.json holds it."""
        return {
            "target": f"{self.target} ({self.sense})",
            "needed": self.needed,
            "measured": None if self.measured is None else round(self.measured, 4),
            "met": self.met,
            "note": self.remarks,
        }


class Measured:
    """Finds summaries by what was measured.

    Args:
        summaries: of all scenarios.
    """

    def __init__(self, summaries: Iterable[Summary]) -> None:
        self._summaries = list(summaries)

    def find(self, route: str, *, scenario: str = "three_cnn", **load: Any) -> Summary | None:
        """The cell of a route whose load has these fields; batch 1 and 15 % unless said."""
        wanted = {"batch": 1, "deferral": BASE_DEFERRAL, "share": None, "sender": "closed", **load}
        for one in self._summaries:
            cell = one.cell
            if (cell.scenario, cell.route) == (scenario, route) and all(
                getattr(cell, name) == value for name, value in wanted.items()
            ):
                return one
        return None

    def poisson(self, route: str | None, of_route: str | None, *, share: float = 0.8) -> Summary | None:
        """The Poisson cell of a route at a share of another's capacity."""
        if route is None or of_route is None:
            return None
        return self.find(route, sender="poisson", share=share, of_route=of_route)

    def better_concatenate(self) -> str | None:
        """The form that rates were taken from."""
        for one in self._summaries:
            if one.cell.of_route is not None and one.cell.of_route.startswith("concatenate"):
                return one.cell.of_route
        return None

    def best(self, route: str, *, scenario: str = "three_cnn", batch: int | None = None) -> Summary | None:
        """The closed loop with the base mix in which a route reached the most rows/s."""
        cells = [
            one
            for one in self._summaries
            if (one.cell.scenario, one.cell.route, one.cell.sender) == (scenario, route, "closed")
            and batch in (None, one.cell.batch)
            and one.cell.deferral == BASE_DEFERRAL
        ]
        return max(cells, key=lambda one: one.rows_per_s, default=None)

    def last_member(self, scenario: str) -> str:
        """The route of a scenario's last member."""
        names = {one.cell.route for one in self._summaries if one.cell.scenario == scenario}
        return max((name for name in names if name.startswith("member_")), default="member_0")


def ratio(above: float | None, below: float | None) -> float | None:
    """One figure over another, None where either is missing."""
    return None if above is None or not below else above / below


def _rate(one: Summary | None) -> float | None:
    return None if one is None else one.requests_per_s


def _rows_rate(one: Summary | None) -> float | None:
    return None if one is None else one.rows_per_s


def _saved(ours: Summary | None, theirs: Summary | None) -> str:
    """The same ratio without the core that a route with one call under way leaves idle."""
    if ours is None or theirs is None or not ours.cpu_s_per_request:
        return ""
    saved = theirs.cpu_s_per_request / ours.cpu_s_per_request
    return f"by the server's processor time per request {saved:.2f}"


def _latency(one: Summary | None, name: str) -> float | None:
    return None if one is None else one.latency_ms.get(name)


def verdicts(
    summaries: Sequence[Summary], *, members: int, predicted_speedup: float | None, leak: Growth | None
) -> list[TargetVerdict]:
    """Every target with what was measured.

    Args:
        summaries: of all scenarios.
        members: of the three-CNN scenario.
        predicted_speedup: what the glyphs plan promises against its largest member, None where not known.
        leak: what `perf leak` found, None where not measured.
    """
    measured = Measured(summaries)
    largest = f"member_{members - 1}"
    return [
        *_against_tutorial(measured),
        *_tails(measured),
        *_against_bound(measured, largest),
        *_against_largest(measured, largest, predicted_speedup),
        TargetVerdict(
            target="perf leak: growth of resident and shared memory after warm-up, percent",
            needed=2.0,
            sense="at most",
            measured=None if leak is None else leak.percent,
            note="" if leak is None else leak.note,
        ),
    ]


def _against_tutorial(measured: Measured) -> list[TargetVerdict]:
    found = []
    for concurrency in (16, 64):
        ours, theirs = (measured.find(route, concurrency=concurrency) for route in ("committee", "tutorial"))
        possible = ratio(ours.bound.requests_per_s, _rate(theirs)) if ours and ours.bound else None
        several = ratio(_rate(ours), _rate(measured.find("tutorial_4", concurrency=concurrency)))
        notes = [
            "" if possible is None else f"0.9 x bound / tutorial is {0.9 * possible:.2f}",
            "" if several is None else f"against 4 instances of it {several:.2f}",
            _saved(ours, theirs),
        ]
        found.append(
            TargetVerdict(
                target=f"requests/s against the tutorial form, concurrency {concurrency}",
                needed=1.6,
                sense="at least",
                measured=ratio(_rate(ours), _rate(theirs)),
                note="; ".join(note for note in notes if note),
                cells=(ours, theirs),
            )
        )
    at_16 = [measured.find(route, concurrency=16) for route in ("committee", "tutorial")]
    return [
        *found,
        TargetVerdict(
            target="p50 of easy rows against the tutorial form, concurrency 16",
            needed=0.1,
            sense="at most",
            measured=ratio(*(_latency(one, "easy_p50_ms") for one in at_16)),
            cells=at_16,
        ),
    ]


def _tails(measured: Measured) -> list[TargetVerdict]:
    best = measured.better_concatenate()
    found = []
    for title, baseline, needed in (
        ("the tutorial form", "tutorial", 0.5),
        ("the better of the concatenating forms", best, 0.7),
    ):
        ours, theirs = (measured.poisson(route, baseline) for route in ("committee", baseline))
        found.append(
            TargetVerdict(
                target=f"p99 of all rows at the same Poisson arrivals, 80 % of its capacity, against {title}",
                needed=needed,
                sense="at most",
                measured=ratio(_latency(ours, "p99_ms"), _latency(theirs, "p99_ms")),
                note="" if best is None or baseline != best else f"the better one is {best}",
                cells=(ours, theirs),
            )
        )
    return found


def _against_bound(measured: Measured, largest: str) -> list[TargetVerdict]:
    at_64 = measured.find("committee", concurrency=64)
    alone = [measured.find(route, concurrency=1) for route in ("committee", "pass_through")]
    ones = [_latency(one, name) for one, name in zip(alone, ("easy_p50_ms", "p50_ms"), strict=True)]
    easy = [measured.find(route, concurrency=16, deferral=0.0) for route in ("committee", "pass_through")]
    hard = [measured.find("committee", concurrency=number, deferral=1.0) for number in (16, 64)]
    every = max((one for one in hard if one is not None), key=lambda one: one.requests_per_s, default=None)
    last = measured.best(largest, batch=1)
    return [
        TargetVerdict(
            target="requests/s against the bound, concurrency 64",
            needed=0.90,
            sense="at least",
            measured=None if at_64 is None else at_64.efficiency,
            note="" if at_64 is None or at_64.bound is None else f"the bound is set by {at_64.bound.by}",
            cells=(at_64,),
        ),
        TargetVerdict(
            target="easy-row p50 at concurrency 1 against the BLS pass-through",
            needed=1.15,
            sense="at most",
            measured=ratio(*ones),
            cells=alone,
        ),
        TargetVerdict(
            target="0 % deferral: requests/s against the BLS pass-through, concurrency 16",
            needed=0.90,
            sense="at least",
            measured=ratio(*(_rate(one) for one in easy)),
            cells=easy,
        ),
        TargetVerdict(
            target="100 % deferral: rows/s against the last member alone",
            needed=0.90,
            sense="at least",
            measured=ratio(_rate(every), _rows_rate(last)),
            cells=(every, last),
        ),
    ]


def _against_largest(measured: Measured, largest: str, predicted: float | None) -> list[TargetVerdict]:
    cnn = [measured.best(route, batch=1) for route in ("committee", largest)]
    two = ratio(_rows_rate(cnn[0]), _rows_rate(measured.best("largest_2", batch=1)))
    notes = ["" if two is None else f"against 2 instances of it {two:.2f}", _saved(*cnn)]
    last = measured.last_member("glyphs")
    both = [measured.best(route, scenario="glyphs", batch=32) for route in ("committee", last)]
    glyphs = ratio(*(_rows_rate(one) for one in both))
    return [
        TargetVerdict(
            target="requests/s against the largest member alone, three CNNs",
            needed=5.5,
            sense="at least",
            measured=ratio(*(_rows_rate(one) for one in cnn)),
            note="; ".join(note for note in notes if note),
            cells=cnn,
        ),
        TargetVerdict(
            target="glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts",
            needed=0.7,
            sense="at least",
            measured=ratio(glyphs, predicted),
            note="" if predicted is None or glyphs is None else _glyphs_note(measured, last, glyphs, predicted),
            cells=both,
        ),
    ]


def _glyphs_note(measured: Measured, last: str, speedup: float, predicted: float) -> str:
    """The ratio's parts, and what it is without the cores that one member alone leaves idle."""
    spent = [
        None if one is None else one.cpu_s_per_request
        for one in (measured.find(route, scenario="glyphs", batch=32) for route in (last, "committee"))
    ]
    saved = ratio(*spent)
    words = f"{speedup:.2f}x, predicted {predicted:.2f}x; earned mix"
    if saved is None:
        return words
    return (
        f"{words}; the largest has one thread and the plan's stages one each: by the server's processor time per "
        f"request it is {saved:.2f}x, {saved / predicted:.2f} of what is predicted"
    )
