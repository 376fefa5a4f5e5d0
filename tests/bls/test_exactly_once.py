"""Whatever members, clients and the clock do, each request is answered once: rightly, flagged or by an error."""

import functools
import itertools
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from orchestrator.bls import breaker, scheduler
from orchestrator.bls.requests import Reply, Responder
from orchestrator.decision import AnsweredRows, Policy
from orchestrator.decision.run import FREE
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec, Gear, Gears, InputSpec, Limits, Member, Stage
from orchestrator.spec.answer import ANSWER_COLUMNS, DEADLINE, DEGRADED
from tests.bls.fixtures import eventually, loaded
from tests.bls.kinds import DERIVING, KINDS, Kind, derive
from tests.fakes.triton import FakeTriton, InferenceResponse, Request, Sender, TritonError

K = 3
MEMBERS = ("small", "medium", "large")
MODELS = (*MEMBERS, DERIVING)
# What the members say of each row: how sure of class 0, 1 and 2. Rows exit at every stage, some by gears only.
SURE, HALF, UNSURE = 9.0, 1.6, 0.2
TOPS = np.array(list(itertools.product((SURE, HALF, UNSURE), (SURE, UNSURE), (SURE,))), np.float32)
LOGITS = {name: np.eye(K, dtype=np.float32)[place] * TOPS[:, [place]] for place, name in enumerate(MEMBERS)}
ROWS = np.concatenate([LOGITS[name] for name in MEMBERS], axis=1)
WIDTH = K * len(MEMBERS)
RECORDS = Records(
    ids=np.arange(len(ROWS)), labels=None, outputs=LOGITS, cost={name: 10.0**n for n, name in enumerate(MEMBERS)}
)
PARAMETERS: tuple[dict[str, int], ...] = (
    *({}, {}, {"deadline_us": 1}, {"deadline_us": 5000}, {"max_stage": 1}, {"min_stage": 1}, {"gear": 1}),
    {"gear": 99},  # no such gear
)
Batch = list[tuple[list[int], dict[str, int]]]
BATCHES: st.SearchStrategy[Batch] = st.lists(
    st.tuples(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=3), st.sampled_from(PARAMETERS)),
    min_size=1,
    max_size=2,
)
# Time limits of member calls: longer than any test, and so short that a call which hangs is given up.
LONG_MS, SHORT_MS = 30_000, 30
HANG, LATE, FAIL, ODD, WORK = "hang", "late", "fail", "odd", "work"


def plan(on_failure: str, limit_ms: int = LONG_MS, kind: Kind = KINDS[0]) -> CascadeSpec:
    """Three stages of one member each, and a gear that few waiting rows shift."""
    member = functools.partial(Member, output="logits", max_batch_size=4)
    gears = Gears(
        cheaper=(Gear(thresholds=(0.5, 0.5), mean_cost=1.0),),
        raise_wait_us=1000, lower_wait_us=500, raise_after_us=0, lower_after_us=1000,
    )  # fmt: skip
    stages = [
        Stage(members=(member(name=name, cost=RECORDS.cost[name]),), threshold=0.9, on_failure=on_failure)
        for name in MEMBERS[:-1]
    ]
    spec = CascadeSpec(
        name="cascade",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(WIDTH,)),),
        classes=K,
        combine="last",
        stages=(
            *stages,
            Stage(members=(member(name="large", cost=RECORDS.cost["large"]),), on_failure=on_failure),
        ),
        limits=Limits(max_batch_size=8, max_deferred_rows=6, workers_per_stage=2, member_timeout_ms=limit_ms),
        gears=gears,
    )
    return kind.plan(spec, WIDTH)


@functools.cache
def replayed(on_failure: str, policy: Policy, place: int) -> AnsweredRows:
    return replay(plan(on_failure, kind=KINDS[place]), RECORDS, policy)


