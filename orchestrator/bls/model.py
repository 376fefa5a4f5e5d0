"""The model Triton loads: reads requests, asks stage 0 on the merged batch, answers the sure rows at once."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bls.member_calls import MemberCalls, merged
from orchestrator.bls.member_watch import NOT_LOOKED, MemberWatch
from orchestrator.bls.metrics import Counters, MetricsFlusher
from orchestrator.bls.parameters import ParameterReader
from orchestrator.bls.requests import (
    INTERNAL,
    INVALID,
    UNAVAILABLE,
    PendingRequest,
    Reply,
    error_response,
    safe_response,
    send,
)
from orchestrator.bls.scheduler import Scheduler
from orchestrator.bls.stage0 import Stage0
from orchestrator.bls.tensors import InputReader, Rows
from orchestrator.errors import InputError, SpecError
from orchestrator.spec import cascade_from_path
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.cascade_json import PLAN
from orchestrator.spec.planned_models import verifies_hashes

ALL_OUTPUTS = frozenset(ANSWER_COLUMNS)
NO_ROWS: Rows = np.zeros(0)


def cascade_model(pb_utils: Any) -> type[CascadeModel]:
    """The class Triton looks for, bound to the server's Python module."""

    class TritonPythonModel(CascadeModel):
        _pb = pb_utils

    return TritonPythonModel


