"""What a plan's measured milliseconds per row promise against its largest member, on this machine and now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.local.sessions import LocalMembers
from orchestrator.spec import CascadeSpec
from perf.routes.spec import Rows

BATCH = 32
ROUNDS = 7
BATCHES_PER_ROUND = 4


def predicted_speedup(repository: Path, spec: CascadeSpec, *, reach: Sequence[float], rows: Rows) -> float:
    """Milliseconds per row of the last member over those of the plan.

    Members are asked in this process with one thread, as they are configured where they are served, one after
    another in each round; the median over rounds counts. Decisions and calls are taken to cost nothing, and no two
    stages to work at the same time: a server pays for the former and, with a core to spare, gains by the latter.

    Args:
        repository: holds the members.
        spec: the plan, the largest member last.
        reach: share of rows that get to each stage.
        rows: (n, *dims), n at least 32.
    """
    names = [member.name for member in spec.members]
    members = LocalMembers(repository, names, threads=1)
    ms_per_row = _ms_per_row(members, names, rows)
    plan = sum(
        share * sum(ms_per_row[member.name] for member in stage.members)
        for share, stage in zip(reach, spec.stages, strict=True)
    )
    return ms_per_row[names[-1]] / plan


def _ms_per_row(members: LocalMembers, names: Sequence[str], rows: Rows) -> dict[str, float]:
    whole = min(BATCHES_PER_ROUND, len(rows) // BATCH)
    batches = [rows[number * BATCH : (number + 1) * BATCH] for number in range(whole)]
    figures: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        members.ask(name, batches[0])
    for number in range(ROUNDS):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            # Processor time of the one thread that computes: by the clock, other work on the machine moved the
            # promise by a quarter; on an idle one both are the same.
            begun = time.thread_time()
            for batch in batches:
                members.ask(name, batch)
            figures[name].append(1000 * (time.thread_time() - begun) / (BATCH * len(batches)))
    return {name: float(np.median(values)) for name, values in figures.items()}
