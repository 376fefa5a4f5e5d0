"""A member that hangs: its calls are given up at the limit, and rows leave wherever they wait."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bls import breaker as breaker_module
from orchestrator.bls import scheduler as scheduler_module
from orchestrator.bls import workers as workers_module
from orchestrator.bls.model import CascadeModel
from orchestrator.spec import CascadeSpec, FusedPrefix, Limits, Member, Stage
from orchestrator.spec.answer import DEGRADED
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
from tests.fakes.triton import FakeTriton, InferenceResponse, Request, TritonError

LIMIT_MS = 150


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_S", 0.1)
    for module in (scheduler_module, workers_module):
        monkeypatch.setattr(module, "CLOCK_S", 0.02)


class Hanging:
    """A member that answers no batch with a marked row in it until it is let go."""

    def __init__(self, member: Any, *, all_rows: bool = False) -> None:
        self.member, self.all_rows = member, all_rows
        self.gate, self.calls = threading.Event(), 0

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.all_rows or (rows[:, 1] == MARK).any():
            self.gate.wait(30)
        said: np.ndarray = self.member(rows)
        return said


MARK = np.float32(2.0**-20)
MARKED = HARD + np.array([0, MARK, 0, 0, 0, 0], np.float32)


def limited(**changes: Any) -> CascadeSpec:
    limits = {"max_batch_size": 64, "max_deferred_rows": 16, "member_timeout_ms": LIMIT_MS}
    on_failure = changes.pop("on_failure", "error")
    last = dataclasses.replace(two_stages().stages[1], on_failure=on_failure)
    spec = two_stages(stages=(two_stages().stages[0], last))
    return dataclasses.replace(spec, limits=Limits(**limits | changes))


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    member = Hanging(large)
    yield member
    member.gate.set()


def counted(model: CascadeModel, fake: FakeTriton, name: str, **labels: str) -> float:
    model._flusher.flush()
    return fake.total(name, **labels)


def text_of(response: InferenceResponse) -> str:
    error = response.error()
    assert error is not None
    assert error.code() == TritonError.UNAVAILABLE
    return error.message()


def workers() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("committee-stage")]


def test_a_hung_call_is_given_up_and_the_stage_goes_on_with_another_worker(
    tmp_path: Path, hanging: Hanging
) -> None:
    fake = usual(large=hanging)
    with loaded(tmp_path, fake, limited(workers_per_stage=1)) as model:
        begun_s = time.monotonic()
        (lost,) = ask_all(model, [asking(MARKED)])
        assert time.monotonic() - begun_s >= LIMIT_MS / 1000
        assert text_of(lost) == f"stage 1 member large: no answer within {LIMIT_MS} ms; try again"
        (fine,) = ask_all(model, [asking(HARD)])
        assert fine.column("label")[0, 0] == 2
        assert counted(model, fake, "committee_calls_given_up_total", stage="1", member="large") == 1
        assert counted(model, fake, "committee_calls_out", member="large") == 1
        assert len(workers()) == 2
        assert model._scheduler._run.rows_in_table == 0
        hanging.gate.set()
        eventually(lambda: counted(model, fake, "committee_calls_out", member="large") == 0)
        eventually(lambda: len(workers()) == 1)
    who = "committee: stage 1 member large: call "
    said = [
        f"given up: no answer about 1 rows within {LIMIT_MS} ms; 1 out",
        "that was given up has returned; 0 out",
    ]
    assert [line for line in fake.log if line.startswith(who)] == [who + words for words in said]


def test_where_the_plan_says_answer_rows_of_a_hung_member_are_degraded(tmp_path: Path, hanging: Hanging) -> None:
    with loaded(tmp_path, usual(large=hanging), limited(on_failure="answer")) as model:
        (answer,) = ask_all(model, [asking(MARKED)])
    assert (answer.column("status")[0, 0], answer.column("exit_stage")[0, 0]) == (DEGRADED, 0)
    assert answer.column("cost")[0, 0] == 11, "it was asked"


@pytest.mark.parametrize("hung", ["large", "other"])
def test_what_other_members_of_the_stage_said_is_kept(tmp_path: Path, hanging: Hanging, hung: str) -> None:
    members = tuple(Member(name=name, output="logits", cost=1.0, max_batch_size=4) for name in ("large", "other"))
    stages = (two_stages().stages[0], Stage(members=members, on_failure="answer"))
    spec = dataclasses.replace(limited(), stages=stages, combine="mean_logit")
    fake = usual(**{"large": large, "other": large, hung: hanging})
    with loaded(tmp_path, fake, spec) as model:
        (answer,) = ask_all(model, [asking(MARKED)])
        assert counted(model, fake, "committee_calls_out", member=hung) == 1
        assert counted(model, fake, "committee_calls_out") == 1
        (again,) = ask_all(model, [asking(HARD)])
    found = [
        (one.column("status")[0, 0], one.column("exit_stage")[0, 0], one.column("label")[0, 0])
        for one in (answer, again)
    ]
    assert found == [(DEGRADED, 1, 2), (0, 1, 2)]


def test_threads_that_are_lost_are_bounded_and_the_stage_then_fails_at_once(tmp_path: Path) -> None:
    hanging = Hanging(large, all_rows=True)
    fake = usual(large=hanging)
    with loaded(tmp_path, fake, limited(workers_per_stage=2)) as model:
        until_s = time.monotonic() + 20
        while counted(model, fake, "committee_breaker_state", member="large") == 0:
            assert time.monotonic() < until_s
            ask_all(model, [asking(HARD) for _ in range(8)])
        out = counted(model, fake, "committee_calls_out")
        assert breaker_module.MOST_LOST <= out <= breaker_module.MOST_LOST + 1
        (refused,) = ask_all(model, [asking(HARD)])
        assert "not asked, most of its calls fail: no answer within" in text_of(refused)
        assert counted(model, fake, "committee_calls_out") <= breaker_module.MOST_LOST + 1
        (fine,) = ask_all(model, [asking(EASY)])
        assert not fine.has_error()
        hanging.gate.set()
        eventually(lambda: counted(model, fake, "committee_breaker_state", member="large") == 0)
        (fine,) = ask_all(model, [asking(HARD)])
        assert fine.column("label")[0, 0] == 2
        eventually(lambda: len(workers()) == 2)
        assert counted(model, fake, "committee_calls_out") == 0


def test_a_row_that_nobody_could_be_asked_about_leaves_at_the_limit(tmp_path: Path, hanging: Hanging) -> None:
    # The one worker is at the member when the other row comes; both have waited long enough at the same time.
    with loaded(tmp_path, usual(large=hanging), limited(workers_per_stage=1)) as model:
        first, second = asking(MARKED), asking(MARKED)
        model.execute([first])
        eventually(lambda: hanging.calls)
        model._workers.calls.give_up = lambda call: None  # as if its answer were just coming
        model.execute([second])
        text = text_of(wait_for(second, None))
        assert text == (
            f"stage 1 member large: not asked within {LIMIT_MS} ms, too many rows wait for it; try again"
        )
        # The backstop: nothing else would answer this one any more.
        text = text_of(wait_for(first, None))
        assert text == f"no answer within {2 * LIMIT_MS} ms, the limit of all stages; try again"
        del model._workers.calls.give_up
        eventually(lambda: model._scheduler._run.rows_in_table == 0)


@pytest.mark.parametrize("waits", ["at_the_member", "for_the_stage"])
def test_a_cancelled_row_leaves_wherever_it_waits(
    tmp_path: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    monkeypatch.setattr(scheduler_module, "CANCEL_CHECK_AGE_NS", 0)
    with loaded(tmp_path, usual(large=hanging), limited(workers_per_stage=1, member_timeout_ms=30_000)) as model:
        first, second = asking(MARKED), asking(MARKED)
        model.execute([first])
        eventually(lambda: hanging.calls)
        model.execute([second])
        gone, stays = (first, second) if waits == "at_the_member" else (second, first)
        gone.cancelled = True
        error = wait_for(gone, None).error()
        assert error is not None
        assert error.code() == TritonError.CANCELLED
        assert stays.sender.response is None
        hanging.gate.set()
        assert not wait_for(stays, None).has_error()
        eventually(lambda: model._scheduler._run.rows_in_table == 0)


def test_all_requests_have_their_turn_when_it_is_asked_who_cancelled(
    tmp_path: Path, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "CANCEL_CHECK_AGE_NS", 0)
    monkeypatch.setattr(scheduler_module, "CANCEL_CHECKS", 2)
    with loaded(tmp_path, usual(large=hanging), limited(workers_per_stage=1, member_timeout_ms=30_000)) as model:
        requests = [asking(MARKED) for _ in range(9)]
        model.execute(requests)
        for request in requests[3:]:
            request.cancelled = True
        for request in requests[3:]:
            error = wait_for(request, None).error()
            assert error is not None
            assert error.code() == TritonError.CANCELLED
        hanging.gate.set()
        assert not any(wait_for(request, None).has_error() for request in requests[:3])


def test_the_server_is_not_asked_about_a_request_while_its_answer_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is asked about is freed with the answer."""
    with loaded(tmp_path, usual(small=small)) as model:
        responder, request = model._responder, asking(HARD)
        inside, leave = threading.Event(), threading.Event()

        def is_cancelled() -> bool:
            inside.set()
            assert leave.wait(10)
            assert request.sender.response is None, "answered while the server was asked about it"
            return False

        monkeypatch.setattr(request, "is_cancelled", is_cancelled)
        (pending,), _, _ = model._reader.read_all([request])
        model._pending.add([pending])
        found: list[bool] = []
        asks = threading.Thread(target=lambda: found.append(responder.is_cancelled(pending)))
        asks.start()
        assert inside.wait(10)
        assert model._pending.pop(pending)
        sends = threading.Thread(
            target=model._workers._send_all, args=([scheduler_module.Reply(pending, None, "no", "INTERNAL")],)
        )
        sends.start()
        time.sleep(0.05)
        assert request.sender.response is None
        leave.set()
        for thread in (asks, sends):
            thread.join(10)
        assert found == [False]
        assert request.sender.done.is_set()
        assert not responder.is_cancelled(pending), "it is not asked about any more"


