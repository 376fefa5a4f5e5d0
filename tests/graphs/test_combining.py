import dataclasses
import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import Combiner, confidence_score
from orchestrator.errors import RepositoryError, SpecError
from orchestrator.graphs.combining import averaging_model, spec_from_averaging
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, InputSpec, Member, Stage
from tests.decision.outputs import chosen_outputs, spoil

NUMPY_TYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
NAMES = ["probabilities", "label", "confidence", "exit_stage", "cost", "status"]


def ensemble(members: int = 2, classes: int = 3, *, on_failure: str = "error", **changes: object) -> CascadeSpec:
    asked = tuple(Member(name=f"m{i}", output="logits", cost=float(i + 1)) for i in range(members))
    stage = Stage(members=asked, on_failure=on_failure)
    spec = CascadeSpec(
        name="ensemble", inputs=(InputSpec(name="x", dtype="FP32", dims=(4,)),), classes=classes, stages=(stage,)
    )
    return dataclasses.replace(spec, **changes)


def run(spec: CascadeSpec, outputs: list[np.ndarray], dtypes: list[str] | None = None) -> dict[str, np.ndarray]:
    model = averaging_model(spec, dtypes=dtypes).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {f"scores_{i}": output for i, output in enumerate(outputs)}
    return dict(zip(NAMES, session.run(NAMES, feeds), strict=True))


@st.composite
def specs(draw: st.DrawFn) -> CascadeSpec:
    count = draw(st.integers(1, 4))
    members = tuple(
        Member(
            name=f"m{i}",
            output="logits",
            output_kind=draw(st.sampled_from(["logits", "probabilities"])),
            temperature=draw(st.sampled_from([0.5, 1.0, 1.7])),
            weight=draw(st.sampled_from([0.1, 0.2, 0.3, 1.0, 2.0])),
            cost=draw(st.sampled_from([0.0, 12.0, 1.5e6])),
        )
        for i in range(count)
    )
    return CascadeSpec(
        name="ensemble",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(4,)),),
        classes=draw(st.integers(2, 12)),
        combine=draw(st.sampled_from(COMBINES)),
        score=draw(st.sampled_from(SCORES)),
        stages=(Stage(members=members, on_failure=draw(st.sampled_from(["error", "answer"]))),),
    )


