"""What single models and cascades take on this machine: one thread of ONNX Runtime, in this process.

Rules of this file:
- Everything is timed in the same rounds, one after another in an order that turns, so that drift hits all alike;
  factors are formed within a round and the median over rounds is given with the smallest and the largest.
- A single model is asked batch by batch and its largest score taken. A cascade runs the decision core that serves
  it: the first stage takes whole batches, deferred rows of several batches gather until they fill one (at batch 1
  that is at once), and what is left at the end is asked for as it is. Batch by batch nothing is thrown away.
- The time of a cascade includes its decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import CascadeRun, Policy, arrivals_from_policies
from orchestrator.local.sessions import LocalMembers
from orchestrator.spec import CascadeSpec
from perf.studies.reproduce.choices import ChosenPlan

Images = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]
WARM_UP_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class TimingLoad:
    """One way of asking.

    Args:
        batch: rows per call.
        rows: rows per round.
        rounds: how many.
    """

    batch: int
    rows: int
    rounds: int


class PooledCascade:
    """One cascade, in this process.

    Args:
        spec: the cascade.
        members: its members, opened.
        batch: rows per call.
    """

    def __init__(self, spec: CascadeSpec, members: LocalMembers, *, batch: int) -> None:
        self._spec = spec
        self._members = members
        self._batch = batch

    def answer(self, images: Images) -> Labels:
        """Labels int64 (n,) of all rows."""
        # A batch of every stage may wait beside the one that arrives.
        run = CascadeRun(self._spec, capacity_rows=self._batch * (len(self._spec.stages) + 1))
        label = np.full(len(images), -1, np.int64)
        source = np.zeros(run.capacity_rows, np.intp)
        for first in range(0, len(images), self._batch):
            rows = np.arange(first, min(first + self._batch, len(images)))
            outcome = run.admit(self._arrivals(len(rows)), self._asked(0, images[rows]))
            label[rows[outcome.answers.row]] = outcome.answers.label
            source[outcome.slots] = rows[outcome.deferred]
            self._later(run, images, source=source, label=label, least=self._batch)
        self._later(run, images, source=source, label=label, least=1)
        return label

    def _later(
        self, run: CascadeRun, images: Images, *, source: npt.NDArray[np.intp], label: Labels, least: int
    ) -> None:
        """Asks later stages while at least so many rows wait for one."""
        for stage in range(1, len(self._spec.stages)):
            while run.waiting(stage) >= least:
                slots = run.next(stage, self._batch)
                rows = source[slots]
                outcome = run.feed(slots, self._asked(stage, images[rows]))
                label[rows[outcome.answers.row]] = outcome.answers.label

    def _asked(self, stage: int, images: Images) -> list[npt.NDArray[np.float32]]:
        return [self._members.ask(member.name, images) for member in self._spec.stages[stage].members]

    def _arrivals(self, rows: int) -> Any:
        return arrivals_from_policies(
            [0], [rows], policies=[Policy()], now_ns=[0], default_deadline_us=self._spec.limits.default_deadline_us
        )


def ask_single(members: LocalMembers, name: str, images: Images, *, batch: int) -> Labels:
    """What one member answers, int64 (n,), batch by batch."""
    parts = [
        np.argmax(members.ask(name, images[first : first + batch]), axis=1)
        for first in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def timed(
    plans: Sequence[ChosenPlan],
    base: CascadeSpec,
    *,
    members: LocalMembers,
    images: Images,
    load: TimingLoad,
    say: Callable[[str], None],
) -> dict[ChosenPlan, list[float]]:
    """Milliseconds per row of every plan, one figure per round.

    Args:
        plans: single models and cascades.
        base: has every member.
        members: opened with one thread.
        images: test rows; `load.rows` of them are taken, evenly.
        load: how they are asked.
        say: told of every round.
    """
    rows = images[np.linspace(0, len(images) - 1, min(load.rows, len(images))).astype(np.intp)]
    ways = {plan: _way(plan, base, members, load.batch) for plan in dict.fromkeys(plans)}
    for way in ways.values():
        way(rows[: WARM_UP_BATCHES * load.batch])
    figures: dict[ChosenPlan, list[float]] = {plan: [] for plan in ways}
    order = list(ways)
    for number in range(load.rounds):
        say(f"timing batches of {load.batch}: round {number + 1} of {load.rounds}")
        turn = number * len(order) // load.rounds
        for plan in order[turn:] + order[:turn]:
            begun = time.perf_counter()
            ways[plan](rows)
            figures[plan].append(1000 * (time.perf_counter() - begun) / len(rows))
    return figures


def _way(plan: ChosenPlan, base: CascadeSpec, members: LocalMembers, batch: int) -> Callable[[Images], Labels]:
    if len(plan.members) == 1:
        return lambda rows: ask_single(members, plan.members[0], rows, batch=batch)
    return PooledCascade(plan.spec_of(base), members, batch=batch).answer


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest over the rounds."""
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}
