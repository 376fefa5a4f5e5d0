import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.recording.served_timing import (
    FIRST,
    FIRST_HERE,
    LATER,
    LATER_HERE,
    PASSED,
    RARE,
    cascades_of,
    in_turn,
    parts_of,
    paused_requests,
)
from orchestrator.recording.timing import call_time, measured_rounds
from orchestrator.spec.timing import timing_from_path
from tests.recording.builders import NAMES, write_folder, write_member
from tests.recording.text_members import write_tokens_member

QUICK = ("--rounds", "2", "--slot-ms", "0")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for seed, name in enumerate(("small", "large")):
        write_member(tmp_path / "models", name, seed=seed, macs=1 + seed, max_batch_size=8 if seed == 0 else 64)
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


def test_the_median_stands_between_the_quartiles_of_the_rounds() -> None:
    found = call_time(4, np.array([-1.0, 0.5, 2.0]))
    assert (found.batch, found.low_ms, found.ms, found.high_ms) == (4, -0.25, 0.5, 1.25)


def test_what_a_served_cascade_adds_is_what_its_members_do_not_take() -> None:
    figures = {("a", 1): 1, ("b", 1): 2, ("d", 1): 3, (FIRST, 1): 1.5, (LATER, 1): 6, (PASSED, 1): 1.25}
    # The others take no more than one row in a call.
    figures |= {("a", 8): 4, (FIRST, 8): 5, (LATER, 8): 50}
    found = parts_of({key: np.array([float(ms)]) for key, ms in figures.items()}, (("a",), ("b", "d")))
    assert {key: {batch: part[0] for batch, part in parts.items()} for key, parts in found.items() if parts} == {
        FIRST: {1: 0.5, 8: 1},
        # Asked from inside, the members of the second stage take less than from outside.
        LATER: {1: -0.5, 8: 5},
        PASSED: {1: 0.25},
    }


def test_what_a_pause_adds_is_the_first_stage_s_and_what_a_later_one_has_beyond_it() -> None:
    now, rested, order = [0.0], [0.0], [""]

    def pause(seconds: float) -> None:
        rested[0] = seconds

    def call(key: str, ms: float, each: float) -> None:
        # After requests that the first stage answered the rarely asked one takes a second more.
        more = 1000 if key == RARE and order[-1] == FIRST else each * 1000 * rested[0]
        order.append(key)
        now[0] += (ms + more) / 1000

    times = {(FIRST, 1): (2, 0.5), (LATER, 1): (3, 0.7), (RARE, 1): (4, 0.0), (FIRST, 8): (99, 9)}
    calls = {key: partial(call, key[0], *time) for key, time in times.items()}
    found = {key: np.array([float(ms)]) for key, (ms, _) in times.items()}
    said = paused_requests(calls, found, rounds=1, pause=pause, clock=lambda: now[0])
    assert [one.pause_ms for one in said] == sorted({one.pause_ms for one in said})
    assert [one.first_ms for one in said] == pytest.approx([0.5 * one.pause_ms for one in said])
    assert [one.later_ms for one in said] == pytest.approx([0.2 * one.pause_ms for one in said])
    assert [one.rare_ms for one in said] == pytest.approx([1000] * len(said))
    assert paused_requests({}, {}, rounds=1) == ()


def test_cascades_that_are_timed_in_process_can_be(repository: Path) -> None:
    made = cascades_of(["small", "large"], repository, ())
    here = [spec.members_in_process for key, spec in made.items() if key in (FIRST_HERE, LATER_HERE)]
    assert [len(members) for members in here] == [2, 2]
    assert all(one.sha256 is not None for members in here for one in members), "else their models are called"
    assert list(cascades_of(["small"], repository, ())) == [FIRST, FIRST_HERE]


def test_rows_of_different_lengths_are_asked_about_in_turn_and_filled_up_to_the_longest() -> None:
    ids = np.empty(3, object)
    ids[:] = [np.arange(size) + 1 for size in (1, 3, 2)]
    rows = {"ids": ids, "text": np.array([["a"], ["b"], ["c"]], object)}
    turns = in_turn(rows, 2, pad={"ids": 9})
    first = next(turns)
    assert first["ids"].tolist() == [[1, 9, 9], [1, 2, 3]]
    assert first["text"].tolist() == [["a"], ["b"]]
    singles = in_turn(rows, 1, pad={"ids": 9})
    assert [next(singles)["ids"].tolist() for _ in range(4)] == [[[1]], [[1, 2, 3]], [[1, 2]], [[1]]]


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
    for calls in (timing.first_stage, timing.later_stage, timing.deferring):
        assert [call.batch for call in calls] == [1, 4, 16]
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


def test_made_up_rows_that_are_too_long_for_a_member_name_their_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tokens_member(tmp_path, only=8)
    words = ["time", "tokens", "--repository", str(tmp_path), "--batches", "1", *QUICK, "--length"]
    assert run([*words, "8"]) == 0
    capsys.readouterr()
    assert run([*words, "9"]) == 2
    error = capsys.readouterr().err
    assert "timing of tokens: got made-up rows of --length 9: member tokens" in error
    assert "name a smaller --length, or rows of yours with --data" in error
    assert error.count("\n") == 1


@pytest.mark.slow  # starts a server
def test_members_and_what_a_cascade_adds_are_timed_as_served(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "timing.json"
    words = ("small", "large", "--served", "--repository", repository, "--batches", "1,8,16", "-o", output)
    assert run(["time", *map(str, words), *QUICK]) == 0
    timing = timing_from_path(output)
    assert timing.is_served
    assert [call.batch for call in timing.by_name["large"].calls] == [1, 8, 16]
    for calls in (timing.first_stage, timing.later_stage):
        assert [call.batch for call in calls] == [1, 8, 16]
    # The small member takes no more than 8 rows in a call, and nothing is split on the way to it.
    assert [call.batch for call in timing.passed_on] == [1, 8]
    assert len(timing.pauses) > 1
    assert any(one.rare_ms for one in timing.pauses)
    assert all(one.memory_bytes is not None for one in timing.members), "each has a process of its own here"
    for calls in (timing.first_in_process, timing.later_in_process):
        assert [call.batch for call in calls] == [1, 8, 16]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nobody",), "no manifest.json"),
        (("small", "--batches", "1,x"), "expected whole numbers with commas"),
        (("small", "--batches", "0"), "--batches: got 0"),
        (("small", "--slot-ms", "inf"), "--slot-ms: got inf"),
        (("small", "-o", "."), "got a folder"),
        ((",",), "got none"),
        (("small", "--served", "--url", "127.0.0.1:1"), "--served and --url"),
        (("small", "--cascade", "c"), "expected --url with it"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(
    repository: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["time", *QUICK, *words, "--repository", str(repository)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