class CascadeModel:
    """A cascade or ensemble as one Triton model, in default (not decoupled) mode."""

    _pb: Any

    def initialize(self, args: dict[str, str]) -> None:
        """Reads cascade.json beside the model and starts the threads.

        Raises:
            SpecError: the file cannot be used; the server shows the message and the model stays unloaded.
        """
        folder = Path(args["model_repository"])
        spec = cascade_from_path(folder / args["model_version"] / PLAN)
        if spec.name != args["model_name"]:
            message = f"got {spec.name}, expected the model's name {args['model_name']}"
            raise SpecError("cascade.json", {"name": message}, fix="render it again with `committee render`")
        verify = verifies_hashes(json.loads(args["model_config"]))
        self._planned = MemberWatch(self._pb, spec, folder.parent, verify_files=verify)
        self._planned.load()
        self.spec = spec
        self._tokens = itertools.count()
        self._parameters = ParameterReader(spec)
        self._reader = InputReader(self._pb, spec)
        self._counters = Counters(spec)
        planned = self._planned
        self._calls = MemberCalls(
            self._pb, spec, self._counters, versions=planned.versions, may_ask_lead=lambda: planned.may_ask_lead
        )
        self._scheduler = Scheduler(
            spec, self._calls, counters=self._counters, send=self._send, log=self._pb.Logger.log_error
        )
        self._first = Stage0(self._pb, spec, calls=self._calls, scheduler=self._scheduler, counters=self._counters)
        planned.bind(self._calls, on_fault=self._scheduler.refuse_all)
        self._flusher = self._start_metrics(args["model_name"])
        self._scheduler.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers what stage 0 is sure of and pools the rest.

        Returns the answers that are decided by then, with None for requests that get theirs by sender, later; the
        server takes both kinds in one list. An answer by sender is a message of its own between the processes.
        """
        listed: list[Any] = [None] * len(requests)
        taken = self._take_in(requests, listed)
        if taken is None:
            return [self._refusal(request, *self._unavailable()) for request in requests]
        batch, rows = taken
        replies: list[Reply] = []
        if batch:
            try:
                self._first.answer(batch, rows, listed=listed, replies=replies)
            except Exception as error:  # raising would fail every request, also those answered already
                self._pb.Logger.log_error(f"committee: {type(error).__name__}: {error}")
                text = f"cascade failed: {type(error).__name__}: {error}"
                replies += [Reply(one, None, text, INTERNAL) for one in self._scheduler.claim(batch)]
            if self.spec.gears is not None:
                self._scheduler.left()
        for reply in replies:
            listed[reply.pending.place] = safe_response(self._pb, reply)
        now_ns = time.monotonic_ns()
        self._counters.latencies([now_ns - one.arrived_ns for one in batch if listed[one.place] is not None])
        if self._planned.fault not in (None, NOT_LOOKED):
            # Noticed meanwhile: what the members have just said may be another member's.
            listed = [None if one is None else error_response(self._pb, *self._unavailable()) for one in listed]
        return listed if any(response is not None for response in listed) else None

    def is_ready(self) -> bool:
        """Whether every member is as planned; the server asks from 26.03 on, and gives it five seconds."""
        return self._planned.is_ready

    def finalize(self) -> None:
        """Lets deferred rows finish and ends the threads."""
        if not hasattr(self, "_scheduler"):
            return
        self._planned.stop()
        self._scheduler.stop()
        self._calls.close()
        if self._flusher is not None:
            self._flusher.stop()

    # -- steps of execute -------------------------------------------------------------------------

    def _take_in(self, requests: Sequence[Any], listed: list[Any]) -> tuple[list[PendingRequest], Rows] | None:
        """Valid requests and all their rows, refusals in the list; None while the members are not as planned."""
        if self._planned.fault not in (None, NOT_LOOKED):
            return None
        batch, rows = self._read_all(requests, listed)
        if batch and self._planned.fault == NOT_LOOKED:
            self._planned.begin(rows[:1])
        return None if batch and self._planned.fault is not None else (batch, rows)

    def _read_all(self, requests: Sequence[Any], listed: list[Any]) -> tuple[list[PendingRequest], Rows]:
        """Valid requests and all their rows; refusals go into the list: a bad one never harms its neighbours."""
        now_ns = time.monotonic_ns()
        batch: list[PendingRequest] = []
        for place, request in enumerate(requests):
            try:
                batch.append(self._read(request, place, now_ns=now_ns))
            except InputError as error:
                listed[place] = self._refusal(request, error)
            except UnicodeDecodeError:
                listed[place] = self._refusal(request, InputError("request", got="bytes that are not UTF-8"))
            except Exception as error:  # raising would fail the whole batch, and the server would keep it
                text = f"cascade failed: {type(error).__name__}: {error}"
                self._pb.Logger.log_error(f"committee: {text}")
                listed[place] = self._refusal(request, text, INTERNAL)
        rows = merged([one.rows for one in batch]) if batch else NO_ROWS
        if not batch or self._reader.is_finite(rows):
            return batch, rows
        good = []
        for one in batch:
            try:
                self._reader.require_finite(one.rows)
                good.append(one)
            except InputError as error:
                listed[one.place] = self._refusal(one.request, error)
        return good, merged([one.rows for one in good]) if good else NO_ROWS

    def _read(self, request: Any, place: int, *, now_ns: int) -> PendingRequest:
        policy = self._parameters.read(request)
        tensor, rows = self._reader.read(request)
        names = request.requested_output_names()
        # Nearly every request wants all, and one set for them is cheaper than one each.
        wanted = ALL_OUTPUTS if len(names) in (0, len(ALL_OUTPUTS)) else frozenset(names)
        count = len(rows)
        return PendingRequest(
            next(self._tokens), place, request, tensor, rows, policy, now_ns, wanted, count, count
        )

    # -- small things -----------------------------------------------------------------------------

    def _send(self, reply: Reply) -> None:
        if self._planned.fault is not None and reply.columns is not None:
            reply = Reply(reply.pending, None, *self._unavailable())
        send(self._pb, reply)

    def _unavailable(self) -> tuple[str, str]:
        return self._planned.refusal(self._planned.fault or NOT_LOOKED), UNAVAILABLE

    def _refusal(self, request: Any, error: InputError | str, code: str = INVALID) -> Any:
        self._counters.refused(self._reader.count(request))
        return error_response(self._pb, str(error), code)

    def _start_metrics(self, name: str) -> MetricsFlusher | None:
        flusher = MetricsFlusher(self._pb, self._counters, model=name)
        try:
            flusher.start()
        except Exception as error:  # a server without metrics still serves
            self._pb.Logger.log_warn(f"committee: no metrics: {error}")
            return None
        return flusher
