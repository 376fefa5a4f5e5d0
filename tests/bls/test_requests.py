"""Requests as they come: parameters, headers among them, and deadlines that passed in the queue."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bls.model import AdmissionControl
from orchestrator.bls.requests import PendingRequest, RequestReader
from orchestrator.decision import DEFAULT, Policy, policy_from_parameters
from orchestrator.errors import InputError
from tests.bls.fixtures import EASY, HARD, answers_of, ask_all, asking, large, loaded, small, two_stages, usual
from tests.fakes.triton import Request, TritonError

MS = 1_000_000
NOW_US = 1_800_000_000_000_000
DAY_US = 86_400_000_000


def now_us() -> int:
    return time.time_ns() // 1000


def pending(rows: int, policy: Policy, *, arrived_ns: int = 0) -> PendingRequest:
    return PendingRequest(
        token=0, place=0, request=None, tensor=None, rows=None, policy=policy, is_plain=policy.is_plain,
        arrived_ns=arrived_ns, deadline_ns=None, wanted=frozenset(), count=rows, unanswered=rows,
    )  # fmt: skip


def dated(left_us: int) -> Policy:
    return policy_from_parameters({"deadline_at_us": NOW_US + left_us}, 2, now_us=NOW_US)


@given(left=st.integers(-DAY_US, DAY_US), relative=st.none() | st.integers(1, DAY_US))
def test_the_earlier_of_both_deadlines_counts(left: int, relative: int | None) -> None:
    given = {"deadline_at_us": NOW_US + left} | ({} if relative is None else {"deadline_us": relative})
    policy = policy_from_parameters(given, 2, now_us=NOW_US)
    assert policy.deadline_us == (left if relative is None else min(left, relative))
    assert policy.deadline_at_us == NOW_US + left
    assert policy.left_us == left


@pytest.mark.parametrize("at", [NOW_US // 1000, NOW_US // 1_000_000, NOW_US * 1000, NOW_US + 2 * DAY_US])
def test_another_unit_is_refused_and_told_what_the_server_s_clock_says(at: int) -> None:
    with pytest.raises(InputError, match=f"Unix time in microseconds within a day .* says {NOW_US}"):
        policy_from_parameters({"deadline_at_us": at}, 2, now_us=NOW_US)


@pytest.mark.parametrize("at", [True, "soon", 1.5, -1])
def test_what_is_no_point_in_time_is_refused(at: object) -> None:
    with pytest.raises(InputError, match="deadline_at_us"):
        policy_from_parameters({"deadline_at_us": at}, 2, now_us=NOW_US)


def test_a_request_that_came_too_late_is_refused_without_asking_anybody(tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return small(rows)

    fake = usual(small=counting)
    late = asking(HARD, EASY, deadline_at_us=now_us() - 1)
    early = asking(HARD, deadline_at_us=now_us() + 30_000_000)
    with loaded(tmp_path, fake) as model:
        refused, answered, alone = ask_all(model, [late, early, asking(EASY)])
        assert asked == [2]
        (again,) = ask_all(model, [asking(EASY, deadline_at_us=now_us() - 1)])
    assert asked == [2]
    for one in (refused, again):
        assert one.error().code() == TritonError.UNAVAILABLE
        assert one.error().message().startswith("deadline passed")
    assert answered.column("label").tolist() == [[2]]
    assert not alone.has_error()
    assert fake.total("committee_failed_rows_total") == 3


def test_a_point_in_time_cuts_short_what_waits_for_a_later_stage(tmp_path: Path) -> None:
    def slow(rows: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return large(rows)

    with loaded(tmp_path, usual(large=slow)) as model:
        request = asking(HARD, deadline_at_us=now_us() + 100_000)
        (answer,) = ask_all(model, [request])
    assert answer.column("exit_stage").tolist() == [[0]]
    assert answer.column("status").tolist() == [[2]]


def test_where_a_queue_stands_what_can_hardly_be_answered_in_time_is_not_tried() -> None:
    admission = AdmissionControl(64)
    batch = [pending(8, dated(left_us)) for left_us in (-1, 15_000, 25_000)]
    assert admission.too_late(batch, is_backlogged=True, now_ns=0) == batch[:1]
    admission.batch_finished(5000 * MS, asked_ns=0)  # the first call opens sessions, and is nobody's measure
    assert admission.too_late(batch, is_backlogged=True, now_ns=0) == batch[:1]
    admission.batch_finished(10 * MS, asked_ns=0)
    assert admission.too_late(batch, is_backlogged=False, now_ns=0) == batch[:1]
    assert admission.too_late(batch, is_backlogged=True, now_ns=0) == batch[:2]


def test_a_deadline_that_begins_to_count_here_never_came_late() -> None:
    admission = AdmissionControl(64)
    for _ in range(2):
        admission.batch_finished(10 * MS, asked_ns=0)
    both = {"deadline_us": 1, "deadline_at_us": NOW_US + 30_000_000}
    for policy in (Policy(deadline_us=1), policy_from_parameters(both, 2, now_us=NOW_US)):
        assert policy.deadline_us == 1
        assert not admission.too_late([pending(8, policy)], is_backlogged=True, now_ns=0)


def test_who_still_has_time_is_told_that_it_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.bls.model.MOST_IDLE_NS", 60_000 * MS)  # however slow this machine is

    def slow(rows: np.ndarray) -> np.ndarray:
        time.sleep(0.1)
        return small(rows)

    fake = usual(small=slow)
    with loaded(tmp_path, fake) as model:
        most = model.spec.limits.max_batch_size
        for _ in range(2):
            ask_all(model, [asking(EASY) for _ in range(most)])
        undated = [asking(EASY) for _ in range(most - 1)]
        near = asking(EASY, deadline_at_us=now_us() + 150_000)
        refused, *others = ask_all(model, [near, *undated])
    assert refused.error().code() == TritonError.UNAVAILABLE
    assert refused.error().message().startswith("deadline too near")
    assert not any(one.has_error() for one in others)


@pytest.mark.parametrize(
    ("counts", "idle_ms", "stands"),
    [
        *(([8] * 8, 1, True), ([8] * 7, 1, False), ([1] * 64, 1, True)),
        *(([50, 15], 1, True), ([64], 1, False), ([8] * 8, 1000, False)),
    ],
)
def test_a_queue_stands_where_a_batch_of_several_requests_comes_at_once_and_has_no_room_left(
    counts: list[int], idle_ms: int, stands: bool
) -> None:
    admission, batch = AdmissionControl(64), [pending(count, Policy()) for count in counts]
    assert not admission.is_backlogged(batch, now_ns=0)
    admission.batch_finished(5 * MS)
    assert admission.is_backlogged(batch, now_ns=(5 + idle_ms) * MS) is stands


HEADERS = {"x-request-id": "7f", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


class Garbled(Request):
    """A request with parameters of any bytes, which the server's module cannot make a text of."""

    def __init__(self, tensors: Any, text: bytes) -> None:
        super().__init__(tensors)
        self.text = text

    def parameters(self) -> str:
        return self.text.decode("utf-8")


