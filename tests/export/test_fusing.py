import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from typer.testing import CliRunner

from export.__main__ import app
from export.fusing import Fusion, fuse, fused_model
from export.images import PREFIX
from export.members import ReadMember, member_from_repository, packed, write_member
from orchestrator.decision.combine import Combiner
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.graphs.combining import spec_from_averaging
from orchestrator.local import LocalMembers
from orchestrator.repository.check import check
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec, InputSpec, Member, Preprocess, Stage, TensorSpec, manifest_from_path
from tests.export.small_networks import answers
from tests.onnx_models import model_of, node
from tests.repository.builders import add_member, linear_model, manifest_of, snapshot


def combined(members: list[Member], combine: str, outputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Probabilities, labels and failures that the decision core finds."""
    spec = CascadeSpec(
        name="combined",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(1,)),),
        classes=outputs[0].shape[1],
        stages=(Stage(members=tuple(members)),),
        combine=combine,
    )
    combiner = Combiner(spec)
    accumulator = combiner.empty(len(outputs[0]))
    failed, _ = combiner.add_stage(accumulator, 0, outputs)
    bad = np.zeros(len(outputs[0]), bool) if failed is None else failed >= 0
    return (*combiner.distribution(accumulator), bad)


def preprocess_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name.startswith(PREFIX)]


def two(repository: Path, **changes: object) -> Fusion:
    add_member(repository, "a", seed=1)
    add_member(repository, "b", seed=2, **changes)
    return Fusion(name="both", members=tuple(Member(name=n, output="logits") for n in "ab"), combine="mean_logit")


def fused_by_command(*arguments: object) -> str:
    """What `python -m export fuse` prints, or its one line of error."""
    done = CliRunner().invoke(app, ["fuse", *map(str, arguments)])
    if isinstance(done.exception, CommitteeError):
        assert "\n" not in str(done.exception)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.stdout


REPOSITORY = Path(__file__).parents[2] / "model_repository"

DIGITS = ("digits_small", "digits_medium", "digits_large")

MODES = pytest.mark.parametrize("combine", ["mean_logit", "mean_prob"])


def selection(columns: list[int], *, width: int) -> onnx.ModelProto:
    """A member that answers with some of its input's columns, so that a test chooses its scores."""
    gather = node("Gather", ["x", "columns"], ["logits"], axis=1)
    return model_of([gather], {"x": ["n", width]}, {"logits": ["n", len(columns)]}, {"columns": columns})


SCORE = st.one_of(
    st.floats(-20, 20, width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1e38, -1e38, 1e-38]).map(np.float32),
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_fused_average_is_the_decision_cores_for_any_scores(data: st.DataObject) -> None:
    count, classes = data.draw(st.integers(2, 4)), data.draw(st.integers(2, 4))
    combine = data.draw(st.sampled_from(["mean_logit", "mean_prob"]))
    width = count * classes
    x = data.draw(hnp.arrays(np.float32, (5, width), elements=SCORE))
    members = [
        Member(
            name=f"m{i}",
            output="logits",
            output_kind=data.draw(st.sampled_from(["logits", "probabilities"])),
            temperature=data.draw(st.sampled_from([1.0, 0.5, 2.0])),
            weight=data.draw(st.sampled_from([1.0, 0.25, 3.0])),
        )
        for i in range(count)
    ]
    parts, outputs = [], []
    for i, member in enumerate(members):
        columns = list(range(i * classes, (i + 1) * classes))
        scores = np.abs(x[:, columns]) if member.output_kind == "probabilities" else x[:, columns]
        x[:, columns] = scores
        outputs.append(scores)
        manifest = manifest_of(
            member.name,
            "0" * 64,
            inputs=(TensorSpec(name="x", dtype="FP32", dims=(width,)),),
            output=TensorSpec(name="logits", dtype="FP32", dims=(classes,)),
            output_kind=member.output_kind,
        )
        parts.append(ReadMember(manifest, selection(columns, width=width)))
    fusion = Fusion(name="both", members=tuple(members), combine=combine)
    model = fused_model(fusion, parts)
    onnx.checker.check_model(model, full_check=True)
    name, kind = fusion.output
    got = answers(model, x)
    alone = [Member(name="both", output=name, output_kind=kind)]
    p, label, bad = combined(members, combine, outputs)
    p_fused, label_fused, bad_fused = combined(alone, combine, [got])
    np.testing.assert_array_equal(bad_fused, bad)
    np.testing.assert_allclose(p_fused[~bad], p[~bad], atol=1e-5)
    two = np.sort(p, axis=1)[:, -2:]
    clear = ~bad & (two[:, 1] - two[:, 0] > 2e-5)
    np.testing.assert_array_equal(label_fused[clear], label[clear])


def test_members_that_rule_out_different_classes_are_no_failure() -> None:
    x = np.array([[-np.inf, 0, 0, -np.inf], [-np.inf, -np.inf, 0, 1]], np.float32)
    source, made = (TensorSpec(name=n, dtype="FP32", dims=(k,)) for n, k in (("x", 4), ("logits", 2)))
    columns = ([0, 1], [2, 3])
    members = tuple(Member(name=f"m{i}", output="logits") for i in range(2))
    parts = [
        ReadMember(manifest_of(m.name, "0" * 64, inputs=(source,), output=made), selection(c, width=4))
        for m, c in zip(members, columns, strict=True)
    ]
    got = answers(fused_model(Fusion(name="f", members=members, combine="mean_logit"), parts), x)
    p, _, bad = combined([Member(name="f", output="logits")], "mean_logit", [got])
    expected, _, bad_apart = combined(list(members), "mean_logit", [x[:, c] for c in columns])
    np.testing.assert_array_equal(bad, [False, True])
    np.testing.assert_array_equal(bad_apart, bad)
    np.testing.assert_allclose(p[0], expected[0])


@MODES
def test_digits_fused_answer_as_the_members_do_apart(combine: str, tmp_path: Path) -> None:
    members = tuple(
        Member(name=name, output="logits", weight=weight, temperature=temperature)
        for name, weight, temperature in zip(DIGITS, (1, 2, 0.5), (1, 1.5, 0.8), strict=True)
    )
    fusion = Fusion(name="digits_three", members=members, combine=combine)
    manifest, what = fuse(REPOSITORY, fusion, output=tmp_path)
    assert what == "fused"
    rows = digits_split("test").images
    apart = LocalMembers(REPOSITORY, DIGITS)
    p, label, _ = combined(list(members), combine, [apart.ask(name, rows) for name in DIGITS])
    fused = LocalMembers(tmp_path, ["digits_three"])
    alone = [Member(name="x", output="y", output_kind=manifest.output_kind)]
    p_fused, label_fused, _ = combined(alone, combine, [fused.ask("digits_three", rows)])
    np.testing.assert_array_equal(label_fused, label)
    assert np.abs(p_fused - p).max() <= 1e-5
    manifests = [manifest_from_path(REPOSITORY / name / "manifest.json") for name in DIGITS]
    assert manifest.macs == sum(m.macs for m in manifests)
    assert manifest.parameters == sum(m.parameters for m in manifests)
    assert manifest.labels == manifests[0].labels
    assert manifest.preprocess == manifests[0].preprocess
    assert (manifest.max_batch_size, manifest.opset, manifest.precision) == (64, 18, "fp32")
    assert [member["sha256"] for member in manifest.options["members"]] == [m.sha256 for m in manifests]
    assert manifest.parity["max_abs"] <= 1e-5
    assert check(tmp_path)


def test_a_fused_digits_ensemble_answers_as_the_committed_one() -> None:
    averaging = onnx.load(REPOSITORY / "digits_ensemble_mean" / "1" / "model.onnx")
    spec = spec_from_averaging(averaging, subject="digits_ensemble")
    assert spec is not None
    rows = digits_split("test").images
    apart = LocalMembers(REPOSITORY, [member.name for member in spec.members])
    import onnxruntime

    session = onnxruntime.InferenceSession(averaging.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = {f"scores_{i}": apart.ask(member.name, rows) for i, member in enumerate(spec.members)}
    p, label = session.run(["probabilities", "label"], fed)
    fusion = Fusion(name="digits_fused", members=spec.members, combine=spec.combine)
    model = fused_model(fusion, [member_from_repository(REPOSITORY, member.name) for member in spec.members])
    alone = [Member(name="x", output="y", output_kind=fusion.output[1])]
    p_fused, label_fused, _ = combined(alone, spec.combine, [answers(model, rows)])
    np.testing.assert_array_equal(label_fused, label[:, 0])
    assert np.abs(p_fused - p).max() <= 1e-5


def test_a_second_run_does_nothing_until_something_changes(tmp_path: Path) -> None:
    fusion = two(tmp_path)
    assert fuse(tmp_path, fusion)[1] == "fused"
    before = snapshot(tmp_path)
    assert fuse(tmp_path, fusion)[1] == "up to date"
    assert fuse(tmp_path, fusion, force=True)[1] == "fused"
    assert snapshot(tmp_path) == before
    heavier = dataclasses.replace(
        fusion, members=(fusion.members[0], dataclasses.replace(fusion.members[1], weight=2.0))
    )
    assert fuse(tmp_path, heavier)[1] == "fused"
    shutil.rmtree(tmp_path / "b")
    add_member(tmp_path, "b", seed=3)
    assert fuse(tmp_path, heavier)[1] == "fused"


def test_weights_may_lie_beside_the_model_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        model = linear_model(seed)
        weight = numpy_helper.from_array(np.tile(numpy_helper.to_array(model.graph.initializer[0]), (1, 200)), "w")
        model.graph.initializer[0].CopyFrom(weight)
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 600
        (tmp_path / name).mkdir()
        with packed(model, tmp_path / name, over_bytes=10) as stored:
            assert stored.data_files
            manifest = manifest_of(
                name,
                stored.sha256,
                output=TensorSpec(name="logits", dtype="FP32", dims=(600,)),
                data_files={f"1/{file}": digest for file, digest in stored.data_files.items()},
            )
            write_member(tmp_path, stored, manifest)
    members = tuple(Member(name=n, output="logits") for n in "ab")
    fusion = Fusion(name="both", members=members, combine="mean_logit")
    monkeypatch.setattr("export.fusing.packed", functools.partial(packed, over_bytes=10))
    manifest, _ = fuse(tmp_path, fusion)
    assert len(manifest.data_files) == 1
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    apart = LocalMembers(tmp_path, ["a", "b", "both"])
    mean = (apart.ask("a", rows) + apart.ask("b", rows)) / 2
    np.testing.assert_allclose(apart.ask("both", rows), mean, atol=1e-5)
    assert fuse(tmp_path, fusion)[1] == "up to date"
    (weights,) = manifest.data_files
    (tmp_path / "both" / weights).unlink()
    assert fuse(tmp_path, fusion)[1] == "fused"
    (source,) = manifest_from_path(tmp_path / "a" / "manifest.json").data_files
    (tmp_path / "a" / source).write_bytes(b"cut")
    with pytest.raises(ExportError, match=r"as in manifest\.json"):
        fuse(tmp_path, fusion, force=True)


def test_every_disagreement_of_the_members_is_named_at_once(tmp_path: Path) -> None:
    model = linear_model(2, classes=4, input="pixels")
    fusion = two(
        tmp_path,
        model=model,
        inputs=(TensorSpec(name="pixels", dtype="FP16", dims=(5,)),),
        output=TensorSpec(name="logits", dtype="INT32", dims=(4,)),
    )
    with pytest.raises(ExportError) as error:
        fuse(tmp_path, fusion)
    for word in ("input name (a x, b pixels)", "input dtype", "input dims", "classes (a [3], b [4])", "is INT32"):
        assert word in str(error.value)
    assert not (tmp_path / "both").exists()


def test_labels_that_differ_are_shown(tmp_path: Path) -> None:
    add_member(tmp_path, "a", labels=("ant", "bee", "cow"))
    add_member(tmp_path, "b", labels=("ant", "cow", "bee"))
    members = tuple(Member(name=n, output="logits") for n in "ab")
    with pytest.raises(ExportError, match=r"label of class 1 \(a 'bee', b 'cow'\)"):
        fuse(tmp_path, Fusion(name="both", members=members, combine="mean_logit"))


def test_pictures_may_be_cropped_differently_but_not_mean_other_numbers(tmp_path: Path) -> None:
    crop = Preprocess(mode="L", height_px=2, width_px=2, resize_px=3)
    others = {
        "same": dataclasses.replace(crop, resize_px=None),
        "other": dataclasses.replace(crop, value_max=1.0, invert=True),
    }
    add_member(tmp_path, "a", seed=1, preprocess=crop)
    for seed, (name, preprocess) in enumerate(others.items()):
        add_member(tmp_path, name, seed=seed, preprocess=preprocess)
    pair = [tuple(Member(name=n, output="logits") for n in ("a", other)) for other in others]
    manifest, _ = fuse(tmp_path, Fusion(name="f", members=pair[0], combine="mean_logit"))
    assert manifest.preprocess == crop
    with pytest.raises(ExportError, match=r"a L CHW 0 to 255, other L CHW 0 to 1 inverted"):
        fuse(tmp_path, Fusion(name="g", members=pair[1], combine="mean_logit"))


def test_a_fused_model_that_is_wrong_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = two(tmp_path)
    real = fused_model

    def heavier(asked: Fusion, parts: list[ReadMember]) -> onnx.ModelProto:
        first, second = asked.members
        members = (first, dataclasses.replace(second, weight=1.01))
        return real(dataclasses.replace(asked, members=members), parts)

    monkeypatch.setattr("export.fusing.fused_model", heavier)
    with pytest.raises(ExportError, match="probabilities that differ by"):
        fuse(tmp_path, fusion)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_command_fuses_and_says_so(tmp_path: Path) -> None:
    two(tmp_path)
    asked = ("a", "b", "--combine", "mean_logit", "--weights", "1,2", "--name", "both", "--repository", tmp_path)
    assert "both: fused;" in fused_by_command(*asked)
    assert json.loads(fused_by_command(*asked, "--json"))["members"] == {"both": "up to date"}
    assert "both: fused;" in fused_by_command(*asked, "--output", tmp_path / "elsewhere")
    options = manifest_from_path(tmp_path / "both" / "manifest.json").options
    assert [member["weight"] for member in options["members"]] == [1, 2]


def test_whatever_is_wrong_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    two(tmp_path)
    (tmp_path / "foreign" / "1").mkdir(parents=True)
    (tmp_path / "foreign" / "1" / "model.onnx").write_bytes(b"x")
    add_member(tmp_path, "cut", seed=4)
    path = tmp_path / "cut" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-9])
    before = snapshot(tmp_path)
    pair = ("a", "b", "--name", "f")
    for words, says in (
        ((*pair, "--combine", "vote"), "got vote, expected mean_logit or mean_prob"),
        (("a", "nobody", "--name", "f"), "one of a, b, cut"),
        (("a", "--name", "f"), "expected at least two members"),
        (("a", "a", "--name", "f"), "a more than once"),
        (("a", "b"), "no --name"),
        (("a", "b", "--name", "a"), "expected another than its members'"),
        (("a", "b", "--name", "foreign"), "not exported here"),
        (("a", "b", "--name", "cut"), "earlier one of `python -m export fuse`"),
        ((*pair, "--weights", "1"), "got 1 numbers, expected 2"),
        ((*pair, "--temperatures", "1;2"), "numbers with commas"),
        ((*pair, "--weights=-1,1"), "weight: got -1.0"),
        ((*pair, "--temperatures", "nan,1"), "temperature: got nan"),
        (("a", "cut", "--name", "f"), "as in manifest.json"),
        (("a", "b", "--plan", "x.json"), "either members or --plan"),
        ((*pair, "-o", "x.json"), "either members or --plan"),
    ):
        combine = () if {"--combine", "--plan"} & set(words) else ("--combine", "mean_logit")
        assert says in fused_by_command(*words, *combine, "--repository", tmp_path)
    assert snapshot(tmp_path) == before
