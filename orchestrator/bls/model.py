"""The model Triton loads: reads requests, asks stage 0 on the merged batch, answers the sure requests at once.

The others wait for later stages in the scheduler's table.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.door import Door
from orchestrator.bls.in_process import InProcess
from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.member_watch import NOT_LOOKED, MemberWatch
from orchestrator.bls.metrics import Counters, MetricsFlusher
from orchestrator.bls.pieces import EVERY_ROW, MemberOutputs
from orchestrator.bls.requests import (
    HOPELESS,
    INTERNAL,
    LATE,
    UNAVAILABLE,
    PendingRequest,
    PendingRequests,
    Reply,
    RequestReader,
    Responder,
)
from orchestrator.bls.rows import AnyRows, Rows, RowTensors, merged
from orchestrator.bls.scheduler import Scheduler
from orchestrator.bls.workers import Workers
from orchestrator.decision import (
    DEFAULT,
    Arrivals,
    CascadeRun,
    EarlyExit,
    StageResult,
    arrivals_from_policies,
    plain_arrivals,
)
from orchestrator.errors import SpecError
from orchestrator.probe import DrainMark, draining_text
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.planned_models import c_strings_of, verifies_hashes

# A deadline must leave stage 0 its usual time twice: once for the batch the request is in, once for whatever else
# delays its answer. With 1 a standing queue is served just in time, and about half of it just too late.
TIMES_STAGE_0 = 2.0
_SMOOTHING = 0.2
# From a backlog the next batch comes as soon as the last one is done, within a moment on a busy machine.
MOST_IDLE_NS = 20_000_000
# A request and its response.
Answered = tuple[PendingRequest, Any]


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
        c_strings = c_strings_of(spec, watch.models)
        self._reader = RequestReader(pb, spec, c_strings)
        run, pending = CascadeRun(spec), PendingRequests()
        self._responder = responder = Responder(pb, spec, pending)
        self._metrics = metrics = Counters(spec)
        self._calls = calls = MemberCalls(
            pb,
            spec,
            metrics,
            versions=watch.versions,
            may_ask_prefix=watch.may_ask_prefix,
            in_process=InProcess(spec, watch.models, metrics=metrics, log=pb.Logger.log_warn),
            c_strings=c_strings,
        )
        self._pending = pending
        # Triton is the parent of the processes that its Python models run in.
        self._drain = DrainMark(spec.name, os.getppid())
        self._scheduler = scheduler = Scheduler(spec, run, pending=pending, metrics=metrics)
        self._stage0 = Stage0(
            spec,
            run,
            pending=pending,
            calls=calls,
            scheduler=scheduler,
            metrics=metrics,
            responder=responder,
            log=pb.Logger.log_warn,
        )
        self._workers = Workers(
            spec,
            scheduler,
            calls=calls,
            metrics=metrics,
            send=self._send,
            is_cancelled=responder.is_cancelled,
            log=pb.Logger.log_error,
        )
        watch.bind(calls, on_fault=self._workers.refuse_all)
        self._flusher = MetricsFlusher(pb, metrics, model=args["model_name"])
        self._flusher.start()
        # Last, because the server forgets a model whose initialize raises, and its threads would go on.
        self._workers.start()
        self._drain.start()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers what stage 0 is sure of and keeps the rest.

        Returns the responses that are decided by then, with None for requests that get theirs by sender, later;
        the server takes both in one list. A response by sender is a message of its own between the processes.
        """
        if self._drain.is_set or self._watch.fault not in (None, NOT_LOOKED):
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
        """Whether it takes requests, every member as planned; asked from 26.03 on, and given five seconds."""
        return not self._drain.is_set and self._watch.is_ready

    def finalize(self) -> None:
        """Lets deferred rows finish and ends the threads."""
        if not hasattr(self, "_workers"):
            return
        self._drain.stop()
        self._watch.stop()
        self._workers.stop()
        self._calls.close()
        self._flusher.stop()

    def _answers(self, batch: list[PendingRequest], rows: AnyRows) -> list[tuple[int, Any]]:
        """The responses that are decided once stage 0 has been asked, each with the place of its request."""
        answered: list[tuple[PendingRequest, Any]] = []
        try:
            answered.extend(self._stage0.answer(batch, rows))
        except Exception as error:  # raising would fail every request, also those answered already
            text = f"{type(error).__name__}: {error}"
            self._pb.Logger.log_error(f"committee: {text}")
            self._scheduler.pop_all(batch)
            sent, own = {one.token for one, _ in answered}, threading.get_ident()
            # Popped by this thread, or never among those that wait.
            lost = [one for one in batch if one.token not in sent and one.popped_by in (None, own)]
            answered += [(one, self._responder.error(f"cascade failed: {text}", INTERNAL)) for one in lost]
        try:
            self._note(answered)
        except Exception as error:  # the answers are there
            self._pb.Logger.log_error(f"committee: {type(error).__name__}: {error}")
        return [(one.place, response) for one, response in answered]

    def _note(self, answered: Sequence[Answered]) -> None:
        """Counts the responses that stage 0 has decided, which are as good as out."""
        self._pending.answered([one.token for one, _ in answered])
        now_ns = time.monotonic_ns()
        self._metrics.latencies([now_ns - one.arrived_ns for one, _ in answered])
        if self.spec.gears is not None:
            self._scheduler.batch_finished()

    def _send(self, reply: Reply) -> None:
        if self._watch.fault is not None and reply.columns is not None:
            reply = Reply(reply.request, None, *self._unavailable())
        self._responder.send(reply)
        try:
            self._pending.answered([reply.request.token])
        except Exception as error:  # raising would have the answer sent again
            self._pb.Logger.log_error(f"committee: {type(error).__name__}: {error}")

    def _unavailable(self) -> tuple[str, str]:
        if self._drain.is_set:
            return draining_text(self.spec.name, self._pending.held), UNAVAILABLE
        return self._watch.refusal(self._watch.fault or NOT_LOOKED), UNAVAILABLE

    def _refuse_all(self, requests: Sequence[Any]) -> list[Any]:
        return [self._refuse(request, *self._unavailable()) for request in requests]

    def _refuse(self, request: Any, message: str, code: str) -> Any:
        if code == INTERNAL:
            self._pb.Logger.log_error(f"committee: {message}")
        response = self._responder.error(message, code)
        try:
            self._metrics.refused(self._reader.count_rows(request))
        except Exception as error:  # raising would fail every request
            self._pb.Logger.log_error(f"committee: metrics: {type(error).__name__}: {error}")
        return response


