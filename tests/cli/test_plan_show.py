import json
import os
import threading
from pathlib import Path

import pytest

from orchestrator.spec import cascade_from_json, cascade_from_path
from tests.cli.planning import one_line, plan, write_made

STRICT = ("--reference", "c", "--epsilon", "0.001")


def test_that_only_the_reference_itself_was_certified_is_said_with_the_rows_for_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = write_made(tmp_path / "r.npz", rows=400)
    assert plan(records, *STRICT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["feasible"], found["accuracy_lower"] is None) == (True, False)
    assert found["more_rows"] > 0
    assert f"about {found['more_rows']} more rows" in found["reason"]["fix"]
    assert plan(records, *STRICT) == 0
    said = capsys.readouterr().out
    assert "note: no plan but the reference itself could be certified: got" in said
    assert f"about {found['more_rows']} more rows would do" in said


@pytest.mark.parametrize(
    ("goal", "word"),
    [
        (("--max-mean-cost", "6"), "certify rows wrong, "),
        (("--min-accuracy", "0.3"), "certify rows wrong, "),
        (("--reference", "c", "--epsilon", "0.3"), "certify rows lost, "),
        (("--max-mean-cost", "6", "--reference", "c", "--epsilon", "0.3"), "certify rows lost, "),
        (("--label-free", "--epsilon", "0.5"), "certify rows in disagreement, "),
    ],
)
def test_rows_that_count_against_a_plan_are_called_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: tuple[str, ...], word: str
) -> None:
    assert plan(write_made(tmp_path / "r.npz"), *goal, "-o", tmp_path / "plan.json") == 0
    assert f" of 150 {word}" in capsys.readouterr().out
    fit = cascade_from_path(tmp_path / "plan.json").fit
    assert ("reference" in fit.extra) == ("wrong" not in word)


def test_a_plan_that_needs_no_reason_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(write_made(tmp_path / "r.npz"), "--max-mean-cost", "6", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["feasible"], found["reason"], found["more_rows"]) == (True, None, None)


GOALS = {"budget": ("--max-mean-cost", "6"), "imposed": ("--impose-exits", "0.5,0.3")}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_a_plan_never_overwrites_the_records_it_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: str, link: str
) -> None:
    records = write_made(tmp_path / "r.npz")
    output = records if link == "itself" else tmp_path / "other"
    if link == "symlink":
        output.symlink_to(records)
    if link == "hard link":
        output.hardlink_to(records)
    before = records.read_bytes()
    assert plan(records, *GOALS[goal], "-o", output) == 2
    assert "r.npz, which is read" in capsys.readouterr().err
    assert records.read_bytes() == before


def test_a_plan_never_overwrites_the_costs_it_was_made_with(tmp_path: Path) -> None:
    records, costs = write_made(tmp_path / "r.npz"), tmp_path / "c.json"
    costs.write_text('{"cost": {"a": 1, "b": 2, "c": 3}, "unit": "ms"}')
    assert plan(records, *GOALS["budget"], "--cost", costs, "-o", costs) == 2
    assert '"unit"' in costs.read_text()


@pytest.mark.parametrize("goal", GOALS)
def test_a_plan_takes_the_place_of_an_older_one_at_once(tmp_path: Path, goal: str) -> None:
    records, output = write_made(tmp_path / "r.npz"), tmp_path / "new" / "c.json"
    assert plan(records, *GOALS[goal], "-o", output) == 0
    output.write_text("older")
    (tmp_path / "held").hardlink_to(output)
    (tmp_path / "link").symlink_to(output)
    assert plan(records, *GOALS[goal], "-o", tmp_path / "link") == 0
    # Whoever still reads the older file reads all of it.
    assert (tmp_path / "held").read_text() == "older"
    assert (tmp_path / "link").is_symlink()
    assert cascade_from_path(output).stages
    assert [path.name for path in output.parent.iterdir()] == ["c.json"]


@pytest.mark.parametrize("goal", GOALS)
def test_an_output_below_a_file_or_that_is_a_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: str
) -> None:
    records = write_made(tmp_path / "r.npz")
    for output in (records / "c.json", records / "deep" / "c.json"):
        assert plan(records, *GOALS[goal], "-o", output) == 2
        assert "r.npz, a file, expected a folder" in one_line(capsys)
    assert plan(records, *GOALS[goal], "-o", tmp_path) == 2
    assert "got a folder, expected a file" in capsys.readouterr().err


@pytest.mark.timeout(20)
def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    records, pipe, read = write_made(tmp_path / "r.npz"), tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    assert plan(records, *GOALS["budget"], "-o", pipe) == 0
    reader.join(timeout=10)
    assert cascade_from_json(read[0]).stages
    assert pipe.is_fifo()


@pytest.mark.parametrize("goal", GOALS)
def test_a_plan_keeps_the_pattern_of_headers(tmp_path: Path, goal: str) -> None:
    records, output = write_made(tmp_path / "records.npz"), tmp_path / "cascade.json"
    assert plan(records, *GOALS[goal], "--header-pattern", "x-.*", "--member-timeout-ms", "250", "-o", output) == 0
    assert cascade_from_path(output).header_pattern == "x-.*"
    assert cascade_from_path(output).limits.member_timeout_ms == 250


def test_a_pattern_that_is_none_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, output = write_made(tmp_path / "records.npz"), tmp_path / "cascade.json"
    assert plan(records, *GOALS["budget"], "--header-pattern", "(x", "-o", output) == 2
    assert "header_pattern: got '(x', expected a regular expression" in one_line(capsys)
    assert not output.exists()
