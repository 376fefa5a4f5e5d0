"""Which scenarios there are, what makes their repositories and rows, and which cells they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from perf.harness.cells import Cell, full_cells, largest_cells, quick_cells
from perf.routes import SCENARIOS, render_bench_repository, rows_for
from perf.routes.spec import BenchRepository, BenchRows, Scenario

# Held against its largest member only; its exit mix is imposed, or its plan is what is being tested.
LARGEST_ONLY = ("efficientnet", "glyphs")


@dataclass(frozen=True, kw_only=True)
class BenchTools:
    """What makes one scenario.

    Args:
        scenario: its members.
        render: writes its repository into a folder.
        rows_for: makes its rows.
        cells: what is measured on it; None for those of the quick or the full run.
        settings: what else a run that goes on must share.
        startup_timeout_s: longest wait for its models to be ready.
    """

    scenario: Scenario
    render: Callable[[Path], BenchRepository]
    rows_for: Callable[..., BenchRows]
    cells: Callable[[BenchRepository], list[Cell]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    startup_timeout_s: float = 300.0


def tools_of(name: str) -> BenchTools:
    """A scenario by name.

    Raises:
        DataError: there is none of that name.
    """
    if name not in SCENARIOS:
        raise DataError("scenario", got=repr(name), expected=f"one of {', '.join(SCENARIOS)}")
    scenario = SCENARIOS[name]
    return BenchTools(
        scenario=scenario,
        render=lambda folder: render_bench_repository(folder, scenario=scenario),
        rows_for=rows_for,
    )


def default_scenarios(*, full: bool) -> tuple[str, ...]:
    """Those a run measures unless told otherwise."""
    wanted = ("three_cnn", *LARGEST_ONLY) if full else ("three_cnn",)
    return tuple(name for name in wanted if name in SCENARIOS)


def cells_of(repository: BenchRepository, *, full: bool) -> list[Cell]:
    """The cells of a scenario whose routes its repository holds."""
    scenario = repository.scenario
    members = len(scenario.members)
    if scenario.name in LARGEST_ONLY:
        return largest_cells(scenario.name, members=members, routes=repository.routes, earned=scenario.earned)
    make = full_cells if full else quick_cells
    return make(scenario.name, members=members, routes=repository.routes)
