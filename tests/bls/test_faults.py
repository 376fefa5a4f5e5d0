"""Faults cost the request they were met with and no other; a row that breaks its batch fails its own request."""

import dataclasses
import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.bls import door
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import PendingRequests, Reply, Responder
from orchestrator.bls.scheduler import Scheduler
from orchestrator.decision import CascadeRun, StageOutcome
from orchestrator.spec import CascadeSpec, FusedPrefix, Limits, Member, Stage
from orchestrator.spec.answer import ANSWER_COLUMNS, DEGRADED
from tests.bls.fixtures import (
    EASY,
    HARD,
    K,
    answers_of,
    ask_all,
    asking,
    eventually,
    large,
    loaded,
    rows_of,
    small,
    two_stages,
    usual,
    wait_for,
)
from tests.fakes.triton import FakeTriton, InferenceResponse, MemberFunction, Request, TritonError


class Garbled(Request):
    """A request whose parameters raise."""

    error: Exception = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    def parameters(self) -> str:
        raise self.error


class Odd(Garbled):
    error = RuntimeError("a fault of our own")


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [(Garbled, TritonError.INVALID_ARG, "UTF-8"), (Odd, TritonError.INTERNAL, "a fault of our own")],
)
def test_a_request_that_cannot_be_read_is_answered_alone(
    tmp_path: Path, kind: type[Request], code: int, words: str
) -> None:
    with loaded(tmp_path, usual()) as model:
        requests = [asking(EASY), kind({"x": rows_of(EASY)}), asking(HARD)]
        first, bad, last = ask_all(model, requests)
    assert bad.error().code() == code
    assert words in bad.error().message()
    assert "/" not in bad.error().message(), "paths are nobody's business"
    assert not first.has_error()
    assert not last.has_error()


def test_a_fault_of_our_own_in_a_worker_is_answered_and_the_worker_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = usual()
    with loaded(tmp_path, fake) as model:
        feed = model._scheduler.feed

        def broken_once(*_: Any) -> Any:
            monkeypatch.setattr(model._scheduler, "feed", feed)
            raise RuntimeError("no such\nthing /srv/models/large/1/model.onnx")

        monkeypatch.setattr(model._scheduler, "feed", broken_once)
        (broken,) = ask_all(model, [asking(HARD)])
        (fine,) = ask_all(model, [asking(HARD)])
        assert model._scheduler._run.rows_in_table == 0
    assert broken.error().code() == TritonError.INTERNAL
    assert "\n" not in broken.error().message()
    assert "/" not in broken.error().message()
    assert any("/srv/models/large/1/model.onnx" in line for line in fake.log)
    assert fine.column("label")[0, 0] == 2


@pytest.mark.parametrize("member", ["small", "large"])
@pytest.mark.parametrize("dtype", ["object", "S4", "U4"])
def test_a_member_that_answers_text_is_named_with_its_stage(tmp_path: Path, member: str, dtype: str) -> None:
    def odd(rows: np.ndarray) -> np.ndarray:
        # Of the right shape.
        return np.full((len(rows), K), b"0.5" if dtype == "object" else "0.5", dtype)

    with loaded(tmp_path, usual(**{member: odd})) as model:
        (said,) = ask_all(model, [asking(HARD)])
        assert model._scheduler._run.rows_in_table == 0
    stage = ["small", "large"].index(member)
    assert said.error().code() == TritonError.UNAVAILABLE
    expected = f"stage {stage} member {member}: output logits holds text, expected numbers; try again"
    assert said.error().message() == expected


TRACE = "\n\nAt:\n  /srv/models/large/1/model.py(12): execute\n"


def test_clients_get_a_members_error_without_its_traceback_and_paths_and_the_log_has_all(tmp_path: Path) -> None:
    def failing(rows: np.ndarray) -> np.ndarray:
        raise ValueError(f"ValueError: no file '/srv/my models/w.bin'{TRACE}")

    fake = usual(large=failing)
    with loaded(tmp_path, fake) as model:
        said = [ask_all(model, [asking(HARD)])[0].error().message() for _ in range(3)]
    assert said == ["stage 1 member large: ValueError: no file 'w.bin'; try again"] * 3
    (line,) = [line for line in fake.log if "large failed" in line]
    assert "/srv/my models/w.bin" in line
    assert "/srv/models/large/1/model.py(12): execute" in line


