import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path, write_records
from orchestrator.planner.replay import replay
from orchestrator.repository.members import pinned_spec
from orchestrator.spec import CascadeSpec, Fit, cascade_from_json, cascade_from_path
from tests.cli.planning import one_line, write_made
from tests.planner.builders import made_records

ROOT = Path(__file__).parents[2]
MEMBERS = ["digits_small", "digits_medium", "digits_large"]
REPOSITORY = str(ROOT / "model_repository")
COMMITTED = ROOT / "model_repository/digits_cascade/1/cascade.json"
# What `make members` plans with: the words after the records, up to where the plan goes.
MAKEFILE_GOAL = re.search(r"committee plan \S+ (.*?) -o", (ROOT / "Makefile").read_text(encoding="utf-8"))[
    1
].split()
KEYS = ["feasible", "plan", "accuracy", "accuracy_lower", "mean_cost", "worst_cost", "exit_share", "frontier"]
KEYS += ["reason", "more_rows", "notes"]
ROW = ["members", "stages", "thresholds", "combine", "score", "accuracy", "mean_cost", "worst_cost"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    path = tmp_path_factory.mktemp("records") / "plan.npz"
    assert run(["record", *MEMBERS, "--data", "digits:plan", "-o", str(path), "--repository", REPOSITORY]) == 0
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records written with numpy alone, of members that no repository knows."""
    return write_made(tmp_path_factory.mktemp("made") / "made.npz", rows=1200, members=4, meta="{}")


def plan(records: Path, *options: str) -> int:
    return run(["plan", str(records), "--repository", REPOSITORY, *options])


def thresholds(spec: CascadeSpec) -> list[float]:
    return [stage.threshold for stage in spec.stages[:-1]]


def planned(capsys: pytest.CaptureFixture[str], records: Path, *options: str) -> dict[str, Any]:
    """The document of a plan that is found."""
    assert plan(records, *options, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_committed_plan_is_what_the_command_finds_on_the_plan_split(digits: Path, tmp_path: Path) -> None:
    output = tmp_path / "cascade.json"
    assert plan(digits, *MAKEFILE_GOAL, "-o", str(output)) == 0
    committed = cascade_from_path(COMMITTED)
    # Rendering adds the versions that the repository serves.
    found = pinned_spec(cascade_from_path(output), COMMITTED.parents[2])
    # Another processor's kernels move scores, and what lies midway between them, by some 1e-6.
    assert thresholds(found) == pytest.approx(thresholds(committed), abs=1e-5)
    stages = tuple(
        dataclasses.replace(stage, threshold=other.threshold)
        for stage, other in zip(found.stages, committed.stages, strict=True)
    )
    assert dataclasses.replace(found, stages=stages, fit=_anywhere(found)) == dataclasses.replace(
        committed, fit=_anywhere(committed)
    )


def _anywhere(spec: CascadeSpec) -> Fit:
    """What a plan was fitted on, but for the runtime and the processor of the machine it was recorded on."""
    assert spec.fit is not None
    return dataclasses.replace(
        spec.fit, extra={name: value for name, value in spec.fit.extra.items() if name != "recorded_with"}
    )


def test_the_committed_plan_keeps_to_its_budget_and_is_certified_against_the_large_member(digits: Path) -> None:
    found, records = cascade_from_path(COMMITTED), records_from_path(digits)
    done = replay(found, records)
    facts = found.fit.extra["guarantee"]
    assert found.fit.split == "digits:plan"
    assert done.cost.mean() <= max(records.cost.values()) / 6
    assert (done.label == records.labels).mean() >= 0.995
    assert facts["certified"]
    assert (facts["delta"], facts["epsilon"], facts["rows"]) == (0.1, 0.02, 225)
    assert facts["bound"] <= 0.02


def test_the_digits_certify_two_points_at_ninety_percent(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, digits, "--reference", "digits_large", "--epsilon", "0.02", "--delta", "0.1")
    facts = found["plan"]["fit"]["extra"]["guarantee"]
    assert found["feasible"]
    assert facts["bound"] <= 0.02
    assert (facts["delta"], facts["epsilon"], facts["rows"]) == (0.1, 0.02, 225)
    assert found["mean_cost"] < 1_495_552 / 50


@pytest.mark.parametrize(
    "options",
    [
        ("--min-accuracy", "0.75"),
        ("--reference", "d", "--epsilon", "0.05"),
        ("--reference", "ensemble", "--epsilon", "0.05"),
        ("--max-mean-cost", "6"),
        ("--max-mean-cost-share", "0.25", "--max-worst-cost", "14"),
        ("--label-free", "--epsilon", "0.2"),
        ("--max-mean-cost", "9", "--combine", "last", "--score", "all", "--max-stages", "2"),
    ],
    ids=" ".join,
)
def test_the_json_document_is_complete_and_its_plan_replays_to_its_numbers(
    made: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    found = planned(capsys, made, *options, "--no-certify")
    assert list(found) == KEYS
    assert all(list(row) == ROW for row in found["frontier"])
    assert found["feasible"] is True
    assert found["accuracy_lower"] is None
    spec, records = cascade_from_json(json.dumps(found["plan"])), records_from_path(made)
    done = replay(spec, records)
    assert done.cost.mean() == pytest.approx(found["mean_cost"], rel=1e-5)
    assert spec.worst_cost == found["worst_cost"]
    assert np.bincount(done.exit_stage, minlength=len(spec.stages)) / 1200 == pytest.approx(found["exit_share"])
    if "--label-free" not in options:
        assert (done.label == records.labels).mean() == pytest.approx(found["accuracy"])
    accuracy, cost = zip(*((row["accuracy"], row["mean_cost"]) for row in found["frontier"]), strict=True)
    assert list(accuracy) == sorted(accuracy, reverse=True)
    assert list(cost) == sorted(cost, reverse=True)


def test_without_labels_agreement_is_certified(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.npz"
    write_records(dataclasses.replace(records_from_path(made), labels=None), bare)
    found = planned(capsys, bare, "--label-free", "--epsilon", "0.15")
    fit = found["plan"]["fit"]
    assert fit["accuracy"] is None
    assert fit["extra"]["agreement"]["reference"] == "d"
    assert "disagreement with d <= 0.15" in fit["extra"]["guarantee"]["statement"]
    assert 1 - 0.15 <= found["accuracy_lower"] <= found["accuracy"] + 0.1


@pytest.mark.parametrize("goal", [("--reference", "d"), ("--label-free",)], ids=" ".join)
def test_the_same_command_prints_the_same_bytes_whatever_labels_say_to_a_label_free_plan(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: tuple[str, ...]
) -> None:
    records = records_from_path(made)
    zero = {"labels": np.zeros_like(records.labels)} if "--label-free" in goal else {}
    write_records(dataclasses.replace(records, **zero), tmp_path / "again.npz")
    one, other = (planned(capsys, path, *goal, "--epsilon", "0.15") for path in (made, tmp_path / "again.npz"))
    assert json.dumps(one) == json.dumps(other)


def test_costs_of_a_profile_replace_the_recorded_ones(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"cost": {"a": 0.4, "b": 9.5, "c": 1.1, "d": 2.0, "other": 1}, "unit": "ms"}))
    found = planned(capsys, made, "--max-mean-cost", "2.5", "--cost", str(profile))
    assert found["plan"]["cost_unit"] == "ms"
    # b is the dearest now, so it can only come last, and within this budget not at all or for few rows.
    costs = {member["name"]: member["cost"] for stage in found["plan"]["stages"] for member in stage["members"]}
    assert list(costs.values()) == sorted(costs.values())
    assert found["mean_cost"] <= 2.5


def test_a_plan_of_unknown_members_says_what_is_missing_from_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(made, "--max-mean-cost", "6", "-o", str(tmp_path / "c.json"), "--members", "a, c") == 0
    said = capsys.readouterr()
    assert "no manifest of a, c" in said.err
    assert "Written:" in said.out
    assert [m.name for m in cascade_from_path(tmp_path / "c.json").members] == ["a", "c"]


def test_where_nothing_can_be_certified_it_says_how_many_more_rows_would_do(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c.json"
    # The large member itself is not allowed, or it would stand in.
    options = ("--reference", "digits_large", "--epsilon", "0.005", "--max-worst-cost", "70000", "--json")
    assert plan(digits, *options, "-o", str(output), "--report", str(tmp_path / "report")) == 3
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "about 746 more rows would do if they are like these; no report was written" in said.err
    assert said.err.count("\n") == 1
    assert (list(found), found["feasible"], found["more_rows"]) == (KEYS, False, 746)
    assert all(found["reason"][key] in said.err for key in ("got", "expected", "fix"))
    assert not (tmp_path / "report").exists()
    assert found["plan"]["fit"]["extra"]["guarantee"]["certified"] is False
    assert not output.exists()


def test_where_nothing_cheaper_will_do_the_reference_stands_for_itself(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(capsys, made, "--members", "a,d", "--reference", "a", "--epsilon", "0")
    assert found["frontier"][-1]["members"] == ["a"]
    assert found["plan"]["fit"]["extra"]["guarantee"]["method"] == "identity"


def test_a_plan_that_is_to_pass_nan_says_so_of_inputs_of_floats(
    digits: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, expected in (([], "reject"), (["--non-finite", "pass"], "pass")):
        (tensor,) = planned(capsys, digits, "--min-accuracy", "0.6", *options)["plan"]["inputs"]
        assert (tensor["dtype"], tensor.get("non_finite", "reject")) == ("FP32", expected)
    assert plan(made, "--min-accuracy", "0.6", "--non-finite", "drop") == 2
    assert "plan --non-finite: got drop, expected reject or pass" in one_line(capsys)
    assert plan(made, "--min-accuracy", "0.6", "--non-finite", "pass") == 2
    assert "got members whose inputs nothing describes" in one_line(capsys)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "got none, expected one of --min-accuracy, --reference, --max-mean-cost"),
        (("--max-mean-cost", "1", "--max-mean-cost-share", "1"), 2, "--max-mean-cost and --max-mean-cost-share"),
        (("--max-mean-cost-share", "nan"), 2, "--max-mean-cost-share: got nan"),
        (("--max-mean-cost", "-1"), 2, "--max-mean-cost: got -1"),
        (("--max-mean-cost", "5", "--reference", "d"), 2, "--reference: got d without --epsilon"),
        (("--max-mean-cost", "2", "--reference", "d", "--epsilon", "0.01"), 3, "the best with mean cost <= 2"),
        (("--max-mean-cost", "12", "--reference", "d", "--epsilon", "0.02"), 3, "by the best plan, so a bound"),
        (("--max-mean-cost", "0.5"), 3, "expected at least 1, where accuracy is"),
        (("--max-mean-cost", "5", "--max-worst-cost", "0.5"), 3, "expected at least 1, the cheapest member's"),
        (("--min-accuracy", "0.5", "--max-mean-cost", "5"), 2, "got --min-accuracy and --max-mean-cost"),
        (("--min-accuracy", "1.5"), 2, "--min-accuracy: got 1.5"),
        (("--min-accuracy", "1"), 3, "the best of all plans on the search part"),
        (("--reference", "d"), 2, "--epsilon: got none"),
        (("--reference", "nobody", "--epsilon", "0.1"), 2, "expected one of a, b, c, d, or ensemble"),
        (("--min-accuracy", "0.5", "--epsilon", "0.1"), 2, "got 0.1 without --reference"),
        (("--label-free", "--min-accuracy", "0.5"), 2, "got --min-accuracy and --label-free"),
        (("--max-mean-cost", "5", "--delta", "1"), 2, "--delta: got 1"),
        (("--max-mean-cost", "5", "--max-stages", "5"), 2, "--max-stages: got 5"),
        (("--max-mean-cost", "5", "--combine", "sum"), 2, "--combine: got sum"),
        (("--max-mean-cost", "5", "--score", "max_prob,x"), 2, "--score: got x"),
        (("--max-mean-cost", "5", "--calibrate", "yes"), 2, "--calibrate: got yes, expected auto or off"),
        (("--max-mean-cost", "5", "--calibrate", "auto,off"), 2, "--calibrate: got auto,off"),
        (("--max-mean-cost", "5", "--members", "a,z"), 2, "got no outputs of z"),
        (("--max-mean-cost", "5", "--impose-exits", "0.5"), 2, "got --impose-exits and a goal"),
        (("--max-stages", "2", "--impose-exits", "0.5,0.2,0.1"), 2, "got --impose-exits and a goal"),
        (("--max-mean-cost", "5", "--cost", "nowhere.json"), 2, "does not exist"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, said: str
) -> None:
    assert plan(made, *options, "-o", str(tmp_path / "cascade.json")) == code
    assert said in one_line(capsys)
    assert not (tmp_path / "cascade.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": None}, "no labels"),
        ({"meta": {"members": {"b": {"random_weights": True}}}}, "members with random weights, b"),
        ({"meta": {"members": [1]}}, "meta with other kinds of members: got [1]"),
    ],
)
def test_records_that_cannot_be_planned_with_are_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    write_records(dataclasses.replace(records_from_path(made), **change), tmp_path / "r.npz")
    assert plan(tmp_path / "r.npz", "--max-mean-cost", "5") == 2
    assert said in capsys.readouterr().err


def test_too_few_rows_to_certify_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(made_records(0, rows=15), tmp_path / "r.npz")
    assert plan(tmp_path / "r.npz", "--max-mean-cost", "5") == 2
    assert "got 7 rows to search and 8 to certify, expected at least 10" in capsys.readouterr().err
