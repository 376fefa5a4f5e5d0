import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.recording.timing import call_time, measured_rounds
from orchestrator.spec.timing import timing_from_path
from tests.recording.builders import NAMES, write_folder, write_member

QUICK = ("--rounds", "2", "--slot-ms", "0")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for seed, name in enumerate(("small", "large")):
        write_member(tmp_path / "models", name, seed=seed, max_batch_size=8 if name == "small" else 64)
    return tmp_path / "models"


def test_every_round_begins_with_another_call_and_counts_its_own_time() -> None:
    now, order = [0.0], []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    calls = {name: lambda name=name, s=s: call(name, s) for name, s in (("a", 0.001), ("b", 0.004))}
    found = measured_rounds(calls, rounds=2, slot_s=0.002, clock=lambda: now[0])
    assert {name: figures.tolist() for name, figures in found.items()} == {
        "a": pytest.approx([1, 1]),
        "b": pytest.approx([4, 4]),
    }
    # Once unmeasured; then a is repeated until its slot is over.
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b", "a", "b", "a"]


def test_a_difference_below_nothing_is_none() -> None:
    found = call_time(4, np.array([-1.0, 0.5, 2.0]))
    assert (found.batch, found.low_ms, found.ms, found.high_ms) == (4, 0, 0.5, 1.25)


def test_members_are_timed_at_the_batches_they_take(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "timing.json"
    words = ("small,large", "--repository", repository, "--batches", "16,1,4", "-o", output)
    assert run(["time", *map(str, words), *QUICK]) == 0
    timing = timing_from_path(output)
    assert {one.name: [call.batch for call in one.calls] for one in timing.members} == {
        "small": [1, 4, 8],
        "large": [1, 4, 16],
    }
    assert all(call.ms > 0 for one in timing.members for call in one.calls)
    assert [call.batch for call in timing.first_stage] == [1, 4, 16]
    assert timing.by_name["small"].sha256 == json.loads((repository / "small/manifest.json").read_text())["sha256"]


def test_rows_of_data_are_asked_about_where_some_are_named(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "pictures", each=2, names=NAMES)
    words = ("small", "--repository", repository, "--data", tmp_path / "pictures", "--batches", "1,8", "--json")
    assert run(["time", *map(str, words), *QUICK]) == 0
    assert [call["batch"] for call in json.loads(capsys.readouterr().out)["members"][0]["calls"]] == [1, 8]


def test_a_recording_times_its_members_on_the_same_rows(repository: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", each=2, names=NAMES)
    words = ("small", "large", "--repository", repository, "--data", tmp_path / "pictures")
    files = ("-o", tmp_path / "records.npz", "--time", tmp_path / "timing.json")
    assert run(["record", *map(str, (*words, *files))]) == 0
    assert [one.name for one in timing_from_path(tmp_path / "timing.json").members] == ["small", "large"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody",), "no manifest.json"),
        (("small", "--batches", "1,x"), "expected whole numbers with commas"),
        (("small", "--batches", "0"), "--batches: got 0"),
        (("small", "-o", "."), "got a folder"),
        ((",",), "got none"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(
    repository: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["time", *words, "--repository", str(repository), *QUICK]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