def test_a_fault_after_rows_left_the_table_does_not_touch_who_took_their_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked = threading.Event(), threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        if asked.is_set():
            gate.wait(10)
        asked.set()
        return large(rows)

    with loaded(tmp_path, usual(large=slow)) as model:
        scheduler = model._scheduler
        settle, fail_batch = scheduler._settle, scheduler.fail_batch
        first, second = (asking(HARD) for _ in range(2))

        def failing(outcome: StageOutcome, errors: dict[int, str]) -> list[Reply]:
            if outcome.stage == 1 and asked.is_set() and not gate.is_set():
                raise RuntimeError("a fault after the rows were fed")
            return settle(outcome, errors)

        def late(*arguments: Any) -> list[Reply]:
            # Between the fault and its handling another request takes the slot that has become free.
            assert model.execute([second]) is None
            replies = fail_batch(*arguments)
            gate.set()
            return replies

        monkeypatch.setattr(scheduler, "_settle", failing)
        monkeypatch.setattr(scheduler, "fail_batch", late)
        assert model.execute([first]) is None
        broken, fine = wait_for(first, None), wait_for(second, None)
        assert scheduler._run.rows_in_table == 0
    assert broken.error().code() == TritonError.INTERNAL
    assert fine.column("label")[0, 0] == 2


# What a row holds where the member at that place cannot take it.
BAD, SPOILT = -50.0, 4.0


def refusing(member: MemberFunction, column: int) -> MemberFunction:
    """A member that answers no batch with a bad row in it, as Triton's ONNX Runtime backend does."""

    def said(rows: np.ndarray) -> Any:
        if (rows[:, column] == BAD).any():
            raise RuntimeError("onnx runtime error 6: indices element out of\n data bounds")
        return member(rows)

    return said


def moody() -> FakeTriton:
    return FakeTriton(
        {
            "small": refusing(small, 0),
            "large": refusing(large, K),
            "other": refusing(small, 1),
            "prefix": refusing(refusing(lambda rows: {"small": small(rows), "large": large(rows)}, 0), K),
        }
    )


def bad(row: np.ndarray, column: int) -> np.ndarray:
    copy = row.copy()
    copy[column] = BAD
    return copy


def answers(
    tmp_path: Path, spec: CascadeSpec, parts: list[np.ndarray]
) -> tuple[list[InferenceResponse], FakeTriton]:
    fake = moody()
    with loaded(tmp_path, fake, spec) as model:
        ask_all(model, [asking(HARD)])  # so that every member has answered a row
        fake.asked.clear()
        return ask_all(model, [Request({"x": rows}) for rows in parts]), fake


SPECS = {
    "later_stage_too": two_stages(),
    "two_members": two_stages(
        combine="mean_logit",
        stages=(
            Stage(
                members=tuple(
                    Member(name=name, output="logits", cost=1.0, max_batch_size=16) for name in ("small", "other")
                ),
                threshold=0.9,
            ),
            two_stages().stages[1],
        ),
    ),
    "a_fused_prefix": two_stages(fused_prefix=FusedPrefix(name="prefix", stages=2, max_batch_size=16)),
}
KINDS = {"easy": EASY, "hard": HARD, "bad": bad(EASY, 0), "bad_later": bad(HARD, K)}


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3), min_size=1, max_size=12))
def test_only_requests_with_a_bad_row_fail_and_the_others_get_the_same_bits(
    tmp_path: Path, name: str, requests: list[list[str]]
) -> None:
    spec = SPECS[name]
    parts = [rows_of(*(KINDS[kind] for kind in kinds)) for kinds in requests]
    got, _ = answers(tmp_path, spec, parts)
    for kinds, rows, response in zip(requests, parts, got, strict=True):
        if {"bad", "bad_later"} & set(kinds):
            # The first stage is asked for every row, the later one for those that are left.
            stage, member = (0, "small") if "bad" in kinds else (1, "large")
            says = f"stage {stage} member {member}: onnx runtime error 6: indices element out of data bounds"
            if name == "a_fused_prefix" and response.error().code() == TritonError.UNAVAILABLE:
                says += "; try again"  # the members behind it may not have answered any row
            else:
                assert response.error().code() == TritonError.INVALID_ARG
            assert response.error().message() == says
            continue
        assert not response.has_error()
        ((alone,), _) = answers(tmp_path, spec, [rows])
        for output in ANSWER_COLUMNS:
            np.testing.assert_array_equal(response.column(output), alone.column(output), err_msg=output)


def test_where_the_plan_says_answer_only_the_bad_row_is_degraded(tmp_path: Path) -> None:
    spec = two_stages()
    lenient = dataclasses.replace(spec.stages[1], on_failure="answer")
    rows = rows_of(HARD, bad(HARD, K), HARD)
    ((answer,), fake) = answers(tmp_path, dataclasses.replace(spec, stages=(spec.stages[0], lenient)), [rows])
    assert answer.column("status")[:, 0].tolist() == [0, DEGRADED, 0]
    assert answer.column("exit_stage")[:, 0].tolist() == [1, 0, 1]
    assert answer.column("label")[:, 0].tolist() == [2, 0, 2]
    assert fake.total("committee_status_total", status="degraded") == 1