@dataclass(eq=False)
class Stage0:
    """Takes batches in; called from one thread only, which uses of `run` only what needs no lock."""

    spec: CascadeSpec
    run: CascadeRun
    pending: PendingRequests
    calls: MemberCalls
    scheduler: Scheduler
    metrics: Counters
    responder: Responder
    log: Callable[[str], None]  # writes one line to the server's log

    def __post_init__(self) -> None:
        self._fast_path = self.run.fast_path
        self._has_gears = self.spec.gears is not None
        self._door = Door(self.scheduler, self.log)
        self._admission = AdmissionControl(self.spec.limits.max_batch_size)

    def answer(self, batch: Sequence[PendingRequest], rows: AnyRows) -> Iterator[Answered]:
        """Asks stage 0 and gives the responses that are decided by then; the other requests wait in the table.

        A generator, so that an error of ours later on loses no response that was decided before it. The rows,
        (n, *dims), are those of the batch in order.
        """
        # The server's own tensor, of a lone request, is forwarded without a copy. Inputs are taken before another
        # thread can answer a request, because an answer lets go of its request's input.
        tensor = batch[0].tensor if len(batch) == 1 else None
        has_deadlines = any(one.deadline_ns is not None for one in batch)
        may_shrink = has_deadlines or self._has_gears
        inputs = {one.token: (one.tensor, one.rows) for one in batch} if may_shrink else {}
        self.pending.add(batch)
        if may_shrink:
            yield from self._refuse_late(batch)
            if has_deadlines:
                self.scheduler.watch_deadlines(batch)
            has_room = self._has_room(batch, rows)
            live = [one for one in batch if one in self.pending]
            if 0 < len(live) < len(batch):
                rows = merged([inputs[one.token][1] for one in live])
            batch, tensor = live, inputs[live[0].token][0] if len(live) == 1 else None
        else:
            has_room = self._has_room(batch, rows)
        if not batch:
            self._admission.batch_finished(time.monotonic_ns())
            return
        self.metrics.arrived(len(rows))
        start_ns = time.monotonic_ns()
        outputs = self.calls.ask_stage0(
            rows,
            tensor,
            owners=lambda: np.repeat([one.token for one in batch], [one.count for one in batch]),
        )
        self._admission.batch_finished(time.monotonic_ns(), asked_ns=start_ns)
        if outputs.rows is not None:
            rows = outputs.rows
        result = self._fast_path.stage0(len(rows), outputs.outputs)
        gear = self.scheduler.gear if self._has_gears else 0
        early = self._fast_path.early_exit(result, gear)
        starts = [0] if len(batch) == 1 else [0, *accumulate(one.count for one in batch)][:-1]
        leaves = _leave_early(batch, early.exits, starts)
        if not all(leaves):
            gone = leaves
            if not has_room:
                deferred = self.run.deferred(self._arrivals(batch, gear), result)
                full = self._without_room(batch, rows, leaves, deferred)
                yield from self._turn_away([(batch[place], in_table) for place, in_table in full.items()])
                gone = [is_sure or place in full for place, is_sure in enumerate(leaves)]
            admit = partial(self._admit, batch, rows, result=result, outputs=outputs, gear=gear)
            yield from self._defer(admit, gone)
        sure = [(one, start) for one, start, is_sure in zip(batch, starts, leaves, strict=True) if is_sure]
        yield from self._answer_early(sure, early, has_deadlines=has_deadlines)

    def _defer(self, admit: Callable[..., list[Reply]], gone: Sequence[bool]) -> Iterator[Answered]:
        """Admits the requests that are not gone; gives the responses decided by then."""
        if not all(gone):
            for reply in admit(leaves=gone):
                try:
                    response = self.responder.response(reply)
                except Exception as error:  # it was popped, so nobody else answers it
                    response = self.responder.error(f"cascade failed: {type(error).__name__}: {error}", INTERNAL)
                yield reply.request, response

    def _has_room(self, batch: Sequence[PendingRequest], rows: AnyRows) -> bool:
        # Without the lock, because rows come in through this thread alone: behind its back they only get fewer.
        fits, size_bytes = self.run.rows_in_table + len(rows) <= self._door.room.rows, 0
        if isinstance(rows, RowTensors):
            size_bytes, bytes_in_table = int(rows.sizes_bytes().sum()), self.scheduler.bytes_in_table
            fits = self._door.room.takes(
                len(rows), size_bytes, in_table=self.run.rows_in_table, bytes_in_table=bytes_in_table
            )
        return (fits and not self._door.is_shut) or self._door.has_room(batch, len(rows), size_bytes)

    def _without_room(
        self,
        batch: Sequence[PendingRequest],
        rows: AnyRows,
        leaves: Sequence[bool],
        deferred: npt.NDArray[np.bool_],
    ) -> dict[int, int]:
        """Requests whose deferred rows find the table full, by place, with its rows; others may yet enter it.

        Which rows are deferred, (n,), is for all rows of the batch; a request without any finds room always.
        """
        sizes = rows.sizes_bytes() if isinstance(rows, RowTensors) else np.zeros(len(rows), np.int64)
        in_table, bytes_in_table, start, full = self.run.rows_in_table, self.scheduler.bytes_in_table, 0, {}
        for place, (one, is_sure) in enumerate(zip(batch, leaves, strict=True)):
            own = slice(start, start + one.count)
            start += one.count
            count = 0 if is_sure else int(np.count_nonzero(deferred[own]))
            size_bytes = int(sizes[own][deferred[own]].sum())
            fits = self._door.room.takes(count, size_bytes, in_table=in_table, bytes_in_table=bytes_in_table)
            if not count or fits:
                in_table += count
                bytes_in_table += size_bytes if count else 0
            else:
                full[place] = in_table
        return full

    def _turn_away(self, full: Sequence[tuple[PendingRequest, int]]) -> Iterator[Answered]:
        """Refuses requests that find so many rows in the table."""
        for one, in_table in full:
            response = self.responder.error(self._door.refusal(in_table), UNAVAILABLE)
            if self.scheduler.pop_all([one])[0]:
                yield one, response
                self._door.refused_rows += one.count
                self.metrics.refused(one.count)
                self.metrics.turned_away(one.count)

    def _refuse_late(self, batch: Sequence[PendingRequest]) -> Iterator[Answered]:
        """Looks at the queue in front; refuses requests that came too late to be answered in time."""
        now_ns = time.monotonic_ns()
        is_backlogged = self._admission.is_backlogged(batch, now_ns=now_ns)
        if self._has_gears:
            self.scheduler.batch_started(is_backlogged=is_backlogged)
        for one in self._admission.too_late(batch, is_backlogged=is_backlogged, now_ns=now_ns):
            message = LATE if (one.time_left_ns(now_ns) or 0) <= 0 else HOPELESS
            response = self.responder.error(message, UNAVAILABLE)
            if self.pending.pop(one):
                yield one, response
                self.metrics.refused(one.count)

    def _answer_early(
        self, requests: list[tuple[PendingRequest, int]], early: EarlyExit, *, has_deadlines: bool
    ) -> Iterator[Answered]:
        """The responses of requests that leave as a whole, each given with where its rows begin in the batch.

        With deadlines the clock may have answered some of them already, or do so now.
        """
        if not requests:
            return
        responses = self.responder.early_responses(requests, early)
        popped = [one for one, _ in requests]
        own = self.scheduler.pop_all(popped) if has_deadlines else [self.pending.pop(one) for one in popped]
        for (one, _), response, is_own in zip(requests, responses, own, strict=True):
            if is_own:
                yield one, response
        spans = requests if all(own) else [at for at, is_own in zip(requests, own, strict=True) if is_own]
        status = None
        if early.status is not None and spans:
            status = np.concatenate([early.status[start : start + one.count] for one, start in spans])
        self.metrics.answered_early(sum(one.count for one, _ in spans), status)

    def _admit(
        self,
        batch: Sequence[PendingRequest],
        rows: AnyRows,
        *,
        result: StageResult,
        outputs: MemberOutputs,
        leaves: Sequence[bool],
        gear: int,
    ) -> list[Reply]:
        """Hands the requests that do not leave now to the table; returns replies to those decided by then."""
        unsure = [one for one, is_sure in zip(batch, leaves, strict=True) if not is_sure]
        later: Sequence[Sequence[Rows]] = outputs.later
        errors = outputs.errors
        if len(unsure) < len(batch):
            pick = np.flatnonzero(np.repeat(~np.array(leaves), [one.count for one in batch]))
            rows, result, later = rows[pick], result[pick], [[said[pick] for said in part] for part in later]
            now_at = {EVERY_ROW: EVERY_ROW, **{row: at for at, row in enumerate(pick.tolist() if errors else ())}}
            errors = {(member, now_at[row]): text for (member, row), text in errors.items() if row in now_at}
        arrivals = self._arrivals(unsure, gear)
        return self.scheduler.admit(
            unsure, arrivals, rows=rows, result=result, later=later, errors=errors, cost=outputs.cost
        )

    def _arrivals(self, requests: Sequence[PendingRequest], gear: int) -> Arrivals:
        policies = [one.policy for one in requests]
        is_plain = all(policy is DEFAULT for policy in policies)
        return (plain_arrivals if is_plain else partial(arrivals_from_policies, policies=policies))(
            [one.token for one in requests],
            [one.count for one in requests],
            now_ns=[one.arrived_ns for one in requests],
            default_deadline_us=self.spec.limits.default_deadline_us,
            gear=gear,
        )