def test_requests_that_differ_by_headers_are_one_batch_answered_at_once(tmp_path: Path) -> None:
    fake = usual()
    requests = [asking(EASY, **HEADERS, **{"X-Number": str(n)}) for n in range(8)]
    with loaded(tmp_path, fake) as model:
        listed = model.execute(requests)
        # Not one was handed to the table, from where answers come by sender.
        assert listed is not None
        assert [answer.column("label")[0, 0] for answer in listed] == [0] * 8
    assert fake.asked[-1] == ("small", 8)
    assert all(request.sender.response is None for request in requests)


def test_headers_beside_parameters_leave_them_as_they_are(tmp_path: Path) -> None:
    requests = [
        asking(HARD, **HEADERS, max_stage=0),
        asking(EASY, **HEADERS, min_stage=1),
        asking(HARD, **HEADERS),
    ]
    answers = answers_of(tmp_path, *requests)
    # Requests to members, like those made here, take no parameters at all: handing headers on would raise.
    assert [answer.column("exit_stage")[0, 0] for answer in answers] == [0, 1, 1]


def test_the_plans_pattern_decides_what_a_header_is(tmp_path: Path) -> None:
    spec = two_stages(header_pattern="^x-tenant$|^trace_id$")
    requests = [asking(EASY, **{name: "1"}) for name in ("X-Tenant", "trace_id", "x-other")]
    tenant, trace, other = answers_of(tmp_path, *requests, spec=spec)
    assert not tenant.has_error()
    assert not trace.has_error()
    assert "x-other" in other.error().message()


def read(text: bytes) -> Policy:
    return RequestReader(None, two_stages()).policy_of(Garbled({}, text))


def test_headers_may_hold_any_bytes() -> None:
    assert read(b'{"x-name": "J\xfcrgen", "trace-bin": "\x81\xff"}') is DEFAULT
    assert read(b'{"x-name": "J\xfcrgen", "max_stage": 1}') == Policy(max_stage=1)


@pytest.mark.parametrize(
    "text", [b'{"gear": "\xff"}', b'{"max_st\xffge": 1}', b"\xff", b'{"x-a": "\xff", "gear": "\xff"}']
)
def test_other_parameters_may_not(text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        read(text)


def test_a_misspelt_parameter_beside_garbled_headers_is_named() -> None:
    with pytest.raises(InputError, match="did you mean max_stage"):
        read(b'{"x-name": "\xff", "max_stages": 1}')


def test_parameters_without_headers_are_read_as_ever() -> None:
    reader = RequestReader(None, two_stages())
    assert reader.policy_of(Request({})) is DEFAULT
    assert reader.policy_of(Request({}, parameters={"max_stage": 1})) == Policy(max_stage=1)
    assert json.loads(Request({}, parameters=HEADERS).parameters()) == HEADERS
