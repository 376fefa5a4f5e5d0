"""Glyphs in this process with one thread: plans by the clock against the most accurate member, on the test part.

Everything is as in docs/reproduce.md, but plans are chosen by milliseconds in place of MACs: the quickest that is
ahead of the most accurate member of the plan part by the margin of that study. And times, like those of the
members that are planned with, are processor time of the one thread that works, which other work on the machine
hardly moves.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.local import LocalMembers
from orchestrator.planner.clock import Load, clock_for, in_ms
from orchestrator.progress import no_progress
from orchestrator.recording.timing import TimeOptions, time_members
from orchestrator.spec.timing import Timing
from perf.routes.recipes import GLYPHS
from perf.studies.reproduce.evaluate import ChoiceEvaluator, TimingLoad, spread_of, timed
from perf.studies.reproduce.parts import MEMBERS, PartRecorder, PlanPart, Say, draw_glyphs
from perf.studies.reproduce.plans import (
    ChosenPlan,
    PlanComparison,
    no_worse,
    search_space_of,
    searched,
    write_document,
)

# Rows per call -> times as fast as the most accurate member that are wanted.
TARGETS = {1: 2.0, 32: 4.5}
_QUANTILES = 100
_CLAIM = "by the clock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InProcessEffort:
    """How much is drawn and how long is measured.

    Args:
        rows: of each part; None for all.
        timing: of the members.
        loads: of the plans and the member that they are held against.
    """

    rows: int | None
    timing: TimeOptions
    loads: tuple[TimingLoad, ...]


def in_process(folder: Path, effort: InProcessEffort, *, say: Say) -> dict[str, Any]:
    """The figures as JSON values; `folder` keeps the members' answers and the choices."""
    recorder = PartRecorder(
        repository=GLYPHS, names=MEMBERS, draw=draw_glyphs, rows=effort.rows, cache=folder, say=say
    )
    plan = recorder.plan_part()
    say("timing the members in this process")
    timing = time_members(MEMBERS, GLYPHS, effort.timing)
    lines = []
    for load in effort.loads:
        say(f"planning batches of {load.batch} by the clock")
        lines.append(_chosen(plan, timing, load.batch))
    choices = folder / "in-process-choices.json"
    write_document({"comparisons": [dataclasses.asdict(line) for line, _ in lines]}, choices)
    test = recorder.test_part(plan=plan, choices=choices)
    judged, members = ChoiceEvaluator(test), LocalMembers(GLYPHS, MEMBERS, threads=1)
    found = []
    for load, (line, alone_ms) in zip(effort.loads, lines, strict=True):
        figures = timed(
            [plan for plan in (line.one, line.other) if plan],
            test,
            members=members,
            load=load,
            say=say,
            clock=time.thread_time,
        )
        found.append(
            {
                "batch": load.batch,
                "target": TARGETS.get(load.batch),
                **judged.line(line),
                **_times(line, figures, alone_ms),
            }
        )
    return {"rows": test.records.rows, "rounds": timing.rounds, "loads": found}


def _chosen(part: PlanPart, timing: Timing, batch: int) -> tuple[PlanComparison, float]:
    """The quickest plan that is ahead, and the most accurate member; mean costs are predicted milliseconds.

    Beside it stands what the plan's members alone take, without a runtime between them.
    """
    pricing = clock_for(timing, Load(batch=batch), part.base, budget=None)
    part = dataclasses.replace(part, base=in_ms(part.base, pricing))
    space = search_space_of(part, list(part.records.outputs), quantiles=_QUANTILES, progress=no_progress)
    space = dataclasses.replace(space, table=dataclasses.replace(space.table, pricing=pricing))
    singles = [space.averaged([name]) for name in space.names]
    best = max(singles, key=lambda one: (one.accuracy, -one.mean_cost))
    plan = no_worse(space, searched(space), space.right(best.members[0]), below_cost=best.mean_cost)
    bare = dataclasses.replace(timing, first_stage=(), later_stage=(), deferring=())
    table = dataclasses.replace(space.table, pricing=dataclasses.replace(pricing, timing=bare))
    alone_ms = dataclasses.replace(space, table=table).again(plan).mean_cost if plan else 0.0
    return PlanComparison(claim=_CLAIM, label=f"batches of {batch}", one=plan, other=best), alone_ms


def _times(line: PlanComparison, figures: Mapping[ChosenPlan, Sequence[float]], alone_ms: float) -> dict[str, Any]:
    """Milliseconds per row of both, measured over predicted, and times as fast within a round."""
    if line.one is None:
        return {"times_as_fast": None}
    one, other = figures[line.one], figures[line.other]
    return {
        "ms": spread_of(one),
        "predicted_ms": line.one.mean_cost,
        "ratio": float(np.median(one)) / line.one.mean_cost,
        "other_ms": spread_of(other),
        "times_as_fast": spread_of([b / a for a, b in zip(one, other, strict=True)]),
        "other_ratio": float(np.median(other)) / line.other.mean_cost,
        "members_ms": alone_ms,
        "predicted_times": line.other.mean_cost / line.one.mean_cost,
    }