def from_decision_core(spec: CascadeSpec, outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    combiner = Combiner(spec)
    accumulator = combiner.empty(len(outputs[0]))
    failed, nothing = combiner.add_stage(accumulator, 0, outputs)
    bad = np.zeros(len(outputs[0]), bool) if failed is None else failed >= 0
    unanswered = np.zeros(len(bad), bool) if nothing is None else nothing
    if spec.stages[0].on_failure == "error":
        unanswered = bad
    with np.errstate(invalid="ignore", divide="ignore"):
        p, label = combiner.distribution(accumulator)
        score = confidence_score(spec.score, p, label, accumulator.tops, combiner.weights)
    return {"p": p, "label": label, "score": score, "bad": bad, "unanswered": unanswered}


def clear_winner(spec: CascadeSpec, p: np.ndarray, tolerance: float) -> np.ndarray:
    """Rows where rounding within the tolerance cannot change which class comes first."""
    two = np.sort(p, axis=1)[:, -2:]
    gap = two[:, 1] - two[:, 0]
    return (gap > 2 * tolerance) if spec.combine != "vote" else gap > -1


@given(spec=specs(), seed=st.integers(0, 2**32 - 1), spoiled=st.booleans())
def test_the_graph_computes_what_the_decision_core_computes(spec: CascadeSpec, seed: int, spoiled: bool) -> None:
    rng = np.random.default_rng(seed)
    outputs = chosen_outputs(spec, rng, rows=24)
    if spoiled:
        spoil(outputs, rng)
    # A probability of 0 stands for a logit of log(1e-30) / T: one unit in its last place is 1e-5 by itself.
    tolerance = 2e-5 if spoiled else 1e-6
    expected = from_decision_core(spec, outputs)
    got = run(spec, outputs)
    lost = expected["unanswered"]
    sure = ~lost & clear_winner(spec, np.nan_to_num(expected["p"]), tolerance)
    np.testing.assert_allclose(got["probabilities"][~lost], expected["p"][~lost], atol=tolerance)
    if spec.combine != "vote":
        np.testing.assert_array_equal(got["label"][sure, 0], expected["label"][sure])
        np.testing.assert_allclose(got["confidence"][sure, 0], expected["score"][sure], atol=2 * tolerance)
    np.testing.assert_array_equal(got["status"][:, 0], expected["bad"])
    assert (got["label"][lost] == -1).all()
    assert np.isnan(got["probabilities"][lost]).all()
    assert np.isnan(got["confidence"][lost]).all()
    assert (got["cost"] == np.float32(spec.worst_cost)).all()
    assert (got["exit_stage"] == 0).all()


@given(seed=st.integers(0, 2**32 - 1), members=st.integers(2, 6))
def test_votes_that_tie_go_where_the_decision_core_sends_them(seed: int, members: int) -> None:
    rng = np.random.default_rng(seed)
    spec = ensemble(members, 4, combine="vote")
    weighted = tuple(dataclasses.replace(m, weight=float(rng.choice([0.1, 0.2, 0.3, 0.7]))) for m in spec.members)
    spec = dataclasses.replace(spec, stages=(Stage(members=weighted),))
    outputs = [rng.normal(size=(200, 4)).astype(np.float32) for _ in weighted]
    expected = from_decision_core(spec, outputs)
    np.testing.assert_array_equal(run(spec, outputs)["label"][:, 0], expected["label"])


@pytest.mark.parametrize("combine", COMBINES)
def test_equal_classes_go_to_the_lowest(combine: str) -> None:
    same = np.zeros((2, 5), np.float32)
    got = run(ensemble(2, 5, combine=combine), [same, same])
    assert got["label"].tolist() == [[0], [0]]


@pytest.mark.parametrize("dtype", ["FP16", "FP64"])
def test_members_of_other_float_types_are_converted(dtype: str) -> None:
    z = np.array([[1, 2, 4], [3, 0, -1]], NUMPY_TYPES[dtype])
    half = run(ensemble(), [z, z.astype(np.float32)], dtypes=[dtype, "FP32"])
    whole = run(ensemble(), [z.astype(np.float32)] * 2)
    np.testing.assert_array_equal(half["probabilities"], whole["probabilities"])


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_any_number_of_rows_gives_outputs_of_the_served_shapes(rows: int) -> None:
    z = np.zeros((rows, 3), np.float32)
    got = run(ensemble(), [z, z])
    assert got["probabilities"].shape == (rows, 3)
    assert all(got[name].shape == (rows, 1) for name in NAMES[1:])
    assert [got[name].dtype.name for name in NAMES] == [
        "float32", "int64", "float32", "int32", "float32", "int32",
    ]  # fmt: skip


def test_a_member_that_says_nothing_is_left_out_where_the_stage_allows_it() -> None:
    good, bad = np.array([[0, 0, 2]], np.float32), np.array([[0, np.nan, 0]], np.float32)
    lenient = run(ensemble(on_failure="answer"), [good, bad])
    alone = run(ensemble(1), [good])
    np.testing.assert_allclose(lenient["probabilities"], alone["probabilities"], atol=1e-7)
    assert lenient["status"].tolist() == [[1]]
    strict = run(ensemble(), [good, bad])
    assert strict["label"].tolist() == [[-1]]
    assert math.isnan(strict["confidence"][0, 0])


def test_the_model_reads_back_as_the_spec_it_was_made_from() -> None:
    spec = ensemble(combine="vote", labels=("a", "b", "c"))
    assert spec_from_averaging(averaging_model(spec), subject="here") == spec


def test_making_it_twice_gives_equal_bytes_of_a_version_old_runtimes_read() -> None:
    one, two = (averaging_model(ensemble()) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
    assert one.ir_version <= 10
    assert [(o.domain, o.version) for o in one.opset_import] == [("", 18)]


def test_a_model_of_another_origin_carries_no_spec() -> None:
    model = averaging_model(ensemble())
    model.producer_name = "someone"
    assert spec_from_averaging(model, subject="here") is None


def test_a_spoilt_spec_in_the_metadata_is_a_spec_error() -> None:
    model = averaging_model(ensemble())
    model.metadata_props[0].value = "{"
    with pytest.raises(SpecError, match="render the ensemble again"):
        spec_from_averaging(model, subject="here")


def test_two_stages_are_refused() -> None:
    member = Member(name="other", output="logits")
    spec = ensemble()
    two = dataclasses.replace(spec, stages=(*spec.stages, Stage(members=(member,))))
    with pytest.raises(RepositoryError, match="got 2 stages, expected one stage"):
        averaging_model(two)


def test_scores_that_are_no_floats_are_refused() -> None:
    with pytest.raises(RepositoryError, match="member m1 output logits: got INT64, expected FP32"):
        averaging_model(ensemble(), dtypes=["FP32", "INT64"])
