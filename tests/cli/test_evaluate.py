"""`committee split` and `committee evaluate`: rows kept aside, and what a plan does to them."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import Records, records_from_path, write_records
from orchestrator.planner.replay import replay
from orchestrator.spec import cascade_from_path
from tests.planner.builders import made_records

ROWS = 400
HALF = ("--max-mean-cost-share", "0.5", "--no-certify")


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
    assert run(["plan", str(parts[0]), *HALF, "-o", str(path)]) == 0
    return path


def changed(path: Path, **changes: Any) -> Path:
    """The records with other parts."""
    write_records(dataclasses.replace(records_from_path(path), **changes), path)
    return path


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The document of an evaluation."""
    capsys.readouterr()
    assert run(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


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
    found = evaluated(capsys, plan, parts[1], "--reference", "c")
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


def knows_its_rows(capsys: pytest.CaptureFixture[str], plan_path: Path, records: Path) -> bool:
    """Whether evaluating a plan says that it was chosen on some of these rows."""
    return bool(evaluated(capsys, plan_path, records)["rows_of_the_plan"])


def test_a_plan_knows_rows_it_has_seen_in_the_whole_in_a_part_and_in_another_cut(
    whole: Path, parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = partial(knows_its_rows, capsys)
    of_whole, other, rest = (whole.with_name(name) for name in ("whole.json", "other.npz", "other_rest.npz"))
    assert run(["plan", str(whole), *HALF, "-o", str(of_whole)]) == 0
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
    found = evaluated(capsys, plan, parts[1], "--reference", "c")
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
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str], change: Any, options: Any, says: str
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


@pytest.fixture
def plans(parts: tuple[Path, Path], plan: Path) -> list[Path]:
    """A cheap plan and a dear one."""
    dear = plan.with_name("dear.json")
    words = ["plan", str(parts[0]), "--max-mean-cost-share", "1", "--no-certify", "-o", str(dear)]
    assert run([*words, "--name", "dear", "--members", "b,c"]) == 0
    return [plan, dear]


def test_what_costs_more_than_the_reference_is_said_to_cost_more(
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factor = evaluated(capsys, plan, parts[1], "--reference", "a")["cost_factor"]
    assert factor < 1
    assert run(["evaluate", str(plan), str(parts[1]), "--reference", "a"]) == 0
    assert f"it costs {1 / factor:.3g} times more" in capsys.readouterr().out


def test_several_plans_stand_side_by_side_and_are_compared_with_the_first(
    parts: tuple[Path, Path], plans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = evaluated(capsys, *plans, parts[1])
    records = records_from_path(parts[1])
    right = [replay(cascade_from_path(path), records).label == records.labels for path in plans]
    assert [one["plan"] for one in (first, second)] == [str(path) for path in plans]
    assert first["against_first"] is None
    against = second["against_first"]
    assert against["name"] == "cascade"
    assert against["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    low, high = against["difference_ci95"]
    assert low < against["difference"] < high
    assert (against["losses"], against["gains"]) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert against["cost_factor"] == pytest.approx(first["cascade"]["mean_cost"] / second["cascade"]["mean_cost"])
    # Each is what it is alone.
    alone = evaluated(capsys, plans[1], parts[1])
    assert {key: second[key] for key in alone} == alone
    assert run(["evaluate", *map(str, plans), str(parts[1])]) == 0
    shown = capsys.readouterr().out
    assert all(sum(line.split()[:1] == [name] for line in shown.splitlines()) for name in ("a", "b", "c"))
    assert "dear minus cascade: " in shown
    assert "cascade minus c: " in shown
    assert "dear minus c: " in shown


def test_plans_of_one_name_are_told_apart_by_their_paths(
    parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = plan.with_name("twin.json")
    twin.write_text(plan.read_text())
    assert run(["evaluate", str(plan), str(twin), str(parts[0])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"cascade ({twin}) minus cascade ({plan}): +0.0000" in shown
    assert "it costs as much" in shown
    assert f"note: each of cascade ({plan}), cascade ({twin}) was chosen on these rows" in shown


def test_plans_of_two_units_are_compared_by_accuracy_alone(
    parts: tuple[Path, Path], plans: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(plans[1].read_text())
    document["cost_unit"] = "ms"
    plans[1].write_text(json.dumps(document))
    assert evaluated(capsys, *plans, parts[1])[1]["against_first"]["cost_factor"] is None
    assert run(["evaluate", *map(str, plans), str(parts[1])]) == 0
    shown = capsys.readouterr().out
    assert "costs in MACs or ms per row" in shown
    lines = {line.split()[0]: line for line in reversed(shown.splitlines()) if line.split()}
    assert " ms " in lines["dear"]
    assert " MACs " in lines["cascade"]
    assert " - " in lines["a"]


def test_joined_rows_are_known_to_a_plan_that_was_chosen_on_some_of_them(
    whole: Path, parts: tuple[Path, Path], plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noted = partial(knows_its_rows, capsys)
    other, joined, first, rest, of_joined = (
        whole.with_name(name) for name in ("more.npz", "both.npz", "first.npz", "rest.npz", "joined.json")
    )
    made = made_records(3, rows=60, members=3)
    more = dataclasses.replace(made, ids=made.ids + 1000, meta={"data_sha256": "cd", "data": "more"})
    write_records(more, other)
    assert run(["record", "--join", str(parts[0]), str(other), "-o", str(joined)]) == 0
    assert noted(plan, joined)
    words = [*HALF, "-o", str(of_joined)]
    assert run(["plan", str(joined), *words]) == 0
    assert noted(of_joined, joined)
    assert noted(of_joined, other)
    assert noted(of_joined, whole)
    assert not noted(of_joined, parts[1])
    # A part of what was joined knows what it may have rows of, and its sibling for what it is.
    assert run(["split", str(joined), "-o", str(first), "--rest", str(rest)]) == 0
    assert run(["plan", str(first), *words]) == 0
    assert noted(of_joined, other)
    assert noted(plan, rest)
    assert not noted(of_joined, rest)
