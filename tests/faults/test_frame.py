"""The frame finds what it is there to find: answers that are wrong, lost or given twice, and late recoveries."""

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from orchestrator.planner.replay import replay
from orchestrator.recording.job import records_of
from orchestrator.repository.index import plan_of
from orchestrator.rows.digits import digits_split
from orchestrator.spec.answer import ANSWER_COLUMNS, DEGRADED
from perf.load.checked import FLAGGED, RIGHT, WRONG, CheckedLoad, CheckedRequest, KnownRows, counted
from perf.routes.obedient import COMMITTED, ONNX_MEMBERS
from tests.faults import frame
from tests.faults.__main__ import page_from_results
from tests.faults.frame import FaultResult, FaultRow
from tests.faults.injections import ordered
from tests.faults.matrix import ROWS

PLAN = plan_of(COMMITTED, "digits_cascade")


@pytest.fixture(scope="module")
def known() -> KnownRows:
    records = records_of(COMMITTED, list(ONNX_MEMBERS), "digits:test")
    rows = KnownRows(digits_split("test").images, records, [PLAN])
    rows.answers = replay(PLAN, records)  # type: ignore[attr-defined]
    return rows


def outputs(known: KnownRows, rows: Any) -> dict[str, Any]:
    answers = known.answers  # type: ignore[attr-defined]
    return {name: np.array(getattr(answers, name)[rows]) for name in ANSWER_COLUMNS}


def test_an_answer_is_right_wrong_or_flagged(known: KnownRows) -> None:
    rows = np.append(known.by_stage[0][:2], known.by_stage[-1][:1])
    found = outputs(known, rows)
    assert known.outcome(rows, found) == RIGHT
    assert known.outcome(rows[[1, 0, 2]], found) == WRONG
    assert known.outcome(rows, found | {"status": found["status"] | DEGRADED}) == FLAGGED
    other = found["probabilities"][:, ::-1]
    assert known.outcome(rows, found | {"probabilities": other, "status": found["status"] | DEGRADED}) == WRONG


class FakeCascade(grpc.GenericRpcHandler):
    """Answers as replay does, but for one call in five, which it spoils; streams get that answer twice."""

    def __init__(self, known: KnownRows, spoil: str) -> None:
        self.known, self.spoil, self.calls = known, spoil, 0

    def service(self, details: Any) -> Any:
        if details.method.endswith("ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self.stream)
        return grpc.unary_unary_rpc_method_handler(self.unary)

    def answer(self, message: bytes) -> Any:
        request = service_pb2.ModelInferRequest.FromString(message)
        images = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, 1, 8, 8)
        rows = [int(np.flatnonzero((self.known.images == one).all(axis=(1, 2, 3)))[0]) for one in images]
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, values in outputs(self.known, rows).items():
            array = values.reshape(len(rows), -1)
            answer.outputs.add(name=name, datatype=ANSWER_COLUMNS[name].triton_dtype, shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer

    def unary(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        if self.calls % 5 == 0:
            if self.spoil == "lost":
                time.sleep(1.5)
            if self.spoil == "UNAVAILABLE":
                context.abort(grpc.StatusCode.UNAVAILABLE, "member is gone, try again")
        answer = self.answer(message)
        if self.calls % 5 == 0 and self.spoil == "wrong":
            answer.raw_output_contents[1] = answer.raw_output_contents[1][::-1]
        return bytes(answer.SerializeToString())

    def stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            answer = service_pb2.ModelStreamInferResponse(infer_response=self.answer(message))
            yield bytes(answer.SerializeToString())
            if self.spoil == "twice":
                yield bytes(answer.SerializeToString())


@contextmanager
def fake(known: KnownRows, spoil: str) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers([FakeCascade(known, spoil)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("spoil", ["nothing", "wrong", "lost", "twice", "UNAVAILABLE"])
def test_what_a_server_spoils_is_counted(known: KnownRows, spoil: str) -> None:
    with fake(known, spoil) as address:
        load = CheckedLoad(address=address, model="any", known=known, limit_s=1.0, clients=4, streams=1)
        with load.running():
            until_s = time.monotonic() + 20
            while len(load.done) < 100 and time.monotonic() < until_s:
                time.sleep(0.05)
    counts = counted(load.done)
    assert counts[RIGHT] > 0
    bad = {name for name, count in counts.items() if count and name != RIGHT}
    assert bad == ({spoil} - {"nothing"})


def request(outcome: str, done_s: float, needs: int = 0) -> CheckedRequest:
    return CheckedRequest(needs=needs, sent_s=done_s, done_s=done_s, outcome=outcome, text="words")


def test_service_is_whole_from_the_last_request_that_was_not_right(known: KnownRows) -> None:
    now_s = time.monotonic() - 10
    load = CheckedLoad(address="", model="", known=known, limit_s=1.0)
    load.done.extend(request(RIGHT, now_s + 0.1 * n, n % len(known.by_stage)) for n in range(80))
    load.done.append(request("UNAVAILABLE", now_s + 2.0))
    assert frame._whole(load, now_s, 20) == pytest.approx(2.0)
    load.done.append(request("UNAVAILABLE", time.monotonic()))
    assert frame._whole(load, now_s, 10.5) is None


def test_what_a_row_breaks_is_said(known: KnownRows) -> None:
    bed: Any = SimpleNamespace(complaints=["said by the fault"])
    row = FaultRow(name="row", says="it breaks", inject=ordered("fail"), spared=1, flags=True)
    done = [request(outcome, 1.0) for outcome in (RIGHT, "lost", "wrong", "twice", "INTERNAL")]
    found = frame._faults_of(row, bed, done, 6.0, 5.0)
    assert found == [
        "said by the fault", "1 lost", "1 wrong", "1 twice", "1 INTERNAL: words",
        "4 requests harmed that had no need of the member", "no answer was flagged",
        "whole after 6.0 s, 5.0 allowed",
    ]  # fmt: skip
    fine = dataclasses.replace(row, flags=False)
    quiet: Any = SimpleNamespace(complaints=[])
    assert frame._faults_of(fine, quiet, done[:1], 0.0, 5.0) == []
    page = page_from_results(
        [
            FaultResult(row=row, counts=counted(done), whole_s=6.0, faults=tuple(found)),
            FaultResult(row=fine, counts=counted(done[:1]), whole_s=0.0, faults=()),
        ],
        triton="v",
    )
    assert "| it breaks | 5 | 1 | 0 | 1 | 1 | 1 | INTERNAL 1 | 6.0 | **no** |" in page
    assert "1 of 2 rows kept" in page
    assert "- it breaks (`row`): said by the fault; 1 lost" in page


def test_the_matrix_has_all_rows_once() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names)) >= 24
