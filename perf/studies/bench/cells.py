"""Which cells a run of the bench measures: the lists of the quick and of the full run."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from perf.harness.cells import BASE_CONCURRENCY, CONCATENATE, CONCATENATE_FORMS, Cell
from perf.routes.recipes import RECIPES
from perf.routes.spec import BenchRepository

EARNED_CONCURRENCY = 64
MAX_QUICK_CELLS = 12
MAX_FULL_CELLS = 60
# Held against their largest member only: the exit mix is imposed, or the plan is what is being tested.
LARGEST_ONLY = ("efficientnet", "glyphs")


def default_scenarios(*, full: bool) -> tuple[str, ...]:
    """Those a run measures unless told otherwise."""
    wanted = ("three_cnn", *LARGEST_ONLY) if full else ("three_cnn",)
    return tuple(name for name in wanted if name in RECIPES)


def cells_of(repository: BenchRepository, *, full: bool) -> list[Cell]:
    """The cells of a scenario whose routes its repository holds."""
    scenario = repository.scenario
    members = len(scenario.members)
    if scenario.name in LARGEST_ONLY:
        return largest_cells(scenario.name, members=members, routes=repository.routes, earned=scenario.earned)
    make = full_cells if full else quick_cells
    return make(scenario.name, members=members, routes=repository.routes)


def quick_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """At most twelve cells that decide most of the targets."""
    closed = [
        *((route, 64) for route in (*(f"member_{index}" for index in range(members)), "tutorial", "committee")),
        *((route, 16) for route in ("tutorial", "committee")),
        *((route, 1) for route in ("pass_through", "committee")),
    ]
    cells = [Cell(scenario=scenario, route=route, concurrency=number) for route, number in closed]
    cells += [
        Cell(scenario=scenario, route="committee", concurrency=64, deferral=1.0),
        *_poisson(scenario, ("tutorial", "committee"), share=0.8, of="tutorial"),
        # Cut off by the limit of twelve unless baselines are missing.
        *_poisson(scenario, ("committee",), share=0.8),
    ]
    return _there(cells, routes)[:MAX_QUICK_CELLS]


def full_cells(scenario: str, *, members: int, routes: Collection[str]) -> list[Cell]:
    """One factor at a time around 16 in flight, batch 1, 15 % to the last stage."""
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
    # Most requests of 32 rows have one that reaches a late stage, and wait for it. With 16 requests in flight the
    # first stage ran short of rows (batches of 55 where 64 fit) while the largest member alone had enough; with 64
    # both are full, and 128 changed nothing.
    batch, concurrency = (32, EARNED_CONCURRENCY) if earned else (1, BASE_CONCURRENCY)
    names = (f"member_{members - 1}", "committee")
    cells = [
        Cell(scenario=scenario, route=name, concurrency=concurrency, batch=batch, earned=earned) for name in names
    ]
    return _there(cells, routes)


def _poisson(scenario: str, names: Iterable[str], *, share: float, of: str = "committee") -> list[Cell]:
    return [Cell(scenario=scenario, route=name, sender="poisson", share=share, of_route=of) for name in names]


def _there(cells: Iterable[Cell], routes: Collection[str]) -> list[Cell]:
    """The cells whose routes exist, each once."""

    def exists(name: str | None) -> bool:
        forms = CONCATENATE_FORMS if name == CONCATENATE else (name,)
        return name is None or any(form in routes for form in forms)

    return list({cell.key: cell for cell in cells if exists(cell.route) and exists(cell.of_route)}.values())