class CountedSender(Sender):
    """Takes every response, however many; the runtime would hide that one was too many."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[InferenceResponse] = []

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.all.append(response)


class Asked(Request):
    """A request about rows of ROWS, and every response that it got."""

    def __init__(self, rows: list[int], parameters: dict[str, int], kind: Kind) -> None:
        super().__init__(kind.tensors(ROWS[rows]), parameters=parameters)
        self.sender: CountedSender = CountedSender()
        self.rows, self.parameters_given = rows, parameters
        self.listed: list[InferenceResponse] = []

    @property
    def responses(self) -> list[InferenceResponse]:
        return [*self.listed, *self.sender.all]


class Members:
    """What each member does with calls, from now on; calls that hang go on when told."""

    def __init__(self) -> None:
        self.does = dict.fromkeys(MODELS, WORK)
        self.goes_on = {name: threading.Event() for name in MODELS}
        self.was_bad: set[str] = set()  # whatever but work was ever told to a member

    def tell(self, name: str, does: str) -> None:
        held = self.goes_on[name]
        self.goes_on[name] = threading.Event()
        self.does[name] = does
        self.was_bad |= {does} - {WORK}
        held.set()

    def member(self, name: str, kind: Kind) -> Callable[[Any], np.ndarray]:
        place = MEMBERS.index(name)

        def said(given: Any) -> np.ndarray:
            does = self._do(name)
            out = kind.rows(given, WIDTH)[:, place * K : (place + 1) * K]
            return np.full(out.shape, "text") if does == ODD else out

        return said

    def derive(self, given: Any) -> dict[str, np.ndarray]:
        does, made = self._do(DERIVING), derive(given)
        # Too few rows, for one that is odd.
        return {name: output[1:] if does == ODD else output for name, output in made.items()}

    def _do(self, name: str) -> str:
        does, goes_on = self.does[name], self.goes_on[name]
        if does == HANG:
            assert goes_on.wait(30), "nobody let it go on"
        if does == LATE:
            time.sleep(0.003)
        if does == FAIL:
            raise RuntimeError("out of order")
        return does


class Runtime(RuleBasedStateMachine):
    """The runtime between clients, members and the clock."""

    patience_s = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.asked: list[Asked] = []
        self.coming: list[Future[None]] = []

    @initialize(
        on_failure=st.sampled_from(["error", "answer"]),
        limit_ms=st.sampled_from([LONG_MS, SHORT_MS]),
        hangs_at_end=st.booleans(),
        place=st.integers(0, len(KINDS) - 1),
    )
    def load(self, on_failure: str, limit_ms: int, hangs_at_end: bool, place: int = 0) -> None:
        self.place, self.kind = place, KINDS[place]
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(breaker, "PROBE_S", 0.02)
        patch.setattr(breaker, "LEAST_CALLS", 4)
        patch.setattr(scheduler, "CANCEL_CHECK_AGE_NS", 0)
        self.before = set(threading.enumerate())
        self.on_failure, self.hangs_at_end, self.members = on_failure, hangs_at_end, Members()
        if limit_ms == SHORT_MS:
            self.members.was_bad.add(HANG)  # a machine that is busy may let calls run out of time, too
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        members: dict[str, Any] = {name: self.members.member(name, self.kind) for name in MEMBERS}
        name = "x" if self.kind.is_one_tensor else None
        self.fake = FakeTriton({**members, DERIVING: self.members.derive}, input_name=name)
        self.unload = self.stack.enter_context(ExitStack())
        self.model: Any = self.unload.enter_context(
            loaded(folder, self.fake, plan(on_failure, limit_ms, self.kind))
        )
        patch.setattr(self.model._workers, "stop", functools.partial(self.model._workers.stop, timeout_s=0.02))
        # As in the server, one thread takes all requests in.
        self.door = self.stack.enter_context(ThreadPoolExecutor(1, "door"))

    # Each of these lets requests arrive, because in most runs some rules are switched off.
    @rule(batch=BATCHES)
    def requests_arrive(self, batch: Batch) -> None:
        requests = [Asked(rows, parameters, self.kind) for rows, parameters in batch]
        self.asked += requests
        self.coming.append(self.door.submit(self._execute, requests))

    @rule(name=st.sampled_from(MODELS), does=st.sampled_from([HANG, LATE, FAIL, ODD, WORK]), batch=BATCHES)
    def a_member_changes(self, name: str, does: str, batch: Batch) -> None:
        self.members.tell(name, does)
        self.requests_arrive(batch)

    @rule(back=st.integers(1, 5), batch=BATCHES)
    def a_client_cancels(self, back: int, batch: Batch) -> None:
        self.requests_arrive(batch)
        self.asked[-min(back, len(self.asked))].cancelled = True

    @rule(ms=st.integers(1, 8), batch=BATCHES)
    def time_passes(self, ms: int, batch: Batch) -> None:
        self.requests_arrive(batch)
        time.sleep(ms / 1000)

    @rule()
    def everything_is_answered_and_let_go(self) -> None:
        self._let_all_work()
        self._wait(lambda: all(one.done() for one in self.coming))
        self._wait(lambda: all(one.responses for one in self.asked))
        self._wait(lambda: self.model._scheduler._run.rows_in_table == 0)

    def _execute(self, requests: list[Asked]) -> None:
        listed = self.model.execute(requests) or [None] * len(requests)
        for request, response in zip(requests, listed, strict=True):
            request.listed += [] if response is None else [response]

    @invariant()
    def no_answer_is_wrong_or_given_twice(self) -> None:
        for one in self.asked:
            assert len(one.responses) <= 1, f"{len(one.responses)} responses to one request"
            for response in one.responses:
                self._check(one, response)

    def teardown(self) -> None:
        """Unloads the model, maybe while members hang."""
        with self.stack:
            if not self.hangs_at_end:
                self.everything_is_answered_and_let_go()
            self._unload()
            for one in self.coming:
                one.result()
            self._wait(lambda: all(one.responses for one in self.asked))
            self.no_answer_is_wrong_or_given_twice()
            run = self.model._scheduler._run
            self._wait(lambda: run.rows_in_table == 0)
            self._wait(lambda: set(threading.enumerate()) <= self.before | set(self.door._threads))
            assert len(self.model._pending) == 0
            assert (run._state == FREE).all()

    def _unload(self) -> None:
        # The server ends a model only when execute has returned. What hangs at later stages hangs on for a while.
        for name in ("small", DERIVING):
            self.members.tell(name, WORK)
        until_s = time.monotonic() + 0.02
        while not all(one.done() for one in self.coming) and time.monotonic() < until_s:
            time.sleep(0.001)
        if not all(one.done() for one in self.coming):
            self._let_all_work()
            self._wait(lambda: all(one.done() for one in self.coming))
        later = threading.Timer(0.05, self._let_all_work)
        later.start()
        try:
            self.unload.close()
        finally:
            later.join()

    def _let_all_work(self) -> None:
        for name in MODELS:
            self.members.tell(name, WORK)

    def _wait(self, condition: Callable[[], object]) -> None:
        eventually(condition, self.patience_s)

    def _check(self, request: Asked, response: InferenceResponse) -> None:
        error = response.error()
        given = request.parameters_given
        if error is not None:
            self._check_error(request, error)
            return
        assert given.get("gear", 0) < 2, "it should have been refused"
        found = {name: response.column(name).reshape(len(request.rows), -1) for name in ANSWER_COLUMNS}
        for place, row in enumerate(request.rows):
            said = {name: column[place] for name, column in found.items()}
            flags = int(said["status"][0]) & (DEGRADED | DEADLINE)
            assert not flags & DEADLINE or "deadline_us" in given
            assert not flags & DEGRADED or (self.members.was_bad and self.on_failure == "answer")
            assert self._is_right(given, row, said) if not flags else self._is_known(row, said), said

    def _is_right(self, given: dict[str, int], row: int, said: dict[str, Any]) -> bool:
        """Whether replay says the same in one of the gears that may have decided."""
        policy: dict[str, Any] = {name: value for name, value in given.items() if name != "deadline_us"}
        gears = (given["gear"],) if "gear" in given else (0, 1)
        answers = [replayed(self.on_failure, Policy(**{**policy, "gear": gear}), self.place) for gear in gears]
        return any(
            all(np.array_equal(getattr(one, name)[row].reshape(-1), said[name]) for name in ANSWER_COLUMNS)
            for one in answers
        )

    def _is_known(self, row: int, said: dict[str, Any]) -> bool:
        """Whether it is what the stage that it names says."""
        stage = int(said["exit_stage"][0])
        one = replayed(self.on_failure, Policy(min_stage=stage, max_stage=stage), self.place)
        names = ("probabilities", "label", "confidence")
        return all(np.array_equal(getattr(one, name)[row].reshape(-1), said[name]) for name in names)

    def _check_error(self, request: Asked, error: TritonError) -> None:
        given, bad = request.parameters_given, self.members.was_bad
        # A batch waits for room in a full table as long as the shortest of its deadlines lets it.
        is_full = "max_deferred_rows" in error.message() and any(
            "deadline_us" in one.parameters_given for one in self.asked
        )
        reasons = {
            # A member that fails, works and fails again between two calls seems to refuse one row.
            TritonError.INVALID_ARG: given.get("gear") == 99 or FAIL in bad,
            TritonError.CANCELLED: request.cancelled,
            TritonError.UNAVAILABLE: bad or "deadline_us" in given or is_full,
            TritonError.INTERNAL: ODD in bad,
        }
        assert reasons[error.code()], f"{error.code()} {error.message()} without a reason"


TestRuntime = Runtime.TestCase
TestRuntime.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def dropped(patch: pytest.MonkeyPatch) -> None:
    send, count = Responder.send, itertools.count(1)
    patch.setattr(Responder, "send", lambda self, reply: next(count) == 3 or send(self, reply))


def doubled(patch: pytest.MonkeyPatch) -> None:
    send = Responder.send

    def twice(self: Responder, reply: Reply) -> None:
        reply.request.request.get_response_sender().send(self.response(reply))
        send(self, reply)

    patch.setattr(Responder, "send", twice)


@pytest.mark.parametrize(("spoil", "words"), [(dropped, "it never came"), (doubled, "2 responses to one request")])
def test_it_finds_answers_that_are_dropped_or_given_twice(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None], words: str
) -> None:
    # By hand, since what depends on time is no reproducible failure to hypothesis.
    machine = Runtime()
    machine.patience_s = 1.0
    machine.load(on_failure="error", limit_ms=LONG_MS, hangs_at_end=True)
    spoil(monkeypatch)
    machine.requests_arrive([([len(ROWS) - 1], {})] * 5)

    def look() -> None:
        machine.everything_is_answered_and_let_go()
        machine.no_answer_is_wrong_or_given_twice()

    with pytest.raises(AssertionError, match=words):
        look()
    with suppress(AssertionError):
        machine.teardown()
