"""Rows through all stages of a plan, one after another, for callers that can wait for each: replay, predictors."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.decision.combine import Index, Output
from orchestrator.decision.evaluate import arrivals_from_policies
from orchestrator.decision.policy import Policy
from orchestrator.decision.run import AnsweredRows, CascadeRun, FailedRows
from orchestrator.spec import CascadeSpec

# From a stage and rows, intp (n,), to the output (n, k) of each of its members in plan order, None if one failed.
AskStage = Callable[[int, Index], Sequence[Output]]


def answer_all(
    spec: CascadeSpec, rows: int, ask: AskStage, *, policy: Policy
) -> tuple[AnsweredRows, list[FailedRows]]:
    """Answers of rows 0 to `rows` - 1, which they have as `position`, in any order; and rows that have none.

    Args:
        spec: the plan.
        rows: number of rows, at least one.
        ask: called once for each stage that a row comes to.
        policy: of all rows; its deadline counts for nothing.
    """
    run, every = CascadeRun(spec, capacity_rows=rows), np.arange(rows)
    arrivals = arrivals_from_policies(
        [0], [rows], policies=[policy], now_ns=[0], default_deadline_us=spec.limits.default_deadline_us
    )
    arrivals.position = every.astype(np.int64)
    outcome = run.admit(arrivals, ask(0, every))
    parts, failures = [outcome.answers], [outcome.failures]
    source = np.zeros(run.capacity_rows, np.intp)
    source[outcome.slots] = outcome.deferred
    for stage in range(1, len(spec.stages)):
        if run.waiting(stage):
            slots = run.next(stage, rows)
            outcome = run.feed(slots, ask(stage, source[slots]))
            parts.append(outcome.answers)
            failures.append(outcome.failures)
    return joined(parts), [one for one in failures if len(one)]


def joined(parts: Sequence[AnsweredRows]) -> AnsweredRows:
    """Answered rows of several parts, one part after another."""
    names = [field.name for field in dataclasses.fields(AnsweredRows)]
    return AnsweredRows(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in names})
