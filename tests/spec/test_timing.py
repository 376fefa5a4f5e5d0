import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.timing import (
    RUNTIME_PARTS,
    CallTime,
    MemberTiming,
    TimedMachine,
    Timing,
    added_ms,
    interpolation_error,
    json_from_timing,
    ms_of_calls,
    parts_eaten_up,
    timing_from_path,
)
from orchestrator.spec.validation import MOST_ROWS

MACHINE = TimedMachine(cpu="a processor", cores=2, platform="Linux")
BATCHES = (1, 2, 4, 8, 16, 32)


def calls_of(constant: float, slope: float, batches: tuple[int, ...] = BATCHES) -> tuple[CallTime, ...]:
    times = [(batch, constant + slope * batch) for batch in batches]
    return tuple(CallTime(batch=batch, ms=ms, low_ms=ms, high_ms=ms) for batch, ms in times)


def timing_of(**changes: object) -> Timing:
    members = tuple(
        MemberTiming(name=name, calls=calls_of(0.5, slope), sha256="0" * 64, memory_bytes=1 << 20)
        for name, slope in (("a", 0.1), ("b", 1.0))
    )
    made = Timing(asked="onnxruntime 1.0", machine=MACHINE, members=members, rounds=5, threads=1)
    return dataclasses.replace(made, **changes)


def test_a_timing_that_was_written_is_read_back_the_same(tmp_path: Path) -> None:
    timing = timing_of(**{name: calls_of(0.2 + place, 0.01) for place, name in enumerate(RUNTIME_PARTS)})
    path = tmp_path / "timing.json"
    path.write_text(json_from_timing(timing), encoding="utf-8")
    assert timing_from_path(path) == timing


@given(st.floats(0, 10), st.floats(0, 10), st.integers(1, 32))
def test_a_batch_that_was_not_measured_lies_on_the_line(constant: float, slope: float, batch: int) -> None:
    calls = calls_of(constant, slope)
    assert float(ms_of_calls(calls, batch)) == pytest.approx(constant + slope * batch)
    assert interpolation_error(calls) in (None, pytest.approx(0, abs=1e-9))


def test_held_out_batches_say_how_far_off_the_line_they_lie() -> None:
    bent = (*calls_of(1.0, 0.0, (1,)), *calls_of(3.0, 0.0, (2,)), *calls_of(2.0, 0.0, (3,)))
    assert interpolation_error(bent) == pytest.approx(0.5)


def test_the_slowest_of_some_members_is_so_at_a_batch_that_is_known_of_all() -> None:
    # By its largest batch, of one row, the quick one would be the slowest.
    quick = MemberTiming(name="quick", calls=calls_of(1.2, 0.01, (1,)))
    timing = timing_of(members=(*timing_of(members=(quick,)).members, *timing_of().members))
    assert timing.slowest(("quick", "a", "b")) == "b"
    assert timing.slowest(("a",)) == "a"


def test_what_the_runtime_takes_off_leaves_a_tenth_and_is_told() -> None:
    assert added_ms([1.0, 1.0, 1.0], [0.2, -0.5, -50.0]).tolist() == pytest.approx([0.2, -0.5, -0.9])
    parts = {"first_stage": calls_of(-50.0, 0.0, (1,)), "later_stage": calls_of(-1.4, 0.0, (1,))}
    first, later = parts_eaten_up(timing_of(**parts), "ab")
    assert first.startswith("first_stage of -50 ms at batches of 1, where a takes 0.6")
    assert later.startswith("later_stage of -1.4 ms at batches of 1, where b takes 1.5")
    assert parts_eaten_up(timing_of(later_stage=calls_of(-0.6, 0.0, (1,))), "ab") == []


def test_no_rows_take_no_time_and_more_than_one_call_carries_take_several() -> None:
    member = MemberTiming(name="a", calls=calls_of(1.0, 0.5, (1, 2, 4)), max_batch_size=4)
    assert member.ms([0, 1, 4, 5, 8]).tolist() == pytest.approx([0, 1.5, 3, 2 * 2.25, 6])
    assert member.largest == MOST_ROWS
    assert dataclasses.replace(member, max_batch_size=8).largest == 4


FAULTS = {
    "calls: got -1 ms for batch 1": lambda document: document["members"][0]["calls"][0].update(ms=-1, low_ms=-1),
    "calls: got 0 ms for batch 1": lambda document: document["members"][0]["calls"][0].update(ms=0, low_ms=0),
    "got 0.6, expected between low_ms 9": lambda document: document["members"][0]["calls"][0].update(low_ms=9),
    "got 0.6, expected between low_ms 0.6 and high_ms 0.001": lambda document: document["members"][0]["calls"][
        0
    ].update(high_ms=0.001),
    "got NaN": lambda document: document["members"][0]["calls"][0].update(ms=float("nan")),
    "calls: got batches [1, 1": lambda document: document["members"][0]["calls"][1].update(batch=1),
    "members: got a more than once": lambda document: document["members"][1].update(name="a"),
    "members: got none": lambda document: document.update(members=[]),
    "machine.cores": lambda document: document["machine"].update(cores=0),
    "format: got another document": lambda document: document.update(format=2),
    "got a cost profile": lambda document: [document.pop("format"), document.update(cost={"a": 1})],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_timing_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    document = json.loads(json_from_timing(timing_of()))
    FAULTS[fault](document)
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        timing_from_path(path)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_times_of_many_batches_come_as_one_array() -> None:
    assert np.allclose(timing_of().by_name["b"].ms([[1, 3], [32, 64]]), [[1.5, 3.5], [32.5, 65]])
