"""Replaying a plan over recorded outputs, through the same decision core that serves it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import AnsweredRows, CascadeRun, Policy, arrivals_from_policies
from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec

CHUNK_ROWS = 4096


def replay(spec: CascadeSpec, records: Records, policy: Policy | None = None) -> AnsweredRows:
    """What the cascade answers, row by row in the records' order.

    Args:
        spec: the plan.
        records: n rows that hold every member of the plan.
        policy: request parameters applied to every row.

    Returns:
        answers of all n rows, `row` counting from 0 to n - 1.

    Raises:
        DataError: a member is missing from the records, the class count differs, or an output is not finite.
    """
    records.check_members(spec.members)
    if records.classes != spec.classes:
        raise DataError("records", got=f"{records.classes} classes", expected=f"{spec.classes} as in {spec.name}")
    parts = [
        _replay_chunk(spec, records, np.arange(start, min(start + CHUNK_ROWS, records.rows)), policy or Policy())
        for start in range(0, records.rows, CHUNK_ROWS)
    ]
    columns = _columns_of(parts)
    order = np.argsort(columns["position"])
    done = AnsweredRows(**{name: column[order] for name, column in columns.items()})
    done.row = done.position.astype(np.intp)
    return done


def _replay_chunk(
    spec: CascadeSpec, records: Records, index: npt.NDArray[np.intp], policy: Policy
) -> AnsweredRows:
    run = CascadeRun(spec, capacity_rows=len(index))
    arrivals = arrivals_from_policies(
        [0], [len(index)], policies=[policy], now_ns=[0], default_deadline_us=spec.limits.default_deadline_us
    )
    arrivals.position = index.astype(np.int64)
    outcome = run.admit(arrivals, [records.outputs[m.name][index] for m in spec.stages[0].members])
    parts = [outcome.answers]
    failed = len(outcome.failures)
    source = np.zeros(run.capacity_rows, np.intp)
    source[outcome.slots] = index[outcome.deferred]
    for stage in range(1, len(spec.stages)):
        if not run.waiting(stage):
            continue
        slots = run.next(stage, len(index))
        outcome = run.feed(slots, [records.outputs[m.name][source[slots]] for m in spec.stages[stage].members])
        parts.append(outcome.answers)
        failed += len(outcome.failures)
    if failed:
        raise DataError("records", got=f"{failed} rows with NaN or infinite outputs", expected="finite outputs")
    return AnsweredRows(**_columns_of(parts))


def _columns_of(parts: Sequence[AnsweredRows]) -> dict[str, npt.NDArray[Any]]:
    names = [field.name for field in dataclasses.fields(AnsweredRows)]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def exits_and_cost(spec: CascadeSpec, exit_stage: npt.NDArray[Any]) -> tuple[tuple[float, ...], float]:
    """Share of rows that exit at each stage, and mean cost per row, in float64.

    Args:
        spec: the plan.
        exit_stage: whole numbers (n,), the stage that answers each row.
    """
    rows = len(exit_stage)
    counts = np.bincount(exit_stage, minlength=len(spec.stages))
    # The runtime's own sums of costs are float32, good for seven digits.
    spent = np.cumsum([stage.cost for stage in spec.stages])
    return tuple(float(count) / rows for count in counts), float((counts * spent).sum()) / rows
