"""Stage 0, asked for all rows of a batch at once: sure requests are answered, the others wait for later stages."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.member_calls import MemberCalls, MemberOutputs
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import (
    HOPELESS,
    LATE,
    UNAVAILABLE,
    PendingRequest,
    PendingRequests,
    Reply,
    Responder,
    Rows,
    merged,
)
from orchestrator.bls.scheduler import Scheduler
from orchestrator.decision import (
    DEFAULT,
    CascadeRun,
    EarlyExit,
    StageResult,
    arrivals_from_policies,
    plain_arrivals,
)
from orchestrator.spec import CascadeSpec

# A deadline must leave stage 0 its usual time twice: once for the batch the request is in, once for whatever else
# delays its answer. With 1 a standing queue is served just in time, and about half of it just too late.
TIMES_STAGE_0 = 2.0
_SMOOTHING = 0.2
# From a backlog the next batch comes as soon as the last one is done, within a moment on a busy machine.
MOST_IDLE_NS = 20_000_000
# A request and its response.
Answered = tuple[PendingRequest, Any]


class Stage0:
    """Takes batches in; called from one thread only, which uses of `run` only what needs no lock."""

    def __init__(
        self,
        spec: CascadeSpec,
        run: CascadeRun,
        *,
        pending: PendingRequests,
        calls: MemberCalls,
        scheduler: Scheduler,
        metrics: Counters,
        responder: Responder,
    ) -> None:
        self._spec = spec
        self._run = run
        self._fast_path = run.fast_path
        self._pending = pending
        self._calls = calls
        self._scheduler = scheduler
        self._metrics = metrics
        self._responder = responder
        self._has_gears = spec.gears is not None
        self._max_deferred_rows = spec.limits.max_deferred_rows
        self._admission = AdmissionControl(spec.limits.max_batch_size)

    def answer(self, batch: Sequence[PendingRequest], rows: Rows) -> Iterator[Answered]:
        """Asks stage 0 and gives the responses that are decided by then; the other requests wait in the table.

        A generator, so that an error of ours later on loses no response that was decided before it.

        Args:
            batch: valid requests.
            rows: (n, *dims), theirs, in order.
        """
        # The server's own tensor, of a lone request, is forwarded without a copy. Inputs are taken before another
        # thread can answer a request, because an answer lets go of its request's input.
        tensor = batch[0].tensor if len(batch) == 1 else None
        has_deadlines = any(one.deadline_ns is not None for one in batch)
        may_shrink = has_deadlines or self._has_gears
        inputs = {one.token: (one.tensor, one.rows) for one in batch} if may_shrink else {}
        for one in batch:
            self._pending.add(one)
        if may_shrink:
            yield from self._refuse_late(batch)
            if has_deadlines:
                self._scheduler.watch_deadlines(batch)
            self._wait_for_room(len(rows))
            live = [one for one in batch if one in self._pending]
            if 0 < len(live) < len(batch):
                rows = merged([inputs[one.token][1] for one in live])
            batch, tensor = live, inputs[live[0].token][0] if len(live) == 1 else None
        else:
            self._wait_for_room(len(rows))
        if not batch:
            self._admission.batch_finished(time.monotonic_ns())
            return
        self._metrics.arrived(len(rows))
        start_ns = time.monotonic_ns()
        outputs = self._calls.ask_stage0(rows, tensor, owners=partial(_owners_of, batch))
        end_ns = time.monotonic_ns()
        self._admission.observe_latency(end_ns - start_ns)
        self._admission.batch_finished(end_ns)
        result = self._fast_path.stage0(len(rows), outputs.outputs)
        gear = self._scheduler.gear if self._has_gears else 0
        early = self._fast_path.early_exit(result, gear)
        starts = [0] if len(batch) == 1 else [0, *accumulate(one.count for one in batch)][:-1]
        leaves = _leave_early(batch, early.exits, starts)
        if not all(leaves):
            for reply in self._admit(batch, rows, result=result, outputs=outputs, leaves=leaves, gear=gear):
                yield reply.request, self._responder.response(reply)
        sure = [(one, start) for one, start, is_sure in zip(batch, starts, leaves, strict=True) if is_sure]
        yield from self._answer_early(sure, early, has_deadlines=has_deadlines)

    def _wait_for_room(self, rows: int) -> None:
        # Without the lock, because rows come in through this thread alone: behind its back they only get fewer.
        if self._run.rows_in_table + rows > self._max_deferred_rows:
            self._scheduler.wait_for_room(rows)

    def _refuse_late(self, batch: Sequence[PendingRequest]) -> Iterator[Answered]:
        """Looks at the queue in front; refuses requests that came too late to be answered in time."""
        now_ns = time.monotonic_ns()
        is_backlogged = self._admission.is_backlogged(batch, now_ns=now_ns)
        if self._has_gears:
            self._scheduler.batch_started(is_backlogged=is_backlogged)
        for one in self._admission.too_late(batch, is_backlogged=is_backlogged, now_ns=now_ns):
            if self._pending.pop(one):
                message = LATE if (one.time_left_ns(now_ns) or 0) <= 0 else HOPELESS
                yield one, self._responder.error(message, UNAVAILABLE)
                self._metrics.refused(one.count)

    def _answer_early(
        self, requests: list[tuple[PendingRequest, int]], early: EarlyExit, *, has_deadlines: bool
    ) -> Iterator[Answered]:
        """The responses of requests that leave as a whole, each given with where its rows begin in the batch.

        With deadlines the clock may have answered some of them already, or do so now.
        """
        if not requests:
            return
        responses = self._responder.early_responses(requests, early)
        popped = [one for one, _ in requests]
        own = self._scheduler.pop_all(popped) if has_deadlines else [self._pending.pop(one) for one in popped]
        for (one, _), response, is_own in zip(requests, responses, own, strict=True):
            if is_own:
                yield one, response
        spans = requests if all(own) else [at for at, is_own in zip(requests, own, strict=True) if is_own]
        status = None
        if early.status is not None and spans:
            status = np.concatenate([early.status[start : start + one.count] for one, start in spans])
        self._metrics.answered_early(sum(one.count for one, _ in spans), status)

    def _admit(
        self,
        batch: Sequence[PendingRequest],
        rows: Rows,
        *,
        result: StageResult,
        outputs: MemberOutputs,
        leaves: Sequence[bool],
        gear: int,
    ) -> list[Reply]:
        """Hands the requests that do not leave early to the table; returns replies to those decided by now."""
        unsure = [one for one, is_sure in zip(batch, leaves, strict=True) if not is_sure]
        later: Sequence[Sequence[Rows]] = outputs.later
        if len(unsure) < len(batch):
            pick = np.flatnonzero(np.repeat(~np.array(leaves), [one.count for one in batch]))
            rows, result, later = rows[pick], result[pick], [[said[pick] for said in part] for part in later]
        policies = [one.policy for one in unsure]
        is_plain = all(policy is DEFAULT for policy in policies)
        arrivals = (plain_arrivals if is_plain else partial(arrivals_from_policies, policies=policies))(
            [one.token for one in unsure],
            [one.count for one in unsure],
            now_ns=[one.arrived_ns for one in unsure],
            default_deadline_us=self._spec.limits.default_deadline_us,
            gear=gear,
        )
        return self._scheduler.admit(
            unsure, arrivals, rows=rows, result=result, later=later, errors=outputs.errors
        )


def _owners_of(batch: Sequence[PendingRequest]) -> npt.NDArray[np.int64]:
    """The token of every row's request in the merged batch, int64 (n,)."""
    return np.repeat(np.array([one.token for one in batch]), [one.count for one in batch])


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

    def batch_finished(self, now_ns: int) -> None:
        """A batch is through stage 0, or all of it was refused."""
        self._finished_ns = now_ns

    def observe_latency(self, took_ns: int) -> None:
        """Stage 0 took that long for a batch."""
        if not self._is_warm:
            # The first call opens sessions and allocates memory, and says nothing about those after it.
            self._is_warm = True
        elif self._stage_0_ns is None:
            self._stage_0_ns = took_ns
        else:
            self._stage_0_ns += _SMOOTHING * (took_ns - self._stage_0_ns)
