import dataclasses
import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.onefile.writing import onefile_model
from orchestrator.decision import Policy
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.rows.digits import digits_split
from orchestrator.spec import COMBINES, CascadeSpec, cascade_from_path
from tests.decision.outputs import chosen_outputs, spoil
from tests.export.onefile.builders import (
    Core,
    answers_of,
    cascade,
    core_answers,
    decided_by_rounding,
    member_of,
    opened,
    put,
    put_slicing,
    specs,
    with_thresholds,
)
from tests.onnx_models import array, model_of, node, value

REPOSITORY = Path(__file__).parents[3] / "model_repository"
BATCHES = (1, 2, 7, 33, 256)
ANY_PATH = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_batches(spec: CascadeSpec, repository: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Answers to rows sent in batches of every size there is to try."""
    session = opened(onefile_model(spec, repository)[0])
    ends = np.cumsum(BATCHES)
    assert ends[-1] == len(rows)
    parts = [answers_of(session, part) for part in np.split(rows, ends[:-1])]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def require_same(got: dict[str, np.ndarray], core: Core, rows: np.ndarray, *, tolerance: float) -> None:
    """Some rows have the decision core's answers; where and at what cost a refused one ends is open."""
    answered = rows & ~core.refused
    for name, same in (("label", rows), ("status", rows), ("exit_stage", answered), ("cost", answered)):
        np.testing.assert_array_equal(got[name][same, 0], core.answers[name][same], err_msg=name)
    np.testing.assert_allclose(got["probabilities"][rows], core.answers["probabilities"][rows], atol=tolerance)
    np.testing.assert_allclose(got["confidence"][rows, 0], core.answers["confidence"][rows], atol=tolerance)


@settings(ANY_PATH, max_examples=60)
@given(spec=specs(), seed=st.integers(0, 2**32 - 1), low=st.booleans(), spoiled=st.booleans())
def test_one_graph_answers_what_the_decision_core_answers(
    tmp_path: Path, spec: CascadeSpec, seed: int, low: bool, spoiled: bool
) -> None:
    rng = np.random.default_rng(seed)
    outputs = chosen_outputs(spec, rng, sum(BATCHES))
    spec = with_thresholds(spec, outputs, rng=rng, low=low)
    if spoiled:
        spoil(outputs, rng)
    put_slicing(tmp_path, spec)
    # A probability of 0 stands for a logit of log(1e-30) / T: one unit in its last place is 1e-5 by itself.
    tolerance = 5e-5 if spoiled else 1e-5
    got = in_batches(spec, tmp_path, np.concatenate(outputs, axis=1))
    core = core_answers(spec, outputs)
    assert got["label"].dtype == np.int64
    require_same(got, core, ~decided_by_rounding(spec, outputs, tolerance), tolerance=tolerance)


SAYINGS = [[9, 0, 0], [0.6, 0.3, 0], [0, 0.3, 0.4], [0, np.nan, 0], [np.inf, 0, 0], [-np.inf] * 3, [-np.inf, 1, 0]]


@pytest.mark.parametrize("failing", [("error",) * 3, ("answer",) * 3, ("answer", "error", "answer")])
@pytest.mark.parametrize("score", ["max_prob", "top2_gap", "neg_entropy"])
@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1]])
def test_every_mixture_of_answers_that_are_no_numbers_goes_as_in_the_decision_core(
    tmp_path: Path, sizes: list[int], combine: str, score: str, failing: tuple[str, ...]
) -> None:
    made = cascade(sizes, 3, combine=combine, score=score)
    # A window that opens wider at the second stage: rows get there whose score so far lies in it.
    exits = [{"threshold": 0.5, "low": 0.02}, {"threshold": 0.5, "low": 0.4}]
    stages = [
        dataclasses.replace(stage, on_failure=word, **({} if stage is made.stages[-1] else exit_))
        for stage, word, exit_ in zip(made.stages, failing, [*exits, {}], strict=False)
    ]
    made = dataclasses.replace(made, stages=tuple(stages))
    put_slicing(tmp_path, made)
    rows = np.array(list(itertools.product(SAYINGS, repeat=3)), np.float32).reshape(-1, 9)
    got = answers_of(opened(onefile_model(made, tmp_path)[0]), rows)
    outputs = [rows[:, start : start + 3] for start in (0, 3, 6)]
    same = ~decided_by_rounding(made, outputs, 1e-5)
    assert same.mean() > 0.6
    require_same(got, core_answers(made, outputs), same, tolerance=1e-5)


