from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.onefile.writing import onefile_model
from orchestrator.spec import CascadeSpec
from tests.export.onefile.builders import (
    cascade,
    chosen_outputs,
    core_answers,
    opened,
    put_slicing,
    settled_by_rounding,
    specs,
    spoil,
    with_thresholds,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), low=st.booleans(), spoiled=st.booleans(), data=st.data())
def test_the_lead_gives_what_its_members_say_of_the_rows_the_core_asks_them(
    tmp_path: Path, spec: CascadeSpec, seed: int, low: bool, spoiled: bool, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, len(spec.stages)))
    rng = np.random.default_rng(seed)
    outputs = chosen_outputs(spec, rng, 40)
    spec = with_thresholds(spec, outputs, rng=rng, low=low)
    if spoiled:
        spoil(outputs, rng)
    put_slicing(tmp_path, spec)
    session = opened(onefile_model(spec, tmp_path, stages=stages)[0])
    asked = core_answers(spec, outputs).asked
    sure = ~settled_by_rounding(spec, outputs, 5e-5)
    inside = [(i, member) for i, stage in enumerate(spec.stages[:stages]) for member in stage.members]
    assert [value.name for value in session.get_outputs()] == [member.name for _, member in inside]
    got = session.run(None, {"x": np.concatenate(outputs, axis=1)})
    for (stage, _), said, own in zip(inside, got, outputs[: len(inside)], strict=True):
        assert said.dtype == np.float32
        np.testing.assert_array_equal(said[sure & asked[stage]], own[sure & asked[stage]])
        assert np.isnan(said[sure & ~asked[stage]]).all()


def test_a_lead_of_all_easy_rows_is_all_nan_beyond_the_first_stage(tmp_path: Path) -> None:
    spec = cascade([1, 2, 1], 2)
    put_slicing(tmp_path, spec)
    rows = np.tile(np.array([[9, 0]], np.float32), (5, 4))
    first, *later = opened(onefile_model(spec, tmp_path, stages=2)[0]).run(None, {"x": rows})
    np.testing.assert_array_equal(first, rows[:, :2])
    assert len(later) == 2
    assert np.isnan(later).all()


def test_the_last_stage_of_a_lead_makes_no_decision(tmp_path: Path) -> None:
    spec = cascade([2, 1], 2)
    spec = dataclasses.replace(spec, combine="vote")
    put_slicing(tmp_path, spec)
    model, _ = onefile_model(spec, tmp_path, stages=1)
    assert {node.op_type for node in model.graph.node} == {"Slice", "Identity"}
