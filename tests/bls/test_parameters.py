"""Requests that came with headers: answered like those without, in the same batch, and never split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bls.requests import RequestReader
from orchestrator.decision import DEFAULT, Policy
from orchestrator.errors import InputError
from tests.bls.fixtures import EASY, HARD, ask_all, large, loaded, rows_of, small, two_stages
from tests.fakes.triton import FakeTriton, Request

HEADERS = {"x-request-id": "7f", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


class Garbled(Request):
    """A request with parameters of any bytes, which the server's module cannot make a text of."""

    def __init__(self, tensors: Any, text: bytes) -> None:
        super().__init__(tensors)
        self.text = text

    def parameters(self) -> str:
        return self.text.decode("utf-8")


def test_requests_that_differ_by_headers_are_one_batch_answered_at_once(tmp_path: Path) -> None:
    fake = FakeTriton({"small": small, "large": large})
    requests = [Request({"x": rows_of(EASY)}, parameters={**HEADERS, "X-Number": str(n)}) for n in range(8)]
    with loaded(tmp_path, fake) as model:
        listed = model.execute(requests)
        # Not one was handed to the table, from where answers come by sender.
        assert listed is not None
        assert [answer.column("label")[0, 0] for answer in listed] == [0] * 8
    assert fake.asked[-1] == ("small", 8)
    assert all(request.sender.response is None for request in requests)


def test_headers_beside_wishes_leave_them_as_they_are(tmp_path: Path) -> None:
    requests = [
        Request({"x": rows_of(HARD)}, parameters={**HEADERS, "max_stage": 0}),
        Request({"x": rows_of(EASY)}, parameters={**HEADERS, "min_stage": 1}),
        Request({"x": rows_of(HARD)}, parameters=HEADERS),
    ]
    with loaded(tmp_path, FakeTriton({"small": small, "large": large})) as model:
        answers = ask_all(model, requests)
    assert [answer.column("exit_stage")[0, 0] for answer in answers] == [0, 1, 1]


def test_members_get_no_headers(tmp_path: Path) -> None:
    # The fake's requests of members, like those made here, take no parameters at all: handing some on would raise.
    with loaded(tmp_path, FakeTriton({"small": small, "large": large})) as model:
        answers = ask_all(model, [Request({"x": rows_of(HARD)}, parameters=HEADERS)])
    assert not answers[0].has_error()


def test_the_plans_pattern_decides_what_a_header_is(tmp_path: Path) -> None:
    spec = two_stages(header_pattern="^x-tenant$|^trace_id$")
    requests = [
        Request({"x": rows_of(EASY)}, parameters={name: "1"}) for name in ("X-Tenant", "trace_id", "x-other")
    ]
    with loaded(tmp_path, FakeTriton({"small": small, "large": large}), spec) as model:
        tenant, trace, other = ask_all(model, requests)
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