def _leave_early(
    batch: Sequence[PendingRequest], exits: npt.NDArray[np.bool_], starts: Sequence[int]
) -> list[bool]:
    """Which requests leave at stage 0: all their rows exit, and they ask for nothing that could change that."""
    whole = exits if len(exits) == len(batch) else np.logical_and.reduceat(exits, starts)
    return [sure and one.is_plain for one, sure in zip(batch, whole.tolist(), strict=True)]


class AdmissionControl:
    """Tells from the batches that come in whether more wait behind them, and which requests came too late.

    The server's queue in front of the cascade cannot be seen from here. Used from one thread only.
    """

    def __init__(self, limit_rows: int) -> None:
        self._limit_rows = limit_rows
        self._stage_0_ns: float | None = None
        self._is_warm = False
        self._finished_ns: int | None = None

    def is_backlogged(self, batch: Sequence[PendingRequest], *, now_ns: int) -> bool:
        """Whether a batch came right after the last one and had no room for another request: more wait behind it.

        A lone request that fills a batch says nothing: a pipeline may send one after another, without any queue.
        """
        if self._finished_ns is None or now_ns - self._finished_ns > MOST_IDLE_NS:
            return False
        counts = [one.count for one in batch]
        return len(counts) > 1 and sum(counts) + max(counts) > self._limit_rows

    def too_late(
        self, batch: Sequence[PendingRequest], *, is_backlogged: bool, now_ns: int
    ) -> list[PendingRequest]:
        """Requests not worth asking stage 0 for: the time would be lost to those behind them.

        That is those whose deadline has passed; in a backlog, also those stage 0 can hardly answer in time. Only a
        deadline that is a point in time says so; one that begins to count here never came late.
        """
        least_ns = TIMES_STAGE_0 * (self._stage_0_ns or 0.0) if is_backlogged else 0.0
        return [one for one in batch if (left := one.time_left_ns(now_ns)) is not None and left <= least_ns]

    def batch_finished(self, now_ns: int, *, asked_ns: int | None = None) -> None:
        """A batch is through stage 0, which was asked then; or all of it was refused."""
        self._finished_ns = now_ns
        if asked_ns is None:
            return
        if self._is_warm:
            took_ns = now_ns - asked_ns
            before_ns = took_ns if self._stage_0_ns is None else self._stage_0_ns
            self._stage_0_ns = before_ns + _SMOOTHING * (took_ns - before_ns)
        # The first call opens sessions and allocates memory, and says nothing about those after it.
        self._is_warm = True
