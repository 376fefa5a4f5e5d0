import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.planner.clock import machine_here
from orchestrator.spec import cascade_from_path
from orchestrator.spec.timing import Timing, json_from_timing
from tests.cli.planning import one_line, plan, write_made
from tests.planner.test_clock import calls_of, timing_of

QUICK = ("--min-accuracy", "0.75", "--no-certify", "--calibrate", "off")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made(tmp_path_factory.mktemp("made") / "made.npz", rows=1200, members=3)


def written(path: Path, timing: Timing) -> Path:
    path.write_text(json_from_timing(timing), encoding="utf-8")
    return path


@pytest.fixture
def timing(tmp_path: Path) -> Path:
    return written(tmp_path / "timing.json", dataclasses.replace(timing_of(), machine=machine_here()))


def test_a_plan_by_the_clock_has_milliseconds_and_its_prediction(
    made: Path, timing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cascade.json"
    assert plan(made, *QUICK, "--timing", timing, "--batch", 16, "--json", "-o", output) == 0
    found = json.loads(capsys.readouterr().out)
    spec = cascade_from_path(output)
    assert spec.cost_unit == "ms"
    assert found["timing"] == spec.fit.extra["timing"]
    assert found["mean_cost"] == pytest.approx(found["timing"]["ms"], rel=1e-6)
    assert [stage["members"] for stage in found["timing"]["stages"]] == [
        [member.name for member in stage.members] for stage in spec.stages
    ]


def test_the_prediction_is_printed_for_people(
    made: Path, timing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(made, *QUICK, "--timing", timing, "--rate", 300, "--servers", 2) == 0
    said = capsys.readouterr()
    assert "by the clock, 300 rows/s on 2 servers" in said.out
    assert "predicted: " in said.out
    assert "the most is " in said.out
    assert "timed on" not in said.err


def test_one_model_that_is_fastest_is_said_to_be(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level = dataclasses.replace(timing_of(dict.fromkeys("abc", (1.0, 0.0))), machine=machine_here())
    path = written(tmp_path / "level.json", level)
    assert plan(made, *QUICK, "--timing", path, "--batch", 1) == 0
    assert "c without a cascade is the best plan" in capsys.readouterr().err


def test_a_timing_of_another_machine_is_noted(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "elsewhere.json", timing_of())
    assert plan(made, *QUICK, "--timing", path, "--batch", 16) == 0
    assert "timed on a processor, 4 cores, not on this machine" in capsys.readouterr().err


def test_a_runtime_that_takes_more_off_than_there_is_is_one_note(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = timing_of(machine=machine_here(), first_stage=calls_of(-50.0, 0.0))
    path = written(tmp_path / "odd.json", odd)
    assert plan(made, *QUICK, "--timing", path, "--rate", 100) == 0
    said = capsys.readouterr()
    assert said.err.count("note: first_stage of -50 ms at batches of 1, where ") == 1
    assert said.err.count("a tenth") == 1
    assert "predicted: 0 ms" not in said.out


def test_imposed_exits_are_predicted_too(
    made: Path, timing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, words = tmp_path / "cascade.json", ("--timing", timing, "--impose-exits", "0.5,0.25", "-o")
    assert plan(made, *words, output, "--batch", 16, "--alone") == 0
    assert "predicted: " in capsys.readouterr().out
    spec = cascade_from_path(output)
    assert spec.fit is not None
    assert [stage["reach"] for stage in spec.fit.extra["timing"]["stages"]] == pytest.approx(
        [1, 0.5, 0.25], abs=2e-3
    )
    assert spec.fit.mean_cost == spec.fit.extra["timing"]["ms"] > 0
    assert plan(made, *words, output, "--rate", 1e6) == 3
    assert "expected at most " in one_line(capsys)


FEW = timing_of(members=timing_of().members[:2])
REFUSED = [
    (("--batch", 8), "--batch without --timing", None),
    (("--timing",), "got neither, expected one of --batch and --rate", timing_of()),
    (("--batch", 8, "--timing"), "none of c", FEW),
    (("--batch", 64, "--timing"), "batches of 1 to 16", timing_of()),
    (("--rate", -1, "--timing"), "rate: got -1", timing_of()),
    (("--batch", 8, "--cost", "costs.json", "--timing"), "--timing and --cost", timing_of()),
    (("--batch", 8, "--timing"), "ms: got -1, expected between low_ms 0", "-1"),
    (("--batch", 8, "--timing"), "NaN", "NaN"),
]


@pytest.mark.parametrize(("words", "said", "timing"), REFUSED, ids=[said for _, said, _ in REFUSED])
def test_what_cannot_be_planned_with_is_refused_in_one_line(
    made: Path,
    tmp_path: Path,
    words: tuple[object, ...],
    said: str,
    timing: Timing | str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "timing.json"
    if isinstance(timing, str):
        text = json_from_timing(timing_of(members=timing_of().members[:1]))
        path.write_text(text.replace('"ms": 0.44', f'"ms": {timing}'), encoding="utf-8")
    elif timing is not None:
        written(path, timing)
    assert plan(made, *QUICK, *words, *(() if timing is None else (path,))) == 2
    assert said in one_line(capsys)


def test_a_timing_is_no_cost_profile(made: Path, timing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(made, *QUICK, "--cost", timing) == 2
    assert "got a timing, which --timing takes" in one_line(capsys)


def test_a_budget_of_macs_is_no_time(made: Path, timing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--max-mean-cost", 600000, "--no-certify", "--timing", timing, "--batch", 16)
    assert plan(made, *words) == 2
    assert "MACs and milliseconds do not mix" in one_line(capsys)


def test_a_rate_that_no_plan_carries_ends_with_the_most(
    made: Path, timing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(made, *QUICK, "--timing", timing, "--rate", 1e6) == 3
    assert "got 1e+06 rows/s, expected at most " in one_line(capsys)


def test_members_that_take_fewer_rows_are_asked_in_several_calls(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tuple(
        dataclasses.replace(one, calls=one.calls[:3], max_batch_size=4) if one.name == "c" else one
        for one in timing_of(first_stage=(), later_stage=()).members
    )
    path = written(tmp_path / "timing.json", timing_of(members=small, machine=machine_here(), first_stage=()))
    assert plan(made, *QUICK, "--timing", path, "--batch", 16, "--json", "--members", "c") == 0
    found = json.loads(capsys.readouterr().out)
    (constant, slope), later = (0.5, 0.6), calls_of(0, 0)[0].ms
    assert found["mean_cost"] == pytest.approx(constant / 4 + slope + later)
