"""`committee split` and `committee evaluate`: rows kept aside, and what a plan does to them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.app import run
from orchestrator.planner.records import Records, records_from_path, write_records
from orchestrator.planner.replay import replay
from orchestrator.spec import cascade_from_path
from tests.planner.made import made_records

ROWS = 400


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    made = made_records(3, rows=ROWS, members=3)
    write_records(dataclasses.replace(made, meta={"data_sha256": "ab", "data": "made"}), tmp_path / "whole.npz")
    return tmp_path / "whole.npz"


@pytest.fixture
def parts(whole: Path) -> tuple[Path, Path]:
    first, rest = whole.with_name("plan.npz"), whole.with_name("test.npz")
    assert run(["split", str(whole), "-o", str(first), "--rest", str(rest), "--share", "0.75"]) == 0
    return first, rest


@pytest.fixture
def plan(parts: tuple[Path, Path]) -> Path:
    path = parts[0].with_name("cascade.json")
    words = ["plan", str(parts[0]), "--max-mean-cost-share", "0.5", "--no-certify", "-o", str(path)]
    assert run(words) == 0
    return path


def changed(path: Path, **changes: Any) -> Path:
    """The records with other parts."""
    write_records(dataclasses.replace(records_from_path(path), **changes), path)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_the_parts_are_disjoint_complete_and_know_themselves(whole: Path, parts: tuple[Path, Path]) -> None:
    first, rest = (records_from_path(path) for path in parts)
    everything = records_from_path(whole)
    assert (first.rows, rest.rows) == (300, 100)
    assert sorted([*first.ids.tolist(), *rest.ids.tolist()]) == everything.ids.tolist()
    for part in (first, rest):
        for name, scores in part.outputs.items():
            assert np.array_equal(scores, everything.outputs[name][part.ids])
        assert np.array_equal(part.labels, everything.labels[part.ids])
        assert part.meta["part"]["data_sha256"] == "ab"
    assert len({part.meta["data_sha256"] for part in (first, rest, everything)}) == 3


def test_the_same_rows_come_out_in_any_order_and_others_of_another_seed(whole: Path, tmp_path: Path) -> None:
    def ids(name: str, *options: str) -> set[int]:
        path, rest = tmp_path / name, tmp_path / "rest.npz"
        assert run(["split", str(whole), "-o", str(path), "--rest", str(rest), *options]) == 0
        return set(records_from_path(path).ids.tolist())

    first = ids("1.npz", "--json")
    found = records_from_path(whole)
    back = {name: scores[::-1] for name, scores in found.outputs.items()}
    changed(whole, ids=found.ids[::-1], labels=found.labels[::-1], outputs=back)
    assert ids("2.npz") == first
    assert ids("3.npz", "--seed", "1") != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--share", "1"), "expected a number between 0 and 1"),
        (("--share", "0.001"), "got parts of 0 and 400 rows, expected at least 10 rows in each"),
        (("--rest", "plan.npz"), "the same file twice"),
        (("--rest", "rest.txt"), "a file name ending in .npz"),
    ],
)
def test_a_split_that_cannot_be_made_is_one_line(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: Any, says: str
) -> None:
    monkeypatch.chdir(whole.parent)
    assert run(["split", str(whole), "-o", "plan.npz", "--rest", "rest.npz", *options]) == 2
    assert says in said(capsys)
    assert {path.name for path in whole.parent.iterdir()} == {"whole.npz"}


def test_a_second_part_that_cannot_be_written_leaves_no_first_one(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole.parent / "file").write_text("")
    rest = whole.parent / "file/rest.npz"
    assert run(["split", str(whole), "-o", str(whole.with_name("plan.npz")), "--rest", str(rest)]) == 2
    assert "a place that cannot be written to" in said(capsys)
    assert {path.name for path in whole.parent.iterdir()} == {"whole.npz", "file"}


def test_an_evaluation_is_the_replay_beside_the_members(
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["evaluate", str(plan), str(parts[1]), "--reference", "c", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    spec, records = cascade_from_path(plan), records_from_path(parts[1])
    answers = replay(spec, records)
    right = answers.label == records.labels
    other = records.outputs["c"].argmax(1) == records.labels
    assert found["rows"] == 100
    assert found["cascade"]["accuracy"] == right.mean()
    assert found["cascade"]["mean_cost"] == pytest.approx(answers.cost.mean(), rel=1e-6)
    assert sum(found["cascade"]["exit_share"]) == pytest.approx(1)
    assert found["difference"] == pytest.approx(right.mean() - other.mean())
    assert (found["losses"], found["gains"]) == ((other & ~right).sum(), (right & ~other).sum())
    assert found["cost_factor"] == pytest.approx(10 / answers.cost.mean(), rel=1e-6)
    assert [one["name"] for one in found["members"]] == ["a", "b", "c"]
    assert not found["rows_of_the_plan"]


def test_rows_of_the_plan_itself_are_called_that(
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(plan), str(parts[0])]) == 0
    assert "the plan was chosen on these rows or some of them" in capsys.readouterr().out
    assert run(["evaluate", str(plan), str(parts[1])]) == 0
    shown = capsys.readouterr().out
    assert "the plan was chosen" not in shown
    assert "cascade minus c:" in shown


def test_a_plan_knows_rows_it_has_seen_in_the_whole_in_a_part_and_in_another_cut(
    whole: Path, parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def noted(plan_path: Path, records: Path) -> bool:
        capsys.readouterr()
        assert run(["evaluate", str(plan_path), str(records), "--json"]) == 0
        return bool(json.loads(capsys.readouterr().out)["rows_of_the_plan"])

    of_whole, other, rest = (whole.with_name(name) for name in ("whole.json", "other.npz", "other_rest.npz"))
    words = ["plan", str(whole), "--max-mean-cost-share", "0.5", "--no-certify", "-o", str(of_whole)]
    assert run(words) == 0
    assert run(["split", str(whole), "-o", str(other), "--rest", str(rest), "--seed", "1"]) == 0
    assert noted(plan, whole)
    assert noted(plan, rest)
    assert noted(of_whole, parts[1])
    assert not noted(plan, parts[1])


def test_costs_of_another_unit_are_left_out(
    parts: tuple[Path, Path], plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "cost.json"
    profile.write_text(json.dumps({"cost": {"a": 1, "b": 2}, "unit": "ms"}))
    words = ["plan", str(parts[0]), "--members", "a,b", "--max-mean-cost", "1.5", "--no-certify"]
    assert run([*words, "--cost", str(profile), "-o", str(plan)]) == 0
    capsys.readouterr()
    assert run(["evaluate", str(plan), str(parts[1]), "--json", "--reference", "c"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["mean_cost"] for one in found["members"]] == [1, 2, None]
    assert found["cost_factor"] is None
    assert found["cost_unit"] == "ms"


def without(records: Records, name: str) -> dict[str, Any]:
    kept = [other for other in records.outputs if other != name]
    return {"outputs": {n: records.outputs[n] for n in kept}, "cost": {n: records.cost[n] for n in kept}}


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda found: {"labels": None}, (), "got no labels"),
        (lambda found: without(found, "a"), (), "no outputs of a; record those members too"),
        (lambda found: {}, ("--reference", "z"), "got z, not recorded, expected one of a, b, c"),
        (lambda found: {"meta": {"members": {"b": {"random_weights": True}}}}, (), "random weights in b"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    parts: tuple[Path, Path],
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    options: tuple[str, ...],
    says: str,
) -> None:
    changed(parts[1], **change(records_from_path(parts[1])))
    capsys.readouterr()
    assert run(["evaluate", str(plan), str(parts[1]), *options]) == 2
    assert says in said(capsys)


def test_another_model_file_than_the_plans_is_refused(
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(plan.read_text())
    member = document["stages"][0]["members"][0]
    member["sha256"] = "1" * 64
    plan.write_text(json.dumps(document))
    changed(parts[1], meta={"members": {member["name"]: {"sha256": "2" * 64}}})
    capsys.readouterr()
    assert run(["evaluate", str(plan), str(parts[1])]) == 2
    assert "another model file than the plan's" in said(capsys)