def test_where_stage_0_says_answer_a_row_it_cannot_take_goes_on_and_the_others_do_not(tmp_path: Path) -> None:
    spec = two_stages()
    lenient = dataclasses.replace(spec.stages[0], on_failure="answer")
    rows = rows_of(EASY, bad(EASY, 0), EASY)
    ((answer,), fake) = answers(tmp_path, dataclasses.replace(spec, stages=(lenient, spec.stages[1])), [rows])
    assert answer.column("status")[:, 0].tolist() == [0, DEGRADED, 0]
    assert answer.column("exit_stage")[:, 0].tolist() == [0, 1, 0]
    assert ("large", 1) in fake.asked


def test_a_bad_row_and_a_row_of_nan_are_each_told_what_is_wrong_with_them(tmp_path: Path) -> None:
    def says(rows: np.ndarray) -> np.ndarray:
        return np.where(rows[:, :1] == SPOILT, np.float32(np.nan), small(rows))

    fake = usual(small=refusing(says, 0))
    rows = [EASY, bad(EASY, 0), np.full_like(EASY, SPOILT)]
    good, broken, nan = answers_of(tmp_path, *[asking(row) for row in rows], fake=fake)
    assert not good.has_error()
    assert broken.error().message().startswith("stage 0 member small: onnx runtime error 6")
    assert nan.error().message().startswith("stage 0 member small: output holds NaN")


def test_further_calls_are_counted_and_a_member_that_is_not_there_gets_none(tmp_path: Path) -> None:
    parts = [rows_of(row) for row in (EASY, EASY, EASY, bad(EASY, 0), EASY, EASY, EASY, EASY)]
    _, fake = answers(tmp_path, two_stages(), parts)
    assert fake.asked == [("small", n) for n in (8, 1, 8, 4, 2, 2, 1, 1, 4, 1, 1)]
    assert fake.total("committee_asked_again_total", member="small") == 9
    assert fake.total("committee_member_failures_total", member="small") == 1
    assert fake.total("committee_failed_rows_total") == 1
    gone = FakeTriton({"large": large})
    refused = answers_of(tmp_path, *[Request({"x": rows}) for rows in parts], fake=gone)
    assert all(one.error().message() == "stage 0 member small: " + NOT_READY for one in refused)
    assert gone.asked == [("small", 8)]
    assert gone.total("committee_asked_again_total") == 0


NOT_READY = "Failed for execute the inference request. Model 'small' is not ready.; try again"


# Where an error of ours may come up while requests are answered that their thread has popped already.
STEPS = {
    "refusing": (Responder, "_error"),
    "answering": (Responder, "response"),
    "early": (Responder, "early_responses"),
    "sending": (Responder, "send"),
    "settling": (Scheduler, "_settle"),
    "failing": (Scheduler, "_fail"),
    "counting": (Counters, "refused"),
    "adding": (PendingRequests, "add"),
    "storing": (PendingRequests, "_count"),
    "timing": (Counters, "latencies"),
    "giving_up": (Scheduler, "_give_up"),
    "dropping": (CascadeRun, "drop"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_an_error_while_requests_are_answered_leaves_none_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, at: int, is_after: bool, times: int
) -> None:
    monkeypatch.setattr(door, "MOST_WAIT_S", 0.0)
    kind, name = STEPS[step]
    does, calls, gate = getattr(kind, name), itertools.count(1), threading.Event()

    def failing_once(self: object, *arguments: Any, **named: Any) -> Any:
        is_hit = at <= next(calls) < at + times
        if is_hit and not is_after:
            raise MemoryError("no memory")
        found = does(self, *arguments, **named)
        if is_hit:
            raise MemoryError("no memory")
        return found

    def last(rows: np.ndarray) -> np.ndarray:
        gate.wait(10)
        if (rows[:, K] == BAD).any():
            raise RuntimeError("it cannot take that row")
        return large(rows)

    with loaded(tmp_path, usual(large=last), two_stages(limits=Limits(max_deferred_rows=3))) as model:
        batches = [
            [asking(HARD), asking(bad(HARD, K)), asking(EASY)],
            [asking(HARD, deadline_us=20_000), asking(HARD), asking(EASY, EASY), asking(HARD)],
            [asking(bad(HARD, K), HARD), asking(EASY, max_stage=0), asking(HARD, deadline_at_us=1)],
        ]
        monkeypatch.setattr(kind, name, failing_once)
        listed = [model.execute(requests) or [None] * len(requests) for requests in batches]
        gate.set()
        for requests, responses in zip(batches, listed, strict=True):
            for request, response in zip(requests, responses, strict=True):
                assert wait_for(request, response, 2) is not None
        eventually(lambda: not model._pending and not model._pending._held)
        eventually(lambda: model._scheduler._run.rows_in_table == 0)
