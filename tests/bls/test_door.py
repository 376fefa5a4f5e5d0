"""A full table of deferred rows: batches wait a moment, then sure requests are answered and others refused."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bls import door as door_module
from orchestrator.probe import BUSY_WORDS
from orchestrator.spec import Gear, Gears, Limits
from orchestrator.spec.answer import DEADLINE, DEGRADED
from tests.bls.fixtures import (
    EASY,
    HARD,
    ask_all,
    asking,
    eventually,
    large,
    loaded,
    small,
    two_stages,
    usual,
    wait_for,
)
from tests.fakes.triton import Request, TritonError

SPEC = two_stages(limits=Limits(max_batch_size=64, max_deferred_rows=16))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def gated(gate: threading.Event) -> Any:
    def member(rows: np.ndarray) -> np.ndarray:
        gate.wait(30)
        return large(rows)

    return member


def filled(model: Any, rows: int = 16) -> Request:
    request = asking(*[HARD] * rows)
    assert model.execute([request]) is None
    return request


def test_a_full_table_refuses_what_stage_0_is_unsure_of_and_answers_the_rest(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.2)
    with loaded(tmp_path, fake := usual(large=gated(gate)), SPEC) as model:
        wait_for_room, waits_s = model._scheduler.wait_for_room, []

        def watched(rows: int, size_bytes: int, timeout_s: float) -> bool:
            waits_s.append(timeout_s)
            return wait_for_room(rows, size_bytes, timeout_s)

        monkeypatch.setattr(model._scheduler, "wait_for_room", watched)
        first = filled(model)
        begun_s = time.monotonic()
        easy, hard, mixed = ask_all(model, [asking(EASY), asking(HARD), asking(EASY, HARD)])
        assert time.monotonic() - begun_s >= 0.2
        assert not any(ask_all(model, [asking(EASY)])[0].has_error() for _ in range(5))
        assert waits_s[1:] == [0.0] * 5, "no batch waits as the first did"
        assert easy.column("label")[0, 0] == 0
        for refused in (hard, mixed):
            error = refused.error()
            assert error is not None
            assert error.code() == TritonError.UNAVAILABLE
            said = "16 rows wait for later stages, about as many as limits.max_deferred_rows allows (16); "
            assert error.message() == said + "try again in a moment"
        gate.set()
        assert not wait_for(first, None).has_error()
        eventually(lambda: model._scheduler._run.rows_in_table == 0)
        (fine,) = ask_all(model, [asking(HARD)])
        assert fine.column("exit_stage")[0, 0] == 1
    assert fake.total("committee_table_full_rows_total") == 3
    assert fake.total("committee_failed_rows_total") == 3
    assert fake.total("committee_rows_total") == 16 + 4 + 5 + 1
    lines = [line for line in fake.log if "table of deferred rows" in line]
    assert len(lines) == 2
    assert lines[0].endswith("is full: requests that later stages would be asked about are refused")
    assert lines[1].endswith("refused 3 rows")


def test_what_fits_into_the_room_that_is_left_enters(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.0)
    with loaded(tmp_path, usual(large=gated(gate)), SPEC) as model:
        filled(model, 13)
        requests = [asking(HARD, HARD), asking(EASY, EASY, HARD), asking(HARD), asking(EASY)]
        requests.append(asking(EASY, min_stage=1))
        listed = model.execute(requests)
        assert listed is not None
        assert [response is None for response in listed] == [True, True, False, False, False]
        assert [response.has_error() for response in listed[2:]] == [True, False, True]
        gate.set()
        assert [wait_for(one, None).column("exit_stage")[:, 0].tolist() for one in requests[:2]] == [
            [1, 1],
            [0, 0, 1],
        ]


def test_a_deadline_is_not_spent_waiting_for_room(tmp_path: Path, gate: threading.Event) -> None:
    with loaded(tmp_path, usual(large=gated(gate)), SPEC) as model:
        filled(model)
        (answer,) = ask_all(model, [asking(EASY, deadline_us=600_000)])
        assert answer.column("status")[:, 0].tolist() == [0]
        assert answer.column("status")[0, 0] != DEADLINE
        gate.set()


def test_a_near_deadline_has_no_neighbour_refused(tmp_path: Path, gate: threading.Event) -> None:
    with loaded(tmp_path, usual(large=gated(gate)), SPEC) as model:
        filled(model)
        threading.Timer(0.2, gate.set).start()
        # The last stage works through the table while the batch waits, which the near deadline does not cut short.
        hurried, patient = ask_all(model, [asking(EASY, deadline_us=1_000), asking(HARD)])
        assert not patient.has_error()
        assert patient.column("exit_stage")[0, 0] == 1
        assert hurried.has_error() or hurried.column("exit_stage")[0, 0] == 0


def test_the_log_says_it_once_in_a_while_however_often_the_table_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.0)
    gates = [threading.Event() for _ in range(3)]
    current = [gates[0]]

    def member(rows: np.ndarray) -> np.ndarray:
        current[0].wait(30)
        return large(rows)

    with loaded(tmp_path, fake := usual(large=member), SPEC) as model:
        for gate in gates:
            current[0] = gate
            filled(model)
            (refused,) = ask_all(model, [asking(HARD)])
            assert refused.has_error()
            gate.set()
            eventually(lambda: model._scheduler._run.rows_in_table == 0)
            ask_all(model, [asking(EASY)])
    assert len([line for line in fake.log if "table of deferred rows" in line]) == 2
    assert fake.total("committee_table_full_rows_total") == 3


def test_where_stage_0_fails_a_part_of_a_batch_enters_with_its_own_failures(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.05)
    stages = (dataclasses.replace(SPEC.stages[0], on_failure="answer"), SPEC.stages[1])

    def moody(rows: np.ndarray) -> np.ndarray:
        if (rows[:, 0] == -1).any():
            raise RuntimeError("it cannot take that row")
        return small(rows)

    bad = np.where(np.arange(len(HARD)) == 0, -1, HARD).astype(np.float32)
    members = usual(small=moody, large=gated(gate))
    with loaded(tmp_path, members, dataclasses.replace(SPEC, stages=stages)) as model:
        first = filled(model, rows=14)
        requests = [asking(*[HARD] * 5), asking(bad), asking(HARD)]
        listed = model.execute(requests)
        gate.set()
        many, degraded, fine = map(wait_for, requests, listed or [None] * 3)
        assert not wait_for(first, None).has_error()
    assert many.error().code() == TritonError.UNAVAILABLE
    assert (degraded.column("status")[0, 0], degraded.column("exit_stage")[0, 0]) == (DEGRADED, 1)
    assert (fine.column("status")[0, 0], fine.column("exit_stage")[0, 0]) == (0, 1)


@pytest.mark.parametrize("policy", [{"max_stage": 0}, {"threshold_shift": -1.0}, {"gear": 1}])
def test_requests_that_would_not_enter_the_table_are_answered_while_it_is_full(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.0)
    gears = Gears(cheaper=(Gear(thresholds=(0.0,), mean_cost=1.0),), raise_wait_us=10**9)
    with loaded(tmp_path, usual(large=gated(gate)), dataclasses.replace(SPEC, gears=gears)) as model:
        filled(model, 20)  # more than its limit: such a batch enters when it is empty
        answered, refused = ask_all(model, [asking(HARD, **policy), asking(EASY, min_stage=1)])
        assert answered.column("exit_stage")[:, 0].tolist() == [0]
        assert refused.error().code() == TritonError.UNAVAILABLE
        gate.set()


def test_the_health_check_takes_a_refusal_by_a_full_table_for_a_sign_of_life(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.0)
    with loaded(tmp_path, usual(large=gated(gate)), SPEC) as model:
        filled(model)
        (refused,) = ask_all(model, [asking(HARD)])
        assert any(words in refused.error().message() for words in BUSY_WORDS)
        gate.set()