def test_scores_exactly_at_the_threshold_or_at_the_low_end_exit(tmp_path: Path) -> None:
    spec = cascade([1, 1], 4)
    first = dataclasses.replace(spec.stages[0], threshold=0.5, low=0.25)
    spec = dataclasses.replace(spec, stages=(first, spec.stages[1]))
    put_slicing(tmp_path, spec)
    no = -np.inf
    said = np.array([[0, 0, no, no], [0, 0, 0, 0], [0, -1, -1, -1]], np.float32)
    session, twice = opened(onefile_model(spec, tmp_path)[0]), np.concatenate([said, said], axis=1)
    got = answers_of(session, twice)
    assert got["exit_stage"].ravel().tolist() == [0, 0, 1]
    assert got["status"].ravel().tolist() == [0, 4, 0]
    assert got["confidence"].ravel()[:2].tolist() == [0.5, 0.25]
    # Alone, none of them is decided together with a row that is not at the threshold.
    alone = answers_of(session, twice[:1])
    assert (alone["exit_stage"].item(), alone["status"].item()) == (0, 0)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("sizes", [[1, 1], [2, 2]])
def test_equal_classes_go_to_the_lowest(tmp_path: Path, combine: str, sizes: list[int]) -> None:
    spec = cascade(sizes, 3, combine=combine)
    put_slicing(tmp_path, spec)
    for row, stage in (([5, 5, 0], 0), ([0, 0, 0], 1)):
        changed = dataclasses.replace(spec.stages[0], threshold=0.49)
        session = opened(onefile_model(dataclasses.replace(spec, stages=(changed, spec.stages[1])), tmp_path)[0])
        got = answers_of(session, np.tile(np.array([row], np.float32), sum(sizes)))
        assert got["label"].item() == 0
        assert got["exit_stage"].item() == (0 if combine == "vote" else stage)


@pytest.mark.parametrize("combine", COMBINES)
def test_classes_that_different_members_rule_out_leave_a_finite_answer(tmp_path: Path, combine: str) -> None:
    spec = cascade([1, 1], 2, combine=combine)
    spec = dataclasses.replace(spec, stages=(dataclasses.replace(spec.stages[0], threshold=None), spec.stages[1]))
    put_slicing(tmp_path, spec)
    outputs = [np.array([[0, -np.inf]], np.float32), np.array([[-np.inf, 0]], np.float32)]
    got = answers_of(opened(onefile_model(spec, tmp_path)[0]), np.concatenate(outputs, axis=1))
    expected = core_answers(spec, outputs).answers
    assert got["label"].item() == expected["label"].item() != -1
    np.testing.assert_allclose(got["probabilities"], expected["probabilities"], atol=1e-6)


def exploding(classes: int, width: int) -> onnx.ModelProto:
    """Answers only batches of exactly three rows; any other number is an error of the runtime."""
    weights = [array(np.array([3, width], np.int64), "three"), array(np.ones((width, classes), np.float32), "w")]
    nodes = [node("Reshape", ["x", "three"], ["y"]), node("MatMul", ["y", "w"], ["logits"])]
    return member_of(nodes, weights, width=width, classes=classes)


def test_a_stage_is_run_for_the_rows_that_need_it_and_not_at_all_where_none_does(tmp_path: Path) -> None:
    spec = cascade([1, 1], 2)
    put_slicing(tmp_path, spec)
    put(tmp_path, "m1", exploding(2, 4))
    session = opened(onefile_model(spec, tmp_path)[0])
    sure, unsure = np.array([[9, 0, 1, 1]], np.float32), np.array([[0.1, 0, 2, 2]], np.float32)
    nobody = answers_of(session, np.repeat(sure, 7, axis=0))
    assert not nobody["exit_stage"].any()
    three = answers_of(session, np.concatenate([sure, unsure, sure, unsure, unsure]))
    assert three["exit_stage"].ravel().tolist() == [0, 1, 0, 1, 1]
    with pytest.raises(Exception, match=r"[Rr]eshape"):
        answers_of(session, np.concatenate([sure, unsure]))


