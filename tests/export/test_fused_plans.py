import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.fusing import fuse_plan
from orchestrator.decision import AnsweredRows
from orchestrator.errors import ExportError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.spec import (
    CascadeSpec,
    Fit,
    InputSpec,
    Member,
    Stage,
    cascade_from_path,
    json_from_cascade,
    manifest_from_path,
)
from tests.export.small_networks import Builder
from tests.export.test_fusing import fused_by_command
from tests.repository.builders import CLASSES, DIMS, add_member, snapshot, spec_of
from tests.servers import running_server

REPOSITORY = Path(__file__).parents[2] / "model_repository"
DIGITS = ("digits_small", "digits_medium", "digits_large")


def add_scoring(repository: Path, name: str, *, seed: int, kind: str, **changes: float) -> Member:
    """A linear member, with a softmax behind it where it gives probabilities."""
    b = Builder(list(DIMS), seed=seed, name="x")
    b.op("MatMul", b.last, b.random(DIMS[0], CLASSES))
    if kind == "probabilities":
        b.op("Softmax", b.last, axis=1)
    member = add_member(repository, name, model=b.model(CLASSES), output_kind=kind)
    return dataclasses.replace(member, output_kind=kind, **changes)


def replayed(spec: CascadeSpec, repository: Path, rows: np.ndarray) -> AnsweredRows:
    names = [member.name for member in spec.members]
    members = LocalMembers(repository, names)
    outputs = {name: members.ask(name, rows) for name in names}
    costs = {member.name: member.cost for member in spec.members}
    return replay(spec, Records(ids=np.arange(len(rows)), labels=None, outputs=outputs, cost=costs))


def assert_same_answers(old: AnsweredRows, new: AnsweredRows) -> None:
    np.testing.assert_array_equal(new.label, old.label)
    np.testing.assert_array_equal(new.exit_stage, old.exit_stage)
    np.testing.assert_array_equal(new.cost, old.cost)
    np.testing.assert_array_equal(new.status, old.status)
    np.testing.assert_allclose(new.probabilities, old.probabilities, atol=1e-5)
    np.testing.assert_allclose(new.confidence, old.confidence, atol=2e-5)


def between(scores: np.ndarray, quantile: float) -> float:
    """A threshold in the middle of the widest gap near a quantile, as a planner would choose it."""
    ordered = np.sort(scores)
    place = int(quantile * (len(ordered) - 1))
    low = max(0, place - 5)
    gaps = np.diff(ordered[low : place + 6])
    at = low + int(np.argmax(gaps))
    return float(ordered[at] + ordered[at + 1]) / 2


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda sizes: max(sizes) > 1),
    combine=st.sampled_from(["mean_logit", "mean_prob", "last"]),
    score=st.sampled_from(["max_prob", "top2_gap", "neg_entropy"]),
    quantile=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_the_fused_plan_answers_as_the_old_one(
    sizes: list[int], combine: str, score: str, quantile: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        members = [
            add_scoring(
                repository,
                f"m{index}",
                seed=seed + index,
                kind=str(rng.choice(["logits", "probabilities"])),
                temperature=float(rng.choice([1.0, 0.5, 1.7])),
                weight=float(rng.choice([1.0, 2.0, 0.3])),
                cost=float(rng.integers(1, 1000)),
            )
            for index in range(sum(sizes))
        ]
        taken = iter(members)
        stages = tuple(Stage(members=tuple(next(taken) for _ in range(size))) for size in sizes)
        spec = CascadeSpec(
            name="plan",
            inputs=(InputSpec(name="x", dtype="FP32", dims=DIMS),),
            classes=CLASSES,
            stages=stages,
            combine=combine,
            score=score,
        )
        rows = (3 * rng.normal(size=(60, *DIMS))).astype(np.float32)
        first = dataclasses.replace(spec, stages=stages[:1])
        threshold = between(replayed(first, repository, rows).confidence, quantile)
        early = [dataclasses.replace(stage, threshold=threshold, low=threshold - 5) for stage in stages[:-1]]
        spec = dataclasses.replace(spec, stages=(*early, stages[-1]))
        fused, done = fuse_plan(spec, repository)
        assert list(done) == [f"plan_fused_stage_{i}" for i, size in enumerate(sizes) if size > 1]
        assert [len(stage.members) for stage in fused.stages] == [1] * len(sizes)
        old, new = replayed(spec, repository, rows), replayed(fused, repository, rows)
        assert_same_answers(old, new)
        assert len(sizes) == 1 or quantile in (0, 1) or len(set(old.exit_stage.tolist())) > 1


def digits_plan(sizes: tuple[int, ...], threshold: float = 0.9, **changes: object) -> CascadeSpec:
    base = cascade_from_path(REPOSITORY / "digits_cascade" / "1" / "cascade.json")
    taken = iter(DIGITS)
    stages = []
    for size in sizes:
        members = []
        for name in (next(taken) for _ in range(size)):
            manifest = manifest_from_path(REPOSITORY / name / "manifest.json")
            members.append(Member(name=name, output="logits", cost=manifest.macs, sha256=manifest.sha256))
        stages.append(Stage(members=tuple(members), threshold=threshold))
    stages[-1] = dataclasses.replace(stages[-1], threshold=None)
    return dataclasses.replace(base, stages=tuple(stages), name="digits_plan", **changes)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (3,)])
