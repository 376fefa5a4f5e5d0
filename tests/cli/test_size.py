import json
from pathlib import Path

import pytest

from orchestrator.__main__ import run
from orchestrator.spec.timing import json_from_timing
from tests.cli.planning import plan, write_made
from tests.planner.test_clock import timing_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A plan by the clock and its timing."""
    folder = tmp_path_factory.mktemp("sized")
    timing, output = folder / "timing.json", folder / "cascade.json"
    timing.write_text(json_from_timing(timing_of()), encoding="utf-8")
    goal = ("--reference", "c", "--epsilon", "0.01", "--no-certify", "--calibrate", "off")
    records = write_made(folder / "made.npz", rows=900)
    assert plan(records, *goal, "--timing", timing, "--batch", 8, "-o", output) == 0
    return str(output), str(timing)


def test_the_plan_stands_beside_more_deferrals_and_the_slowest_member(
    made: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, timing = made
    assert run(["size", output, "--timing", timing, "--rate", "5000", "--price", "1", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    assert [one["name"] for one in sizes] == [
        "cascade", "cascade, 5 points more deferred", "cascade, 10 points more deferred", "c",
    ]  # fmt: skip
    assert sizes[0]["servers"] <= sizes[1]["servers"] <= sizes[2]["servers"]
    assert all(one["cost_per_million"] > 0 for one in sizes)


def test_a_timing_of_another_machine_is_noted(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    output, timing = made
    assert run(["size", output, "--timing", timing, "--rate", "500", "--json"]) == 0
    said = capsys.readouterr()
    assert "timed on a processor, 4 cores, not on this machine" in said.err
    assert [f"note: {note}" for note in json.loads(said.out)["notes"]] == said.err.splitlines()


def test_sizes_are_printed_for_people(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    output, timing = made
    assert run(["size", output, "--timing", timing, "--rate", "500", "--peak", "2"]) == 0
    said = capsys.readouterr().out
    assert "500 rows/s, 1000 at the peak" in said
    assert "c alone needs" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--rate", "-1"), 2, "--rate: got -1"),
        (("--rate", "10", "--cores", "0"), 2, "--cores: got 0"),
        (("--rate", "1e300"), 2, "--rate: got 1e+300"),
        (("--rate", "10", "--p99-ms", "0.01"), 3, "an idle server"),
        (("--rate", "10", "--alone", "nobody"), 2, "none of nobody"),
    ],
)
def test_what_cannot_be_sized_is_one_line(
    made: tuple[str, str], words: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output, timing = made
    assert run(["size", output, "--timing", timing, *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_plan_that_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["size", str(tmp_path / "none.json"), "--timing", str(tmp_path / "t.json"), "--rate", "1"]
    assert run(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
