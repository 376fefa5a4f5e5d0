"""The glyphs scenario: the committed plan, and what its members' times promise."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.local.sessions import LocalMembers
from orchestrator.rows.digits import digits_split
from orchestrator.spec import cascade_from_path
from perf.routes.recipe import predicted_speedup
from perf.routes.recipes import RECIPES
from perf.routes.recipes.trained import CHOSEN, COMMITTED, GLYPHS, glyphs
from perf.routes.spec import Rows
from perf.studies.reproduce.choices import choices_from_path


def test_it_is_the_plan_that_was_chosen_against_the_largest_member() -> None:
    (recipe,) = glyphs()
    headline = choices_from_path(CHOSEN).comparisons[0]
    assert headline.one is not None
    assert recipe.scenario.members == headline.one.members
    assert recipe.scenario.members[-1] == headline.other.members[0]
    assert recipe.scenario.earned
    assert not recipe.scenario.imposed
    assert all((GLYPHS / name / "manifest.json").is_file() for name in recipe.scenario.members)
    assert RECIPES["glyphs"].scenario == recipe.scenario


def test_a_promise_is_what_the_largest_takes_over_what_the_plan_takes() -> None:
    spec = cascade_from_path(COMMITTED / "digits_cascade" / "1" / "cascade.json")
    rows = digits_split("plan").images[:128]
    stages = len(spec.stages)
    alone = predicted_speedup(COMMITTED, spec, reach=(1.0,) + (0.0,) * (stages - 1), rows=rows)
    all_the_way = predicted_speedup(COMMITTED, spec, reach=(1.0,) * stages, rows=rows)
    assert alone > 1 > all_the_way


def test_without_a_chosen_plan_there_is_no_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.routes.recipes.trained.CHOSEN", CHOSEN.with_name("nowhere.json"))
    assert glyphs() == []


def test_a_promise_does_not_move_with_other_work_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cascade_from_path(COMMITTED / "digits_cascade" / "1" / "cascade.json")
    rows = digits_split("plan").images[:64]
    last, ask = spec.members[-1].name, LocalMembers.ask

    def held_up(self: LocalMembers, name: str, batch: Rows) -> npt.NDArray[np.float32]:
        if name == last:
            time.sleep(0.005)
        return ask(self, name, batch)

    reach = (1.0,) * len(spec.stages)
    monkeypatch.setattr(LocalMembers, "ask", held_up)
    # The last member among those asked for every row: waiting, were it counted, would make it nearly all there is.
    assert predicted_speedup(COMMITTED, spec, reach=reach, rows=rows) < 0.9