def test_digits_plans_keep_every_label_exit_and_cost(sizes: tuple[int, ...], tmp_path: Path) -> None:
    for name in DIGITS:
        (tmp_path / name).symlink_to(REPOSITORY / name)
    spec = digits_plan(sizes)
    fused, _ = fuse_plan(spec, tmp_path)
    rows = digits_split("test").images
    assert_same_answers(replayed(spec, tmp_path, rows), replayed(fused, tmp_path, rows))


def test_the_new_plan_says_what_it_was_made_of_and_renders(tmp_path: Path) -> None:
    members = [add_member(tmp_path, name, seed=index) for index, name in enumerate("abc")]
    fit = Fit(
        data_sha256="0" * 64, rows=9, split="plan", target="t", accuracy=0.5, accuracy_ci95=(0.2, 0.8),
        exit_share=(0.5, 0.5), mean_cost=1.0, extra={"kept": 1},
    )  # fmt: skip
    spec = spec_of(*members)
    first, second, third = spec.stages
    pair = Stage(members=(*first.members, *second.members), threshold=0.6)
    spec = dataclasses.replace(spec, stages=(pair, third), fit=fit)
    fused, _ = fuse_plan(spec, tmp_path, name="quick")
    manifest = manifest_from_path(tmp_path / "quick_stage_0" / "manifest.json")
    member = fused.stages[0].members[0]
    assert (member.weight, member.temperature, member.cost) == (2, 1, 24)
    assert (member.sha256, member.max_batch_size) == (manifest.sha256, 8)
    assert (fused.limits, fused.labels, fused.stages[0].threshold) == (spec.limits, spec.labels, 0.6)
    assert fused.fit is not None
    hashes = {m.name: m.sha256 for m in members[:2]}
    assert fused.fit.extra == {"kept": 1, "fused": {"plan": "cascade", "members": {"quick_stage_0": hashes}}}
    assert dataclasses.replace(fused.fit, extra={"kept": 1}) == fit
    render(fused, tmp_path)
    report = check(tmp_path)
    assert report, report


