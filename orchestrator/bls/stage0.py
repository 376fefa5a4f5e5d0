"""The first stage, asked for all rows of a batch at once: sure requests are answered, the rest is pooled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.bls.direct import DirectAnswers, decided, owners_of, starts_of
from orchestrator.bls.entrance import AdmissionControl, left_of
from orchestrator.bls.member_calls import MemberCalls, StageResult, merged
from orchestrator.bls.metrics import Counters
from orchestrator.bls.requests import HOPELESS, LATE, UNAVAILABLE, PendingRequest, Reply
from orchestrator.bls.scheduler import Scheduler
from orchestrator.bls.tensors import Rows
from orchestrator.decision import EarlyExit, Evaluator, Stage0Result, arrivals_from_policies
from orchestrator.spec import CascadeSpec


class Stage0:
    """Takes batches in; called from one thread only.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        calls: asks members.
        scheduler: takes what is unsure.
        counters: counts what happens.
    """

    def __init__(
        self, pb_utils: Any, spec: CascadeSpec, *, calls: MemberCalls, scheduler: Scheduler, counters: Counters
    ) -> None:
        self._spec = spec
        self._calls = calls
        self._scheduler = scheduler
        self._counters = counters
        self._direct = DirectAnswers(pb_utils, spec)
        self._judge = Evaluator(spec)
        self._geared = spec.gears is not None
        self._entrance = AdmissionControl(spec.limits.max_batch_size)

    def answer(
        self, batch: Sequence[PendingRequest], rows: Rows, *, listed: list[Any], replies: list[Reply]
    ) -> None:
        """Asks stage 0 and answers what is decided by then; the rest is pooled.

        What it decides is in one of the lists the moment it is decided, so that an error later on loses nothing.

        Args:
            batch: valid requests.
            rows: (n, *dims), theirs, in order.
            listed: what goes back to the server, by the requests' places; gets the answers stage 0 is sure of.
            replies: gets those of other requests.
        """
        # The server's own tensor, of a lone request, is forwarded without a copy.
        tensor = batch[0].tensor if len(batch) == 1 else None
        dated = [one for one in batch if one.policy.deadline_us is not None]
        if dated or self._geared:
            batch, rows, tensor = self._let_in(batch, rows, dated=dated, replies=replies)
        else:
            self._scheduler.wait_for_room(len(rows))
        if not batch:
            self._entrance.done(time.monotonic_ns())
            return
        self._counters.arrived(len(rows), self._spec.stages[0].cost)
        start_ns = time.monotonic_ns()
        result = self._calls.ask_first(rows, tensor, owners=lambda: owners_of(batch))
        end_ns = time.monotonic_ns()
        self._entrance.took(end_ns - start_ns)
        self._entrance.done(end_ns)
        look = self._judge.look(len(rows), result.outputs)
        gear = self._scheduler.gear if self._geared else 0
        sure = self._judge.sure(look, gear)
        starts = starts_of(batch)
        mine = decided(batch, sure.exits, starts)
        if not all(mine):
            replies += self._admit(batch, rows, look=look, result=result, mine=mine, gear=gear)
        places = [(one, start) for one, start, own in zip(batch, starts, mine, strict=True) if own]
        self._answer_at_once(places, sure, listed, known=bool(dated))

    def _let_in(
        self, batch: Sequence[PendingRequest], rows: Rows, *, dated: Sequence[PendingRequest], replies: list[Reply]
    ) -> tuple[Sequence[PendingRequest], Rows, Any]:
        """Requests, rows and tensor left of a batch at the door, where deadlines or gears are to be minded."""
        # Taken before anything can be answered: an answer lets go of its request's input.
        inputs = [(one.tensor, one.rows) for one in batch]
        replies += self._turn_away(batch)
        if dated:
            self._scheduler.expect([one for one in dated if not one.answered])
        self._scheduler.wait_for_room(len(rows))
        live = [index for index, one in enumerate(batch) if not one.answered]
        if 0 < len(live) < len(batch):
            rows = merged([inputs[index][1] for index in live])
        tensor = inputs[live[0]][0] if len(live) == 1 else None
        return [batch[index] for index in live], rows, tensor

    def _turn_away(self, batch: Sequence[PendingRequest]) -> list[Reply]:
        """Looks at the queue in front; refuses requests that came too late to be answered in time."""
        now_ns = time.monotonic_ns()
        stands = self._entrance.is_backlogged(batch, now_ns=now_ns)
        if self._geared:
            self._scheduler.came(stands=stands)
        late = self._entrance.too_late(batch, stands=stands, now_ns=now_ns)
        for one in late:
            one.answered = True  # nobody else knows of it yet
            self._counters.refused(one.count)
        over = [(left_of(one, now_ns) or 0) <= 0 for one in late]
        return [
            Reply(one, None, LATE if is_over else HOPELESS, UNAVAILABLE)
            for one, is_over in zip(late, over, strict=True)
        ]

    def _answer_at_once(
        self, places: list[tuple[PendingRequest, int]], sure: EarlyExit, listed: list[Any], *, known: bool
    ) -> None:
        """Puts the answers of requests, each with where its rows begin, into the list.

        Args:
            places: the requests.
            sure: their batch.
            listed: gets the answers.
            known: whether anybody else may know of some of them and answer them, at a deadline.
        """
        responses = self._direct.responses(sure, places)
        if known:
            claimed = {one.token for one in self._scheduler.claim([one for one, _ in places])}
            kept = [(at, said) for at, said in zip(places, responses, strict=True) if at[0].token in claimed]
            places, responses = [at for at, _ in kept], [said for _, said in kept]
        rows = 0
        for (one, _), response in zip(places, responses, strict=True):
            one.answered = True
            listed[one.place] = response
            rows += one.count
        status = None
        if sure.status is not None and places:
            status = np.concatenate([sure.status[start : start + one.count] for one, start in places])
        self._counters.at_once(rows, status)

    def _admit(
        self,
        batch: Sequence[PendingRequest],
        rows: Rows,
        *,
        look: Stage0Result,
        result: StageResult,
        mine: Sequence[bool],
        gear: int,
    ) -> list[Reply]:
        """Hands the requests that are not decided to the table."""
        unsure = [one for one, own in zip(batch, mine, strict=True) if not own]
        later: Sequence[Sequence[Rows]] = result.later
        if len(unsure) < len(batch):
            pick = np.flatnonzero(np.repeat(~np.array(mine), [one.count for one in batch]))
            rows, look, later = rows[pick], look.take(pick), [[said[pick] for said in part] for part in later]
        arrivals = arrivals_from_policies(
            [one.token for one in unsure],
            [one.count for one in unsure],
            policies=[one.policy for one in unsure],
            now_ns=[one.arrived_ns for one in unsure],
            default_deadline_us=self._spec.limits.default_deadline_us,
            gear=gear,
        )
        return self._scheduler.admit(unsure, arrivals, rows=rows, look=look, later=later, errors=result.errors)