def executed(model: CascadeModel, *batches: list[Request], timeout_s: float = 20) -> list[InferenceResponse]:
    """The responses to batches that the server's one thread takes one after another."""
    listed: list[list[Any] | None] = []
    thread = threading.Thread(target=lambda: listed.extend(model.execute(batch) for batch in batches), daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert not thread.is_alive(), "the server's thread is not free"
    found = []
    for batch, responses in zip(batches, listed, strict=True):
        for request, response in zip(batch, responses or [None] * len(batch), strict=True):
            found.append(wait_for(request, response))
    return found


def marked(row: np.ndarray) -> np.ndarray:
    return row + np.array([0, MARK, 0, 0, 0, 0], np.float32)


@pytest.mark.parametrize("on_failure", ["error", "answer"])
def test_a_hung_stage_0_frees_the_servers_thread_at_the_limit(tmp_path: Path, on_failure: str) -> None:
    hanging = Hanging(small)
    first, last = limited().stages
    spec = dataclasses.replace(limited(), stages=(dataclasses.replace(first, on_failure=on_failure), last))
    with loaded(tmp_path, fake := usual(small=hanging), spec) as model:
        lost, behind = executed(model, [asking(marked(EASY))], [asking(EASY)])
        assert not behind.has_error()
        if on_failure == "error":
            assert text_of(lost) == f"stage 0 member small: no answer within {LIMIT_MS} ms; try again"
        else:
            assert (lost.column("status")[0, 0], lost.column("exit_stage")[0, 0]) == (DEGRADED, 1)
        assert counted(model, fake, "committee_calls_out", stage="0", member="small") == 1
        hanging.gate.set()
        eventually(lambda: counted(model, fake, "committee_calls_out") == 0)


def test_a_hung_fused_prefix_is_given_up_and_the_members_are_asked(tmp_path: Path) -> None:
    hanging = Hanging(lambda rows: {"small": small(rows), "large": large(rows)})
    spec = dataclasses.replace(limited(), fused_prefix=FusedPrefix(name="prefix", stages=2, max_batch_size=16))
    with loaded(tmp_path, fake := usual(prefix=hanging), spec) as model:
        model._calls.may_ask_prefix = lambda: True
        answers = executed(model, [asking(marked(EASY))], [asking(HARD)])
        assert [answer.column("label")[0, 0] for answer in answers] == [0, 2]
        assert counted(model, fake, "committee_calls_out", member="prefix") == 1
        hanging.gate.set()
        eventually(lambda: counted(model, fake, "committee_calls_out") == 0)


def test_a_first_member_that_hangs_after_many_lone_requests_stops_nobody_for_good(tmp_path: Path) -> None:
    hanging = Hanging(small)
    with loaded(tmp_path, fake := usual(small=hanging), limited()) as model:
        for _ in range(120):
            assert not ask_all(model, [asking(EASY)])[0].has_error()
        lost, *behind = executed(model, *([asking(row)] for row in (marked(EASY), EASY, HARD)))
        assert text_of(lost) == f"stage 0 member small: no answer within {LIMIT_MS} ms; try again"
        assert not any(one.has_error() for one in behind)
        assert counted(model, fake, "committee_calls_given_up_total", stage="0", member="small") == 1
        hanging.gate.set()
        eventually(lambda: counted(model, fake, "committee_calls_out") == 0)