def test_what_a_fused_stage_cannot_do_is_refused(tmp_path: Path) -> None:
    members = [add_member(tmp_path, name, seed=index) for index, name in enumerate("abc")]
    stage = Stage(members=tuple(members))
    spec = dataclasses.replace(spec_of(*members), stages=(stage,))
    cases = {
        "combine vote": dataclasses.replace(spec, combine="vote"),
        "score agreement": dataclasses.replace(spec, score="agreement"),
        "on_failure answer in stage 0": dataclasses.replace(
            spec, stages=(dataclasses.replace(stage, on_failure="answer"),)
        ),
        "one member in every stage": spec_of(*members),
    }
    before = snapshot(tmp_path)
    for text, plan in cases.items():
        with pytest.raises(ExportError, match=text):
            fuse_plan(plan, tmp_path)
    other = dataclasses.replace(members[0], sha256="1" * 64, output="scores", output_kind="probabilities")
    wrong = dataclasses.replace(spec, stages=(Stage(members=(other, *members[1:])),), labels=("x", "y", "z"))
    with pytest.raises(ExportError) as error:
        fuse_plan(wrong, tmp_path)
    for text in ("a hash", "a output logits for scores", "a output_kind logits for probabilities"):
        assert text in str(error.value)
    assert snapshot(tmp_path) == before


def test_a_stage_that_may_answer_without_a_member_is_fused_when_that_is_accepted(tmp_path: Path) -> None:
    members = [add_member(tmp_path, name, seed=index) for index, name in enumerate("ab")]
    stage = Stage(members=tuple(members), on_failure="answer")
    spec = dataclasses.replace(spec_of(*members), stages=(stage,))
    fused, _ = fuse_plan(spec, tmp_path, allow_whole_failure=True)
    assert fused.stages[0].on_failure == "answer"


def test_the_command_writes_the_new_plan_once(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    members = [add_member(repository, name, seed=index) for index, name in enumerate("ab")]
    spec = dataclasses.replace(spec_of(*members), stages=(Stage(members=tuple(members)),))
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json_from_cascade(spec))
    asked = ("--plan", old, "-o", new, "--repository", repository)
    assert f"{new}: written; render it with `committee render {new}`" in fused_by_command(*asked)
    written = cascade_from_path(new)
    assert written.name == "cascade_fused"
    again = json.loads(fused_by_command(*asked, "--json"))
    assert (again["members"], again["plan_done"]) == ({"cascade_fused_stage_0": "up to date"}, "up to date")
    assert "another file than the old plan" in fused_by_command(
        "--plan", old, "-o", old, "--repository", repository
    )
    assert "expected another than the old" in fused_by_command(*asked, "--name", "cascade")
    assert "none.json does not exist" in fused_by_command(
        "--plan", tmp_path / "none.json", "--repository", repository
    )
    old.write_text("{")
    assert str(old) in fused_by_command(*asked)


@pytest.mark.triton
def test_the_served_fused_plan_answers_as_the_served_old_one(tmp_path: Path) -> None:
    import tritonclient.grpc as grpcclient

    for name in DIGITS:
        (tmp_path / name).symlink_to(REPOSITORY / name)
    spec = digits_plan((1, 2))
    fused, _ = fuse_plan(spec, tmp_path)
    render(spec, tmp_path)
    render(fused, tmp_path)
    rows = digits_split("test").images[:128]
    with running_server(tmp_path) as server:
        client = grpcclient.InferenceServerClient(server.grpc_address)
        tensor = grpcclient.InferInput("image", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        old, new = (client.infer(name, [tensor]) for name in (spec.name, fused.name))
        client.close()
    for name in ("label", "exit_stage", "cost", "status"):
        np.testing.assert_array_equal(new.as_numpy(name), old.as_numpy(name))
    np.testing.assert_allclose(new.as_numpy("probabilities"), old.as_numpy("probabilities"), atol=1e-5)
    expected = replayed(fused, tmp_path, rows)
    np.testing.assert_array_equal(new.as_numpy("label")[:, 0], expected.label)
    np.testing.assert_array_equal(new.as_numpy("exit_stage")[:, 0], expected.exit_stage)
    assert set(expected.exit_stage.tolist()) == {0, 1}
