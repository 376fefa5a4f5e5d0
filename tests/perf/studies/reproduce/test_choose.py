import ast
import inspect
import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.replay import replay
from orchestrator.planner.search import RIGHT
from orchestrator.progress import no_progress
from perf.studies.reproduce import choose as choose_module
from perf.studies.reproduce import plans as choices_module
from perf.studies.reproduce import plans as search_space_module
from perf.studies.reproduce.choose import choose
from perf.studies.reproduce.parts import MEMBERS, SELF, groups_from_names
from perf.studies.reproduce.plans import (
    MARGINS_SE,
    Choices,
    ChosenPlan,
    PlanComparison,
    SearchSpace,
    best_at_cost,
    certified,
    cheapest_at_accuracy,
    choices_from_path,
    ensembles_of,
    no_worse,
    search_space_of,
    searched,
    standard_errors_ahead,
    validate_margins,
    write_choices,
)
from tests.perf.studies.reproduce.builders import plan_part


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    part = plan_part()
    return search_space_of(part, list(part.records.outputs), quantiles=12, progress=no_progress)


@pytest.fixture(scope="module")
def chosen() -> Choices:
    return choose(plan_part(rows=400, sizes=2), quantiles=5, margin_splits=1, progress=no_progress)


@pytest.mark.parametrize("module", [choices_module, choose_module, search_space_module])
def test_what_chooses_has_no_word_for_the_test_part(module: ModuleType) -> None:
    path = Path(inspect.getfile(module))
    tree = ast.parse(path.read_text())
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not words & {"TestPart", "PartRecorder", "glyphs_split", "draw_glyphs", "ChoiceEvaluator"}


