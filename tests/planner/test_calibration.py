import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decision import softmax
from orchestrator.planner.calibration import (
    CalibrationResult,
    calibrate,
    calibration_error,
    temperature_fit_of,
    temperature_of,
)
from orchestrator.planner.dataset_split import split_from_ids
from orchestrator.planner.goal import ENSEMBLE, Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.spec import Member
from tests.planner.builders import made_records, pool_of


def calibrated(seed: int, *, rows: int = 20_000, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that tell the truth: labels are drawn from their softmax."""
    rng = np.random.default_rng(seed)
    z = (2 * rng.normal(size=(rows, classes))).astype(np.float32)
    p = softmax(z).astype(np.float64).cumsum(axis=1)
    return z, (p < rng.random((rows, 1)) * p[:, -1:]).sum(axis=1)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 8.0))
def test_the_temperature_that_spoiled_the_logits_is_found_again(spoiled: float) -> None:
    z, labels = calibrated(3)
    assert temperature_of((z * np.float32(spoiled)), labels) == pytest.approx(spoiled, rel=0.05)


def test_scaling_mends_the_calibration_error_on_rows_it_was_not_fitted_on() -> None:
    fit, check = calibrated(0), calibrated(1)
    member = Member(name="m", output="o")
    spoiled = [(z * np.float32(3), labels) for z, labels in (fit, check)]
    found = temperature_fit_of(member, fit=spoiled[0], check=spoiled[1])
    assert found.ece_before > 0.1
    assert found.ece_after < 0.02
    assert calibration_error(softmax(check[0]), check[1]) == pytest.approx(found.ece_after, abs=0.01)


def test_a_temperature_the_member_already_has_is_multiplied() -> None:
    fit, check = calibrated(0), calibrated(1)
    found = temperature_fit_of(Member(name="m", output="o", temperature=2.0), fit=fit, check=check)
    # Half as sharp as the truth already, so the whole temperature ends at 1.
    assert found.temperature == pytest.approx(1.0, rel=0.05)


def spoiled_records(*, rows: int = 6000) -> Records:
    """The dear member is right more often, but a third as sharp as the cheap one that shouts it down."""
    records = made_records(2, rows=rows, members=3, classes=6)
    outputs = {
        name: output * np.float32(scale)
        for (name, output), scale in zip(records.outputs.items(), (8, 1, 0.1), strict=True)
    }
    return dataclasses.replace(records, outputs=outputs)


def calibration_of(records: Records, goal: Goal, *, certify_share: float = 0.5) -> CalibrationResult:
    split = split_from_ids(records.ids, certify_share=certify_share)
    return calibrate(pool_of(records), records, goal, split=split, options=SearchOptions())


@pytest.mark.parametrize(
    "goal", [Goal(max_mean_cost=8.0), Goal(reference="c", epsilon=0.0)], ids=["budget", "cost"]
)
def test_temperatures_are_kept_where_they_make_a_better_plan(goal: Goal) -> None:
    records = spoiled_records()
    result = calibration_of(records, goal)
    assert result.kept, result.reason
    base, certified = pool_of(records), dataclasses.replace(goal, certify=False)
    with_, without = (
        plan_from_records(base, records, certified, options=SearchOptions(calibrate=calibrate))
        for calibrate in (True, False)
    )
    assert isinstance(with_, PlanResult)
    assert isinstance(without, PlanResult)
    better = with_.accuracy > without.accuracy if goal.has_budget else with_.mean_cost < without.mean_cost
    assert better
    temperatures = {member.name: member.temperature for member in with_.spec.members}
    fits = calibration_of(records, goal, certify_share=0.0).fits
    assert temperatures == {name: fits[name].temperature for name in temperatures}


def test_temperatures_that_change_nothing_are_not_kept() -> None:
    # All members are calibrated alike, so there is nothing to win.
    z, labels = calibrated(0, rows=4000)
    records = Records(ids=np.arange(4000), labels=labels, outputs={"a": z, "b": z}, cost={"a": 1.0, "b": 2.0})
    result = calibration_of(records, Goal(max_mean_cost=1.5))
    assert not result.kept
    assert all(0.9 < scaling.temperature < 1.1 for scaling in result.fits.values())


@pytest.mark.parametrize(
    ("rows", "goal", "said"),
    [
        (700, Goal(max_mean_cost=5), "350 search rows, fewer than 400"),
        (900, Goal(label_free=True, reference="c", epsilon=0.1), "no labels"),
        (900, Goal(reference=ENSEMBLE, epsilon=0.1), "would change the reference"),
    ],
)
def test_where_temperatures_cannot_be_tried_the_reason_is_kept(rows: int, goal: Goal, said: str) -> None:
    result = calibration_of(made_records(0, rows=rows), goal)
    assert said in result.facts()["reason"]
    assert result.facts()["kept"] is False


def test_the_calibration_looks_at_no_certify_row() -> None:
    records = spoiled_records(rows=3000)
    split = split_from_ids(records.ids, certify_share=0.5)
    other = {name: output.copy() for name, output in records.outputs.items()}
    for output in other.values():
        output[split.certify] = 0
    assert calibration_of(records, Goal(max_mean_cost=8)) == calibration_of(
        dataclasses.replace(records, outputs=other), Goal(max_mean_cost=8)
    )


def test_one_lucky_half_is_not_enough() -> None:
    results = [
        calibration_of(made_records(seed, rows=1000, classes=4), Goal(max_mean_cost=4.0)) for seed in range(8)
    ]
    better = [[w > wo for w, wo in zip(result.with_, result.without, strict=True)] for result in results]
    assert [result.kept for result in results] == [all(both) for both in better]
    # Otherwise this would say nothing: some halves must disagree.
    assert any(any(both) and not all(both) for both in better)
