"""The model Triton loads: reads requests, asks stage 0 on the merged batch, answers the sure rows at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bls.calls import MemberCalls, merged
from orchestrator.bls.counters import Counters, MetricsFlusher
from orchestrator.bls.pending import (
    INTERNAL,
    INVALID,
    Pending,
    Reply,
    error_response,
    safe_response,
    send,
)
from orchestrator.bls.scheduler import Scheduler
from orchestrator.bls.tensors import OUTPUTS, Reader, Rows, columns_of
from orchestrator.decision import Outcome, arrivals_from_policies, policy_from_parameters
from orchestrator.errors import InputError, SpecError
from orchestrator.spec import CascadeSpec, cascade_from_path

MODEL_FILES = ("model.onnx", "model.plan")


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
        spec = cascade_from_path(folder / args["model_version"] / "cascade.json")
        if spec.name != args["model_name"]:
            message = f"got {spec.name}, expected the model's name {args['model_name']}"
            raise SpecError("cascade.json", {"name": message}, fix="render it again with `committee render`")
        config = json.loads(args["model_config"])
        if config.get("parameters", {}).get("verify_hashes", {}).get("string_value") != "no":
            self._verify_hashes(spec, folder.parent)
        self.spec = spec
        self._tokens = itertools.count()
        self._gear_count = 1 if spec.gears is None else 1 + len(spec.gears.cheaper)
        self._reader = Reader(self._pb, spec)
        self._counters = Counters(spec)
        self._calls = MemberCalls(self._pb, spec)
        self._scheduler = Scheduler(
            spec, self._calls, counters=self._counters, send=self._send, log=self._pb.Logger.log_error
        )
        self._flusher = self._start_metrics(args["model_name"])
        self._scheduler.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers what stage 0 is sure of and pools the rest.

        Returns the answers that are decided by then, with None for requests that get theirs by sender, later; the
        server takes both kinds in one list. An answer by sender is a message of its own between the processes.
        """
        arrived_ns = time.monotonic_ns()
        batch, refused = self._read_all(requests, arrived_ns)
        if not batch:
            return [self._refusal(refused[index]) for index in range(len(requests))]
        # Taken before anything can be answered: an answer lets go of its request's input.
        inputs = [(one.tensor, one.rows) for one in batch]
        try:
            self._scheduler.expect(batch)
            outcome, claimed, replies = self._first_stage(batch, inputs)
        except Exception as error:  # raising would fail every request, also those answered already
            self._pb.Logger.log_error(f"committee: {type(error).__name__}: {error}")
            text = f"cascade failed: {type(error).__name__}: {error}"
            left = self._scheduler.take_back(batch)
            outcome, claimed, replies = None, [], [Reply(one, None, text, INTERNAL) for one in left]
        if outcome is not None and claimed:
            replies = [*replies, *self._replies(claimed, outcome)]
        self._count_latencies([reply.pending for reply in replies])
        return self._listed(len(requests), batch, replies=replies, refused=refused)

    def is_ready(self) -> bool:
        """Whether every member is; the server asks from 26.03 on."""
        try:
            return all(self._pb.is_model_ready(member.name) for member in self.spec.members)
        except Exception:  # asked before the server is up: then it is not ready
            return False

    def finalize(self) -> None:
        """Lets deferred rows finish and ends the threads."""
        if not hasattr(self, "_scheduler"):
            return
        self._scheduler.stop()
        self._calls.close()
        if self._flusher is not None:
            self._flusher.stop()

    # -- steps of execute -------------------------------------------------------------------------

    def _read_all(self, requests: Sequence[Any], now_ns: int) -> tuple[list[Pending], dict[int, str]]:
        """Valid requests, and why the others are refused, by index: a bad one never harms its neighbours."""
        batch: list[Pending] = []
        refused: dict[int, str] = {}
        for index, request in enumerate(requests):
            try:
                batch.append(self._read(request, now_ns))
            except InputError as error:
                refused[index] = str(error)
        if refused:
            self._counters.refused(sum(self._reader.count(requests[index]) for index in refused))
        return batch, refused

    def _read(self, request: Any, now_ns: int) -> Pending:
        text = request.parameters()
        parameters = json.loads(text) if text else {}
        policy = policy_from_parameters(parameters, len(self.spec.stages), self._gear_count)
        tensor, rows = self._reader.read(request)
        wanted = tuple(request.requested_output_names()) or tuple(OUTPUTS)
        return Pending(next(self._tokens), request, tensor, rows, policy, now_ns, wanted, len(rows), len(rows))

    def _first_stage(
        self, batch: list[Pending], inputs: list[tuple[Any, Rows]]
    ) -> tuple[Outcome | None, list[Pending], list[Reply]]:
        self._scheduler.wait_at_door(sum(one.count for one in batch))
        here = [index for index, one in enumerate(batch) if not one.answered]
        if not here:
            return None, [], []
        live = [batch[index] for index in here]
        rows = merged([inputs[index][1] for index in here])
        self._counters.taken_in(len(rows))
        result = self._calls.ask_first(rows, inputs[here[0]][0] if len(here) == 1 else None)
        arrivals = arrivals_from_policies(
            [one.token for one in live],
            [one.count for one in live],
            policies=[one.policy for one in live],
            now_ns=[one.arrived_ns for one in live],
            default_deadline_us=self.spec.limits.default_deadline_us,
            gear=self._scheduler.gear if self.spec.gears is not None else 0,
        )
        return self._scheduler.admit(live, arrivals, rows=rows, result=result)

    def _listed(
        self, count: int, batch: list[Pending], *, replies: list[Reply], refused: dict[int, str]
    ) -> list[Any] | None:
        """What goes back with the batch, in its order: None for a request whose answer comes by sender."""
        listed: list[Any] = [None] * count
        for index, text in refused.items():
            listed[index] = self._refusal(text)
        places = [index for index in range(count) if index not in refused]
        place_of = {one.token: place for one, place in zip(batch, places, strict=True)}
        for reply in replies:
            listed[place_of[reply.pending.token]] = safe_response(self._pb, reply)
        return None if all(response is None for response in listed) else listed

    def _replies(self, claimed: list[Pending], outcome: Outcome) -> list[Reply]:
        """Replies of claimed requests, as slices of the outcome: nothing is copied per request."""
        replies = []
        tokens = outcome.answers.request
        starts = np.searchsorted(tokens, [one.token for one in claimed])
        columns = list(columns_of(outcome.answers).items())
        for one, start in zip(claimed, starts.tolist(), strict=True):
            end = start + one.count
            replies.append(Reply(one, {name: column[start:end] for name, column in columns}))
        return replies

    # -- small things -----------------------------------------------------------------------------

    def _send(self, reply: Reply) -> None:
        send(self._pb, reply)

    def _refusal(self, text: str) -> Any:
        return error_response(self._pb, text, INVALID)

    def _count_latencies(self, answered: Sequence[Pending]) -> None:
        now = time.monotonic_ns()
        self._counters.latencies([now - one.arrived_ns for one in answered])

    def _start_metrics(self, name: str) -> MetricsFlusher | None:
        flusher = MetricsFlusher(self._pb, self._counters, model=name)
        try:
            flusher.start()
        except Exception as error:  # a server without metrics still serves
            self._pb.Logger.log_warn(f"committee: no metrics: {error}")
            return None
        return flusher

    def _verify_hashes(self, spec: CascadeSpec, repository: Path) -> None:
        """Refuses members other than those the thresholds were fitted on, where their files can be seen."""
        unseen, differ = [], {}
        for member in spec.members:
            path = _newest_model_file(repository / member.name)
            if member.sha256 is None or path is None:
                unseen.append(member.name)
                continue
            if hashlib.sha256(path.read_bytes()).hexdigest() != member.sha256:
                differ[member.name] = f"{path} is not the file the thresholds were fitted on"
        if unseen:
            self._pb.Logger.log_info(f"committee: members not verified: {', '.join(unseen)}")
        if differ:
            fix = "plan again, or set the config parameter verify_hashes to no"
            raise SpecError(f"cascade {spec.name}", differ, fix=fix)


def _newest_model_file(folder: Path) -> Path | None:
    """The file of the highest version, which is the one the server serves by default."""
    if not folder.is_dir():
        return None
    versions = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)
    files = (folder / str(version) / name for version in versions for name in MODEL_FILES)
    return next((path for path in files if path.is_file()), None)