def test_the_weights_of_later_stages_lie_in_the_branch_that_uses_them() -> None:
    """In the graph around it, ONNX Runtime neither packs nor fuses them."""
    spec = cascade_from_path(REPOSITORY / "digits_cascade" / "1" / "cascade.json")
    model, _ = onefile_model(spec, REPOSITORY)

    def members_with_weights(graph: onnx.GraphProto) -> set[str]:
        large = (weight for weight in graph.initializer if np.prod(weight.dims) > 50)
        return {weight.name.split("/")[1] for weight in large}

    def branches(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
        inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        return inner + [deeper for one in inner for deeper in branches(one)]

    assert members_with_weights(model.graph) == {"digits_small"}
    deeper = [found for one in branches(model.graph) if (found := members_with_weights(one))]
    assert deeper == [{"digits_medium"}, {"digits_large"}]


@pytest.fixture(scope="module")
def digits_records() -> Records:
    images = digits_split("test").images
    names = ["digits_small", "digits_medium", "digits_large"]
    members = LocalMembers(REPOSITORY, names)
    return Records(
        ids=np.arange(len(images)),
        labels=None,
        outputs={name: members.ask(name, images) for name in names},
        cost={name: members.cost(name) for name in names},
    )


def test_the_digits_cascade_in_one_graph_is_its_replay_row_for_row(digits_records: Records) -> None:
    spec = cascade_from_path(REPOSITORY / "digits_cascade" / "1" / "cascade.json")
    expected = replay(spec, digits_records)
    rows = digits_split("test").images
    for number, stage in enumerate(spec.stages[:-1]):
        there = replay(spec, digits_records, Policy(min_stage=number, max_stage=number)).confidence
        assert np.abs(there - stage.threshold).min() > 1e-5
    session = opened(onefile_model(spec, REPOSITORY)[0])
    for batch in (1, 7, 256, len(rows)):
        parts = [answers_of(session, rows[start : start + batch]) for start in range(0, len(rows), batch)]
        got = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name in ("label", "exit_stage", "cost", "status"):
            differing = np.flatnonzero(got[name][:, 0] != getattr(expected, name))
            assert differing.tolist() == [], name
        np.testing.assert_allclose(got["probabilities"], expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(got["confidence"][:, 0], expected.confidence, atol=1e-5)


def test_members_with_branches_halves_and_outputs_of_their_own_fit_in(tmp_path: Path) -> None:
    """A member may hold an If, give fp16, name its input otherwise, and have outputs that nobody asks for."""
    spec = cascade([1, 1], 2)
    stages = [dataclasses.replace(spec.stages[0], threshold=None), spec.stages[1]]
    odd = dataclasses.replace(stages[1].members[0], inputs={"pixels": spec.input.name})
    stages[1] = dataclasses.replace(stages[1], members=(odd,))
    spec = dataclasses.replace(spec, stages=tuple(stages))
    put_slicing(tmp_path, spec)

    def branch(name: str, factor: float) -> onnx.GraphProto:
        times = node("Mul", ["first", f"by_{name}"], [f"out_{name}"])
        by = array(np.float32(factor), f"by_{name}")
        return helper.make_graph([times], name, [], [value(f"out_{name}", None)], initializer=[by])

    nodes = [
        node("Slice", ["pixels", "start", "stop", "axis"], ["first"]),
        node("ReduceMax", ["pixels"], ["peak"], keepdims=0),
        node("Cast", ["peak"], ["yes"], to=TensorProto.BOOL),
        node("If", ["yes"], ["z"], then_branch=branch("a", 2.0), else_branch=branch("b", 3.0)),
        node("Cast", ["z"], ["logits"], to=TensorProto.FLOAT16),
        node("Exp", ["pixels"], ["waste"], name="pixels"),
    ]
    outputs = {"logits": (TensorProto.FLOAT16, ["n", 2]), "waste": ["n", 4]}
    weights = {"start": [0], "stop": [2], "axis": [1]}
    put(tmp_path, "m1", model_of(nodes, {"pixels": ["n", 4]}, outputs, weights, ir=9))
    x = np.array([[1, 3, 5, 5], [0, -1, 7, 7]], np.float32)
    model, _ = onefile_model(spec, tmp_path)
    got = answers_of(opened(model), x)
    expected = core_answers(spec, [x[:, :2], 2 * x[:, :2]]).answers
    np.testing.assert_allclose(got["probabilities"], expected["probabilities"], atol=1e-3)
    assert "Exp" not in {node.op_type for node in model.graph.node}


def test_an_older_opset_is_brought_to_the_one_of_the_others(tmp_path: Path) -> None:
    spec = cascade([1, 1], 2)
    put_slicing(tmp_path, spec)
    weights = [numpy_helper.from_array(np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.float32), "w")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["s"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["y", "s"], ["logits"]),
    ]
    put(tmp_path, "m1", member_of(nodes, weights, width=4, classes=2, opset=11))
    model, _ = onefile_model(spec, tmp_path)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    got = answers_of(opened(model), np.array([[0.1, 0, 5, 5]], np.float32))
    assert got["exit_stage"].item() == 1


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
    sure = ~decided_by_rounding(spec, outputs, 5e-5)
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
