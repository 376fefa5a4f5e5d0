"""A recipe: what makes the members of a scenario, its plan and its rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from orchestrator.local.sessions import LocalMembers
from orchestrator.planner.impose import impose_exits
from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, Stage
from perf.routes.spec import Rows, Scenario

# Sessions run a chunk at a time, so that a pool of large rows never lies in memory as a whole.
CHUNK_ROWS = 64
# The score of a row moves by about 1e-6 with the batch it is in; rows this near a threshold are not used at all.
MARGIN = 1e-4
# What `predicted_speedup` times: rows of a batch, batches of each member in a round, rounds.
_TIMED_BATCH, _TIMED_BATCHES, _TIMED_ROUNDS = 32, 4, 7


class Predict(Protocol):
    """Measures what a plan promises."""

    def __call__(self, repository: Path, spec: CascadeSpec, *, reach: Sequence[float], rows: Rows) -> float:
        """Rows/s of the cascade over its largest member's."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes one scenario; everything follows from fixed seeds.

    Args:
        scenario: its members.
        pool: rows there are to choose from.
        make: writes the members into a repository and gives the cascade of them, one member per stage.
        rows_at: rows by number, 0..pool - 1, (n, *dims).
        settings: what else decides the members and the plan, as text.
        predict: gives BenchRepository's predicted_speedup; None for members whose plan promises nothing.
        margin: rows whose score comes nearer to a threshold are not used.
        open_members: opens members of a repository, to see where rows exit.
        fitted: gives the recipe that is used instead, its members sized to this machine; told the folder that
            keeps what is made. None for members that are what they are.
    """

    scenario: Scenario
    pool: int
    make: Callable[[Path], CascadeSpec]
    rows_at: Callable[[Sequence[int]], Rows]
    settings: str = ""
    predict: Predict | None = None
    margin: float = MARGIN
    open_members: Callable[[Path, Sequence[str]], LocalMembers] = LocalMembers
    fitted: "Callable[[Path], Recipe] | None" = None


def chunks_of(pool: int) -> Iterator[range]:
    """The row numbers 0..pool - 1 in chunks of `CHUNK_ROWS`."""
    return (range(start, min(start + CHUNK_ROWS, pool)) for start in range(0, pool, CHUNK_ROWS))


def member_from_manifest(manifest: Manifest) -> Member:
    """A member of a plan as its export describes it, its cost in multiply-accumulates."""
    return Member(
        name=manifest.name,
        output=manifest.output.name,
        output_kind=manifest.output_kind,
        cost=float(manifest.macs),
        max_batch_size=manifest.max_batch_size,
        sha256=manifest.sha256,
    )


def imposed_cascade(
    repository: Path,
    members: Sequence[str],
    rows_at: Callable[[Sequence[int]], Rows],
    *,
    name: str,
    recorded: int,
    exit_share: Sequence[float],
    open_members: Callable[[Path, Sequence[str]], LocalMembers] = LocalMembers,
) -> CascadeSpec:
    """A cascade of members with random weights that lets given shares of rows exit.

    Args:
        repository: holds the members.
        members: in stage order.
        rows_at: gives rows by number.
        name: of the cascade.
        recorded: how many rows the thresholds are taken from.
        exit_share: share of them that exits at each stage but the last.
        open_members: as in Recipe.
    """
    local = open_members(repository, members)
    manifests = [local.manifest(member) for member in members]
    source = manifests[0].input
    base = CascadeSpec(
        name=name,
        input=InputSpec(name=source.name, dtype=source.dtype, dims=source.dims),
        classes=local.classes(members[0]),
        # `impose_exits` fills in the thresholds of all stages but the last.
        stages=tuple(Stage(members=(member_from_manifest(manifest),)) for manifest in manifests),
    )
    said: dict[str, list[Rows]] = {member: [] for member in members}
    for numbers in chunks_of(recorded):
        rows = rows_at(numbers)
        for member in members:
            said[member].append(local.ask(member, rows))
    records = Records(
        ids=np.arange(recorded),
        labels=None,
        outputs={member: np.concatenate(parts) for member, parts in said.items()},
        cost={member: local.cost(member) for member in members},
        meta={"members": {member: {"random_weights": True} for member in members}},
    )
    return replace(impose_exits(base, records, exit_share=exit_share), fit=None)


def predicted_speedup(repository: Path, spec: CascadeSpec, *, reach: Sequence[float], rows: Rows) -> float:
    """The speed-up that a plan promises: milliseconds per row of the last member over those of the plan.

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
    whole = min(_TIMED_BATCHES, len(rows) // _TIMED_BATCH)
    batches = [rows[number * _TIMED_BATCH : (number + 1) * _TIMED_BATCH] for number in range(whole)]
    figures: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        members.ask(name, batches[0])
    for number in range(_TIMED_ROUNDS):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            # Processor time of the one thread that computes. By wall clock, other work on the machine moved the
            # promise by a quarter; on an idle machine both agree.
            begun = time.thread_time()
            for batch in batches:
                members.ask(name, batch)
            figures[name].append(1000 * (time.thread_time() - begun) / (_TIMED_BATCH * len(batches)))
    return {name: float(np.median(values)) for name, values in figures.items()}
