"""A closed loop whose every answer is compared with replay: what was sent, and what became of each request.

Most clients send single calls. The others use a gRPC stream, where an answer that is given twice can be seen. Each
has a connection of its own, so that all of them feel it when the server ends.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from orchestrator.cli.demo_routes import NEAR_THRESHOLD
from orchestrator.client.error_mapping import NOT_BEGUN
from orchestrator.decision import AnsweredRows, Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEADLINE, DEGRADED
from perf.load.poisson import METHOD, message_from_rows, outputs_from_bytes

_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# A server that comes back is found within half a second, not within gRPC's own two minutes.
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_AFTER_ERROR_S = 0.02
_TOLERANCE = 1e-4
RIGHT, FLAGGED, WRONG, LOST, TWICE = "right", "flagged", "wrong", "lost", "twice"
OUTCOMES = (RIGHT, FLAGGED, WRONG, LOST, TWICE)
Rows = npt.NDArray[np.float32]
Index = npt.NDArray[np.intp]


@functools.cache
def clients_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all clients, in a thread of its own: gRPC complains where several have one each."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="clients", daemon=True).start()
    return loop


class KnownRows:
    """Rows with what plans answer to them by replay; those that rounding may send either way are left out.

    Args:
        images: float32 (n, *dims), by record.
        records: what the members said of the same n rows.
        plans: any of which may be served; the first decides which stage a row needs.
    """

    def __init__(self, images: Rows, records: Records, plans: Sequence[CascadeSpec]) -> None:
        self.images = images
        self._plans = [replay(plan, records) for plan in plans]
        stages = range(len(plans[0].stages))
        # An answer that is flagged is what the stages asked so far say together.
        self._forced = [replay(plans[0], records, Policy(min_stage=stage, max_stage=stage)) for stage in stages]
        near = np.zeros(records.rows, np.bool_)
        for plan, forced in ((plan, forced) for plan in plans for forced in self._forced):
            for part in plan.stages[:-1]:
                near |= np.abs(forced.confidence - (part.threshold or 0)) < NEAR_THRESHOLD
        self.needs = self._plans[0].exit_stage.astype(np.intp)
        self.by_stage = [np.flatnonzero(~near & (self.needs == stage)) for stage in stages]

    def outcome(self, rows: Index, outputs: Mapping[str, npt.NDArray[Any]]) -> str:
        """RIGHT, FLAGGED or WRONG for an answer about some of the rows."""
        found = {name: np.asarray(values).reshape(len(rows), -1) for name, values in outputs.items()}
        if (found["status"] & (DEGRADED | DEADLINE)).any():
            return FLAGGED if self._is_flagged_rightly(rows, found) else WRONG
        return RIGHT if any(_agrees(plan, rows, found).all() for plan in self._plans) else WRONG

    def _is_flagged_rightly(self, rows: Index, found: Mapping[str, npt.NDArray[Any]]) -> bool:
        known = np.zeros(len(rows), np.bool_)
        for answers in (*self._plans, *self._forced):
            known |= _agrees(answers, rows, found)
        return bool(known.all())


def _agrees(answers: AnsweredRows, rows: Index, found: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
    same = (answers.label[rows] == found["label"][:, 0]) & (answers.exit_stage[rows] == found["exit_stage"][:, 0])
    gap = np.abs(answers.probabilities[rows] - found["probabilities"]).max(axis=1)
    return np.asarray(same & (gap < _TOLERANCE), np.bool_)


@dataclass(frozen=True, kw_only=True)
class CheckedRequest:
    """One request: the last stage that one of its rows needs, when it was sent and done, and its outcome.

    `outcome` is one of OUTCOMES or gRPC's name of an error; times are those of the monotonic clock.
    """

    needs: int
    sent_s: float
    done_s: float
    outcome: str
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckedLoad:
    """Keeps clients asking while `running` runs; each request and its outcome is appended to `done`.

    Args:
        address: host:port of gRPC.
        model: asked.
        known: rows to draw from, 1 to `most_rows` a request.
        limit_s: a request with neither answer nor error by then is lost.
        clients: in all, `streams` of which use a gRPC stream.
        pause_s: of each client between two requests.
        mark: written into the first value of rows that need the last stage, too small to change an answer.
        parameters: request parameters, chosen anew for each request.
        deepest: draw rows that need the last stage only.
    """

    address: str
    model: str
    known: KnownRows
    limit_s: float
    input_name: str = "image"
    clients: int = 16
    streams: int = 2
    pause_s: float = 0.02
    most_rows: int = 4
    mark: float = 0.0
    parameters: Callable[[np.random.Generator], Mapping[str, int]] = lambda _: {}
    deepest: bool = False
    done: list[CheckedRequest] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Any:
        """Asks while the block runs, and returns when every request has its outcome."""
        self._stop.clear()
        work = asyncio.run_coroutine_threadsafe(self._everybody(), clients_loop())
        try:
            yield self
        finally:
            self._stop.set()
            work.result(self.limit_s + 30)

    async def _everybody(self) -> None:
        work = (self._stream if seed < self.streams else self._calls for seed in range(self.clients))
        await asyncio.gather(*(client(np.random.default_rng(seed)) for seed, client in enumerate(work)))

    def draw(self, rng: np.random.Generator) -> tuple[Index, bytes]:
        """Rows of a random stage and easier ones, and the request about them."""
        stages = len(self.known.by_stage)
        stage = stages - 1 if self.deepest else int(rng.integers(stages))
        pool = np.concatenate(self.known.by_stage[stage * self.deepest : stage + 1])
        rows = np.append(
            rng.choice(pool, int(rng.integers(self.most_rows))), rng.choice(self.known.by_stage[stage])
        )
        images = self.known.images[rows].copy()
        last = self.known.needs[rows] == len(self.known.by_stage) - 1
        images.reshape(len(rows), -1)[last, 0] += self.mark
        message = message_from_rows(
            self.model, images, input_name=self.input_name, parameters=self.parameters(rng)
        )
        return rows, message

    async def _calls(self, rng: np.random.Generator) -> None:
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            call = channel.unary_unary(METHOD)
            while not self._stop.is_set():
                rows, message = self.draw(rng)
                sent_s = time.monotonic()
                try:
                    answer = await call(message, timeout=self.limit_s)
                except grpc.aio.AioRpcError as error:
                    await self._failed(rows, sent_s, error)
                else:
                    self._note(rows, sent_s, self.known.outcome(rows, outputs_from_bytes(answer)))
                await asyncio.sleep(self.pause_s * (0.5 + rng.random()))

    async def _stream(self, rng: np.random.Generator) -> None:
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            while not self._stop.is_set():
                stream = channel.stream_stream(_STREAM)()
                try:
                    await self._streamed(stream, rng)
                finally:
                    stream.cancel()

    async def _streamed(self, stream: Any, rng: np.random.Generator) -> None:
        """Asks over one stream until it breaks or the load ends."""
        number, answered = 0, set[str]()
        while not self._stop.is_set():
            number += 1
            rows, message = self.draw(rng)
            named = service_pb2.ModelInferRequest(id=str(number)).SerializeToString()
            sent_s = time.monotonic()
            try:
                await asyncio.wait_for(stream.write(message + named), self.limit_s)
                left_s = self.limit_s - (time.monotonic() - sent_s)
                outcome, text = await asyncio.wait_for(self._answer(stream, str(number), rows, answered), left_s)
            except asyncio.TimeoutError:
                self._note(rows, sent_s, LOST, "no answer on the stream")
                return
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                await self._failed(rows, sent_s, error)
                return
            self._note(rows, sent_s, outcome, text)
            await asyncio.sleep(self.pause_s * (0.5 + rng.random()))

    async def _answer(self, stream: Any, number: str, rows: Index, answered: set[str]) -> tuple[str, str]:
        while True:
            read = await stream.read()
            if read is grpc.aio.EOF:
                return "UNAVAILABLE", "the stream was closed"
            answer = service_pb2.ModelStreamInferResponse.FromString(read)
            response = answer.infer_response
            if answer.error_message:
                return _code_from_text(answer.error_message), answer.error_message
            if response.id in answered:
                self._note(rows, time.monotonic(), TWICE, f"request {response.id}")
                continue
            answered.add(response.id)
            if response.id == number:
                return self.known.outcome(rows, outputs_from_bytes(response.SerializeToString())), ""

    async def _failed(self, rows: Index, sent_s: float, error: Any) -> None:
        code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "UNAVAILABLE"
        text = str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else "the stream was closed"
        if text == NOT_BEGUN:  # no server has said so
            code = "UNAVAILABLE"
        # The only deadline a request has in gRPC is ours.
        self._note(rows, sent_s, LOST if code == "DEADLINE_EXCEEDED" else code, text)
        await asyncio.sleep(_AFTER_ERROR_S)

    def _note(self, rows: Index, sent_s: float, outcome: str, text: str = "") -> None:
        needs = int(self.known.needs[rows].max())
        done_s = time.monotonic()
        self.done.append(CheckedRequest(needs=needs, sent_s=sent_s, done_s=done_s, outcome=outcome, text=text))


def _code_from_text(text: str) -> str:
    """A stream's errors carry no code, so words of Triton's and of the runtime's say it."""
    if "unknown model" in text:
        return "NOT_FOUND"
    return "UNAVAILABLE" if "try again" in text or "unavailable" in text.lower() else "INTERNAL"


def counted(requests: Iterable[CheckedRequest]) -> dict[str, int]:
    """How many requests had each outcome; those of OUTCOMES always, errors by code where there were any."""
    found = Counter(one.outcome for one in requests)
    return {name: found.pop(name, 0) for name in OUTCOMES} | dict(sorted(found.items()))