def test_the_same_plan_part_gives_the_same_bytes(chosen: Choices, tmp_path: Path) -> None:
    again = choose(plan_part(rows=400, sizes=2), quantiles=5, margin_splits=1, progress=no_progress)
    one, other = write_choices(chosen, tmp_path / "a"), write_choices(again, tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()
    assert choices_from_path(one) == chosen


def test_a_pool_without_a_pair_has_every_claim_but_the_self_cascade(chosen: Choices) -> None:
    assert {one.claim for one in chosen.comparisons} == {"headline", "1", "2", "3", "4", "6a", "6b", "7"}
    assert sum(one.claim == "3" for one in chosen.comparisons) == 4
    assert sum(one.claim == "6a" for one in chosen.comparisons) == 16


def test_the_rule_with_the_margin_takes_the_cheapest_that_is_ahead_by_it(space: SearchSpace) -> None:
    reference = space.right("glyphs_b2_s0")
    found = searched(space)
    plan = no_worse(space, found, reference, below_cost=16.0)
    assert plan is not None
    records = space.part.records
    for one in reversed(found.frontiers[RIGHT]):
        cheapest = space.plan_of(one)
        # By the replay and by hand, not by the functions that choose.
        right = replay(cheapest.spec_of(space.part.base), records).label == records.labels
        gains, losses = (right & ~reference).sum(), (~right & reference).sum()
        mean = (gains - losses) / len(right)
        if mean * len(right) >= 2 * np.sqrt(gains + losses - len(right) * mean**2) and gains > losses:
            break
    assert plan == cheapest


def test_a_larger_margin_never_takes_a_cheaper_plan_and_no_plan_costs_what_it_replaces(space: SearchSpace) -> None:
    reference, found = space.right("glyphs_b2_s0"), searched(space)
    plans = [no_worse(space, found, reference, below_cost=16.0, margin_se=margin) for margin in (0.0, 1.0, 2.0)]
    costs = [plan.mean_cost for plan in plans if plan is not None]
    assert len(costs) == 3
    assert costs == sorted(costs)
    assert costs[-1] < 16
    assert no_worse(space, found, reference, below_cost=costs[0], margin_se=0.0) is None


def test_standard_errors_are_those_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.random(500) < 0.8, rng.random(500) < 0.7
    change = one.astype(float) - other
    assert standard_errors_ahead(one, other) == pytest.approx(change.mean() / (change.std() / np.sqrt(500)))
    assert standard_errors_ahead(one, one) == 0.0


def test_the_best_ensembles_are_those_of_all_subsets(space: SearchSpace) -> None:
    records = space.part.records
    outputs = records.outputs
    found = ensembles_of(space)
    assert [plan.mean_cost for plan in found] == sorted(plan.mean_cost for plan in found)
    for budget in (2.0, 5.0, 9.0, 25.0, 60.0):
        best = max(
            float((np.sum([outputs[name] for name in names], axis=0).argmax(axis=1) == records.labels).mean())
            for size in (2, 3, 4)
            for names in itertools.combinations(outputs, size)
            if sum(records.cost[name] for name in names) <= budget
        )
        ours = [plan for plan in found if plan.mean_cost <= budget][-1]
        assert ours.accuracy == pytest.approx(best, abs=1e-9)


def test_reaching_and_within_meet_what_they_are_asked_for(space: SearchSpace) -> None:
    found = searched(space)
    target = space.averaged(["glyphs_b2_s0"])
    plan = cheapest_at_accuracy(space, found, accuracy=target.accuracy)
    assert plan is not None
    assert plan.accuracy >= target.accuracy
    assert plan.mean_cost <= target.mean_cost
    same = best_at_cost(space, found, mean_cost=plan.mean_cost)
    assert same is not None
    assert same.accuracy >= plan.accuracy
    assert cheapest_at_accuracy(space, found, accuracy=1.0) is None
    assert best_at_cost(space, found, mean_cost=0.5) is None


def test_the_planners_guarantee_names_its_rows_and_a_cheaper_plan(space: SearchSpace) -> None:
    said = certified(space, space.averaged(["glyphs_b2_s0"]), epsilon=0.03)
    if said.one is None:
        assert said.note
    else:
        assert said.one.mean_cost < 16
        assert said.guarantee is not None
        assert said.guarantee["rows"] == len(space.split.certify)


def test_margins_are_validated_on_rows_that_had_no_part_in_choosing(space: SearchSpace) -> None:
    lines = list(validate_margins(space, "glyphs_b2_s0", splits=3))
    assert [line["margin_se"] for line in lines] == list(MARGINS_SE)
    assert all(0 <= line["lower"] <= line["plans"] <= 3 for line in lines)
    # What is just level where it was chosen is the cheapest, and no better elsewhere than what is ahead.
    assert lines[0]["mean_macs_factor"] > lines[2]["mean_macs_factor"]
    assert lines[0]["mean_difference"] < lines[2]["mean_difference"]


PLAN = ChosenPlan(
    stages=(("glyphs_b0_s0",), ("glyphs_b1_s0", "glyphs_b1_s1")), thresholds=(0.25,), accuracy=0.9, mean_cost=3.0
)
SINGLE = ChosenPlan(stages=(("glyphs_b2_s0",),))
CHOICES = Choices(
    source={"rows": 3},
    comparisons=(
        PlanComparison(claim="3", label="a", one=PLAN, other=SINGLE, guarantee={"delta": 0.05}),
        PlanComparison(claim="3", label="b", one=None, other=SINGLE, note="nothing"),
    ),
    picture={"single": (SINGLE,)},
    margin_validation=({"margin_se": 2.0},),
)


def test_choices_read_back_are_the_choices_written(tmp_path: Path) -> None:
    path = write_choices(CHOICES, tmp_path)
    assert choices_from_path(path) == CHOICES


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": 1}), json.dumps({"format": 2})])
def test_a_file_that_holds_no_choices_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "choices.json").write_text(text)
    with pytest.raises(DataError, match=r"python -m perf reproduce"):
        choices_from_path(tmp_path / "choices.json")


def test_a_plan_becomes_the_cascade_that_is_served() -> None:
    spec = PLAN.spec_of(plan_part(rows=20).base)
    assert [[member.name for member in stage.members] for stage in spec.stages] == [list(s) for s in PLAN.stages]
    assert [stage.threshold for stage in spec.stages] == [0.25, None]
    assert PLAN.text == "b0_s0, then b1_s0 + b1_s1"


def test_members_are_sorted_by_architecture_and_the_pair_stands_apart() -> None:
    family = groups_from_names(MEMBERS)
    assert family.sizes == tuple((f"glyphs_b{size}_s0", f"glyphs_b{size}_s1") for size in range(6))
    assert family.pair == SELF
    assert groups_from_names(["glyphs_b0_s0", SELF[0]]).pair == ()


@pytest.mark.export
def test_the_members_are_those_that_the_export_makes() -> None:
    from perf.studies.glyphs_members import glyphs_members

    assert tuple(member.name for member in glyphs_members()) == MEMBERS
