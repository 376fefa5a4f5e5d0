from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.app import run
from tests.cli.planning import plan, write_made
from tests.planner.builders import made_records

SCORES = made_records(0, rows=300).outputs["a"]


@pytest.mark.parametrize("name", ["m" * 250, "../a", "a b", "\N{GREEK SMALL LETTER ALPHA}"])
@pytest.mark.parametrize(
    "goal", [("--max-mean-cost", "6"), ("--impose-exits", "0.5,0.2,0.1")], ids=["plan", "impose"]
)
def test_names_no_plan_can_have_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, goal: tuple[str, ...]
) -> None:
    records = write_made(tmp_path / "r.npz", **{f"outputs/{name}": SCORES, f"cost/{name}": np.float64(5)})
    assert plan(records, *goal) == 2
    error = capsys.readouterr().err
    assert f"records: got members named {name[:40]!r}, expected up to 128 letters" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("scores", [SCORES, np.zeros_like(SCORES)], ids=["negative", "zero"])
def test_outputs_that_are_not_the_probabilities_they_are_said_to_be_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: np.ndarray
) -> None:
    meta = np.array(json.dumps({"members": {"a": {"output_kind": "probabilities"}}}))
    records = write_made(tmp_path / "r.npz", meta=meta, **{"outputs/a": scores})
    assert plan(records, "--max-mean-cost", "6") == 2
    error = capsys.readouterr().err
    assert "outputs of a: got numbers below 0, or nothing above it, in" in error
    assert error.count("\n") == 1


def test_a_member_called_ensemble_is_refused_by_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = write_made(tmp_path / "r.npz", **{"outputs/ensemble": SCORES, "cost/ensemble": np.float64(5)})
    for goal in (("--reference", "ensemble", "--epsilon", "0.3"), ("--max-mean-cost", "6")):
        assert plan(records, *goal) == 2
        assert "leave it out with --members" in capsys.readouterr().err
    assert plan(records, "--reference", "ensemble", "--epsilon", "0.3", "--members", "a,b,c") == 0


LABELLED = 'output [{ name: "s", data_type: TYPE_FP32, dims: [3], label_filename: "names.txt" }]'


def planned_labels(records: Path, *options: object) -> list[str] | None:
    output = records.parent / "plan.json"
    assert run(["plan", *map(str, (records, "--max-mean-cost", "6", "-o", output, *options))]) == 0
    return json.loads(output.read_text())["labels"]


def meta(**facts: object) -> np.ndarray:
    return np.array(json.dumps(facts))


def test_a_plan_calls_its_classes_what_members_do_else_what_the_records_do(tmp_path: Path) -> None:
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=["x", "y", "z"], labels_by="order"))
    assert planned_labels(write_made(tmp_path / "bare.npz"), "--repository", tmp_path / "none") is None
    assert planned_labels(records, "--repository", tmp_path / "none") == ["x", "y", "z"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.pbtxt").write_text(LABELLED)
    (tmp_path / "b/names.txt").write_text("ant\nbee\ncow\n")
    assert planned_labels(records, "--repository", tmp_path) == ["ant", "bee", "cow"]


def test_labels_that_went_by_names_that_are_others_now_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.pbtxt").write_text(LABELLED)
    (tmp_path / "b/names.txt").write_text("ant\ncow\nbee\n")
    names = ["ant", "bee", "cow"]
    for by in ("order", "map", None):
        records = write_made(tmp_path / "r.npz", meta=meta(class_names=names, labels_by=by))
        assert planned_labels(records, "--repository", tmp_path) == ["ant", "cow", "bee"]
    capsys.readouterr()
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=names, labels_by="name"))
    assert run(["plan", str(records), "--max-mean-cost", "6", "--repository", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "labels that went by class names, 'bee' for class 1, expected 'cow', which the members call it" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("names", [["x"], "xyz", {"x": 1}, [1, 2, 3], [["x"], "y", "z"], ["x\ny", "y", "z"]])
def test_class_names_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: object
) -> None:
    records = write_made(tmp_path / "r.npz", meta=meta(class_names=names))
    assert plan(records, "--max-mean-cost", "6") == 2
    error = capsys.readouterr().err
    assert "class_names: got" in error or "labels: got" in error
    assert error.count("\n") == 1
