"""What is refused, and the command."""

import dataclasses
import json
from pathlib import Path

import pytest

from export.fusing import Fusion, fuse, fused_model
from orchestrator.errors import ExportError
from orchestrator.spec import Member, Preprocess, TensorSpec, manifest_from_path
from tests.export.fusing_parts import fused_by_command, two
from tests.repository.builders import add_member, linear_model, snapshot


def test_every_disagreement_of_the_members_is_named_at_once(tmp_path: Path) -> None:
    model = linear_model(2, classes=4, input="pixels")
    fusion = two(
        tmp_path,
        model=model,
        input=TensorSpec(name="pixels", dtype="FP16", dims=(5,)),
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
    monkeypatch.setattr(
        "export.fusing.fused_model",
        lambda asked, parts: real(
            dataclasses.replace(
                asked, members=(asked.members[0], dataclasses.replace(asked.members[1], weight=1.01))
            ),
            parts,
        ),
    )
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
    here = ("--repository", tmp_path)
    mean = ("--combine", "mean_logit", *here)
    assert "got vote, expected mean_logit or mean_prob" in fused_by_command(
        "a", "b", "--combine", "vote", "--name", "f", *here
    )
    assert "one of a, b, cut" in fused_by_command("a", "nobody", *mean, "--name", "f")
    assert "expected at least two members" in fused_by_command("a", *mean, "--name", "f")
    assert "a more than once" in fused_by_command("a", "a", *mean, "--name", "f")
    assert "no --name" in fused_by_command("a", "b", *mean)
    assert "expected another than its members'" in fused_by_command("a", "b", *mean, "--name", "a")
    assert "not exported here" in fused_by_command("a", "b", *mean, "--name", "foreign")
    assert "earlier one of `python -m export fuse`" in fused_by_command("a", "b", *mean, "--name", "cut")
    assert "got 1 numbers, expected 2" in fused_by_command("a", "b", *mean, "--name", "f", "--weights", "1")
    assert "numbers with commas" in fused_by_command("a", "b", *mean, "--name", "f", "--temperatures", "1;2")
    assert "weight: got -1.0" in fused_by_command("a", "b", *mean, "--name", "f", "--weights=-1,1")
    assert "temperature: got nan" in fused_by_command("a", "b", *mean, "--name", "f", "--temperatures", "nan,1")
    assert "as in manifest.json" in fused_by_command("a", "cut", *mean, "--name", "f")
    assert "either members or --plan" in fused_by_command("a", "b", "--plan", "x.json", *here)
    assert "either members or --plan" in fused_by_command("a", "b", *mean, "--name", "f", "-o", "x.json")
    assert snapshot(tmp_path) == before
