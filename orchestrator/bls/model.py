"""The model Triton loads: reads requests, asks stage 0 on the merged batch, answers the sure requests at once."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.member_watch import NOT_LOOKED, MemberWatch
from orchestrator.bls.metrics import Counters, MetricsFlusher
from orchestrator.bls.requests import (
    INTERNAL,
    UNAVAILABLE,
    PendingRequest,
    PendingRequests,
    Reply,
    RequestReader,
    Responder,
    Rows,
)
from orchestrator.bls.scheduler import Scheduler, Workers
from orchestrator.bls.stage0 import Stage0
from orchestrator.decision import CascadeRun
from orchestrator.errors import SpecError
from orchestrator.spec import cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.planned_models import verifies_hashes


def cascade_model(pb_utils: Any) -> "type[CascadeModel]":
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
        pb, folder = self._pb, Path(args["model_repository"])
        spec = cascade_from_path(folder / args["model_version"] / PLAN)
        if spec.name != args["model_name"]:
            message = f"got {spec.name}, expected the model's name {args['model_name']}"
            raise SpecError(PLAN, {"name": message}, fix="render it again with `committee render`")
        verify = verifies_hashes(json.loads(args["model_config"]))
        watch = self._watch = MemberWatch(pb, spec, folder.parent, verify_files=verify)
        # Before anything is started, because other members than planned keep the model from loading.
        watch.load()
        self.spec = spec
        self._reader = RequestReader(pb, spec)
        self._responder = Responder(pb, spec)
        self._metrics = metrics = Counters(spec)
        self._calls = calls = MemberCalls(
            pb, spec, metrics, versions=watch.versions, may_ask_prefix=watch.may_ask_prefix
        )
        run, pending = CascadeRun(spec), PendingRequests()
        self._scheduler = scheduler = Scheduler(spec, run, pending=pending, metrics=metrics)
        self._stage0 = Stage0(
            spec,
            run,
            pending=pending,
            calls=calls,
            scheduler=scheduler,
            metrics=metrics,
            responder=self._responder,
        )
        self._workers = Workers(
            spec, scheduler, calls=calls, metrics=metrics, send=self._send, log=pb.Logger.log_error
        )
        watch.bind(calls, on_fault=self._workers.refuse_all)
        self._flusher = self._start_metrics(args["model_name"])
        # Last, because the server forgets a model whose initialize raises, and its threads would go on.
        self._workers.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers what stage 0 is sure of and keeps the rest.

        Returns the responses that are decided by then, with None for requests that get theirs by sender, later;
        the server takes both in one list. A response by sender is a message of its own between the processes.
        """
        if self._watch.fault not in (None, NOT_LOOKED):
            return self._refuse_all(requests)
        batch, rows, refused = self._reader.read_all(requests)
        if batch and self._watch.fault is not None:
            # Only now is there a row to ask members about, and a server that surely answers.
            self._watch.begin(rows[:1])
            if self._watch.fault is not None:
                return self._refuse_all(requests)
        answered = {place: self._refuse(requests[place], *why) for place, why in refused.items()}
        if batch:
            answered.update(self._answers(batch, rows))
        if self._watch.fault not in (None, NOT_LOOKED):
            # Noticed meanwhile: what the members have just said may be another member's.
            answered = {place: self._responder.error(*self._unavailable()) for place in answered}
        return [answered.get(place) for place in range(len(requests))] if answered else None

    def is_ready(self) -> bool:
        """Whether every member is as planned; the server asks from 26.03 on, and gives it five seconds."""
        return self._watch.is_ready

    def finalize(self) -> None:
        """Lets deferred rows finish and ends the threads."""
        if not hasattr(self, "_workers"):
            return
        self._watch.stop()
        self._workers.stop()
        self._calls.close()
        if self._flusher is not None:
            self._flusher.stop()

    def _answers(self, batch: list[PendingRequest], rows: Rows) -> list[tuple[int, Any]]:
        """The responses that are decided once stage 0 has been asked, each with the place of its request."""
        answered: list[tuple[PendingRequest, Any]] = []
        try:
            answered.extend(self._stage0.answer(batch, rows))
        except Exception as error:  # raising would fail every request, also those answered already
            text = f"{type(error).__name__}: {error}"
            self._pb.Logger.log_error(f"committee: {text}")
            own = self._scheduler.pop_all(batch)
            answered += [
                (one, self._responder.error(f"cascade failed: {text}", INTERNAL))
                for one, is_own in zip(batch, own, strict=True)
                if is_own
            ]
        if self.spec.gears is not None:
            self._scheduler.batch_finished()
        now_ns = time.monotonic_ns()
        self._metrics.latencies([now_ns - one.arrived_ns for one, _ in answered])
        return [(one.place, response) for one, response in answered]

    def _send(self, reply: Reply) -> None:
        if self._watch.fault is not None and reply.columns is not None:
            reply = Reply(reply.request, None, *self._unavailable())
        self._responder.send(reply)

    def _unavailable(self) -> tuple[str, str]:
        return self._watch.refusal(self._watch.fault or NOT_LOOKED), UNAVAILABLE

    def _refuse_all(self, requests: Sequence[Any]) -> list[Any]:
        return [self._refuse(request, *self._unavailable()) for request in requests]

    def _refuse(self, request: Any, message: str, code: str) -> Any:
        if code == INTERNAL:
            self._pb.Logger.log_error(f"committee: {message}")
        self._metrics.refused(self._reader.count_rows(request))
        return self._responder.error(message, code)

    def _start_metrics(self, name: str) -> MetricsFlusher | None:
        flusher = MetricsFlusher(self._pb, self._metrics, model=name)
        try:
            flusher.start()
        except Exception as error:  # a server without metrics still serves
            self._pb.Logger.log_warn(f"committee: no metrics: {error}")
            return None
        return flusher
