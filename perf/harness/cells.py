"""What the bench measures: one cell is one route under one load, and the lists of the quick and the full run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

BASE_CONCURRENCY = 16
EARNED_CONCURRENCY = 64
BASE_DEFERRAL = 0.15
MAX_QUICK_CELLS = 12
MAX_FULL_CELLS = 60
# Rates are shares of what this one could do; it stands for the better of the concatenating forms.
CONCATENATE = "concatenate"
CONCATENATE_FORMS = ("concatenate_1", "concatenate_4")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One route under one load.

    Args:
        scenario: name of the members.
        route: name of the route, or "concatenate" until the better form is known.
        sender: perf_analyzer keeping `concurrency` requests in flight ("closed"), our own client or
            perf_analyzer's asynchronous mode sending Poisson arrivals.
        concurrency: requests in flight, of a closed loop.
        share: of the capacity of `of_route`, the rate of Poisson arrivals.
        of_route: whose capacity; None for a closed loop.
        rate: requests per second, known once `of_route` was measured.
        batch: rows per request.
        deferral: share of rows that reach the last stage.
        earned: rows come as they are, and the plan alone decides how many reach it.
    """

    scenario: str
    route: str
    sender: Literal["closed", "poisson", "analyzer_poisson"] = "closed"
    concurrency: int | None = None
    share: float | None = None
    of_route: str | None = None
    rate: float | None = None
    batch: int = 1
    deferral: float = BASE_DEFERRAL
    earned: bool = False

    @property
    def load(self) -> str:
        """The load in short, without the route."""
        if self.sender == "closed":
            how = f"c{self.concurrency}"
        else:
            mark = "p" if self.sender == "poisson" else "pa-p"
            how = f"{mark}{100 * (self.share or 0):.0f}-{self.of_route}"
        mix = "earned" if self.earned else f"d{100 * self.deferral:.0f}"
        return f"{how}-b{self.batch}-{mix}"

    @property
    def key(self) -> str:
        """Its name in results, the same in every run."""
        return f"{self.scenario}/{self.route}/{self.load}"

    @property
    def words(self) -> str:
        """The load for people."""
        if self.sender == "closed":
            how = f"{self.concurrency} in flight"
        else:
            rate = "" if self.rate is None else f" ({self.rate:.0f}/s)"
            by = ", perf_analyzer" if self.sender == "analyzer_poisson" else ""
            how = f"Poisson, {100 * (self.share or 0):.0f} % of {self.of_route}{rate}{by}"
        mix = "earned mix" if self.earned else f"{100 * self.deferral:.0f} % to the last stage"
        return f"{how}, batch {self.batch}, {mix}"


def reach_of(deferral: float, stages: int) -> tuple[float, ...]:
    """Share of rows that get to each stage: twice as many to the middle as to the last, 1.0 first."""
    if stages == 1:
        return (1.0,)
    return (1.0, *([min(1.0, 2 * deferral)] * (stages - 2)), deferral)


def quick_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """At most twelve cells that decide most of the targets.

    Args:
        scenario: its name.
        members: how many it has.
        routes: names of those there are.
    """
    closed = [
        *((route, 64) for route in (*(f"member_{index}" for index in range(members)), "tutorial", "committee")),
        *((route, 16) for route in ("tutorial", "committee")),
        *((route, 1) for route in ("pass_through", "committee")),
    ]
    cells = [Cell(scenario=scenario, route=route, concurrency=number) for route, number in closed]
    cells += [
        Cell(scenario=scenario, route="committee", concurrency=64, deferral=1.0),
        *_poisson(scenario, ("tutorial", "committee"), share=0.8, of="tutorial"),
        # Only where baselines are missing is there room for it.
        *_poisson(scenario, ("committee",), share=0.8),
    ]
    return _there(cells, routes)[:MAX_QUICK_CELLS]


def full_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """One factor at a time around 16 in flight, batch 1, 15 % to the last stage.

    Args:
        scenario: its name.
        members: how many it has.
        routes: names of those there are.
    """
    alone = tuple(f"member_{index}" for index in range(members))
    largest = alone[-1]
    baselines = ("pass_through", "tutorial", *CONCATENATE_FORMS)
    clients = ("client_sync", "client_asyncio")

    def closed(names: Iterable[str], concurrency: int = BASE_CONCURRENCY, **changes: float) -> list[Cell]:
        base = [Cell(scenario=scenario, route=name, concurrency=concurrency) for name in names]
        return [replace(cell, **changes) for cell in base]  # type: ignore[arg-type]  # numbers of either kind

    cells = [
        *closed([*alone, *baselines, "tutorial_4", *clients, "ensemble", "onefile", "committee"]),
        *closed([largest, "largest_2", *baselines[1:], "tutorial_4", "committee"], 64),
        *closed([largest, "pass_through", "tutorial", "committee"], 1),
        *closed(["tutorial", "committee"], 4),
        *closed([*alone, "tutorial", CONCATENATE_FORMS[1], "onefile", "committee"], batch=8),
        *closed(["pass_through", "tutorial", "committee"], deferral=0.0),
        *closed(["tutorial", "committee"], deferral=0.05),
        *closed(["tutorial", "committee"], deferral=0.3),
        *closed(["tutorial", CONCATENATE_FORMS[1], "committee"], deferral=1.0),
        *closed(["committee"], 64, deferral=1.0),
        *_poisson(scenario, ("tutorial", "committee"), share=0.5, of="tutorial"),
        *_poisson(scenario, ("tutorial", "committee"), share=0.8, of="tutorial"),
        *_poisson(scenario, ("tutorial", "committee"), share=0.95, of="tutorial"),
        *_poisson(scenario, (CONCATENATE, "committee"), share=0.8, of=CONCATENATE),
        *(cell for share in (0.5, 0.8, 0.95) for cell in _poisson(scenario, ("committee",), share=share)),
        Cell(
            scenario=scenario, route="committee", sender="analyzer_poisson", share=0.8, of_route="tutorial"
        ),
    ]  # fmt: skip
    return _there(cells, routes)


def largest_cells(scenario: str, *, members: int, routes: Collection[str], earned: bool = False) -> list[Cell]:
    """The few cells of a scenario that is only held against its largest member."""
    # Most requests of 32 rows hold one that goes far, and wait for it. With 16 of them the first stage ran short
    # of rows (batches of 55 where 64 fit) while the largest member alone had enough; 64 fill both, and 128 changed
    # nothing.
    batch, concurrency = (32, EARNED_CONCURRENCY) if earned else (1, BASE_CONCURRENCY)
    names = (f"member_{members - 1}", "committee")
    cells = [
        Cell(scenario=scenario, route=name, concurrency=concurrency, batch=batch, earned=earned) for name in names
    ]
    return _there(cells, routes)


def _poisson(scenario: str, names: Iterable[str], *, share: float, of: str = "committee") -> list[Cell]:
    return [Cell(scenario=scenario, route=name, sender="poisson", share=share, of_route=of) for name in names]


def _there(cells: Iterable[Cell], routes: Collection[str]) -> list[Cell]:
    """Each once, and only those whose routes exist."""

    def exists(name: str | None) -> bool:
        forms = CONCATENATE_FORMS if name == CONCATENATE else (name,)
        return name is None or any(form in routes for form in forms)

    return list({cell.key: cell for cell in cells if exists(cell.route) and exists(cell.of_route)}.values())
