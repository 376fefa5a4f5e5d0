"""Routes: every way to get an answer from the same members, rendered side by side into one repository.

The baselines' code is in `baselines/`, the members' generators in `recipes/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import DataError
from perf.routes.rendering import render_scenario
from perf.routes.scenario import BenchScenario, bench_scenario
from perf.routes.scenarios import RECIPES
from perf.routes.spec import BenchRepository, BenchRoute, BenchRows, Scenario, routes_of

SCENARIOS: dict[str, Scenario] = {name: recipe.scenario for name, recipe in RECIPES.items()}
ROUTES: dict[str, BenchRoute] = routes_of(SCENARIOS["three_cnn"])


def render_bench_repository(folder: Path, *, scenario: Scenario) -> BenchRepository:
    """Writes a repository with a scenario's members and every route's model, in the place of an earlier one.

    Args:
        folder: to render into.
        scenario: one of SCENARIOS.

    Raises:
        CommitteeError: the members cannot be made, or the folder holds something else.
    """
    return render_scenario(_made(scenario), folder)


def rows_for(scenario: Scenario, *, reach: Sequence[float] | None, rows: int, seed: int) -> BenchRows:
    """Rows with exactly the asked mix of exits, or as they come.

    Args:
        scenario: one of SCENARIOS.
        reach: share of rows that get to each stage, 1.0 first; None for rows as they come.
        rows: how many, a prime.
        seed: of the choice and the order.

    Raises:
        CommitteeError: the members cannot be made, or their rows have no such mix.
    """
    there = _made(scenario)
    if reach is None:
        return there.rows_as_they_come(rows=rows, seed=seed)
    return there.rows_for(reach=reach, rows=rows, seed=seed)


def _made(scenario: Scenario) -> BenchScenario:
    if scenario.name not in RECIPES:
        raise DataError("scenario", got=scenario.name, expected=f"one of {', '.join(RECIPES)}")
    return bench_scenario(RECIPES[scenario.name])


__all__ = ["RECIPES", "ROUTES", "SCENARIOS", "render_bench_repository", "rows_for"]
