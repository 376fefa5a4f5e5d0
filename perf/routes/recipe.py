"""How a scenario's members and rows come about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from orchestrator.local.sessions import LocalMembers
from orchestrator.planner.impose import impose_exits
from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage
from perf.routes.spec import Rows, Scenario

# Sessions run a chunk at a time, so that a pool of large rows never lies in memory as a whole.
CHUNK_ROWS = 64
# The score of a row moves by about 1e-6 with the batch it is in; rows this near a threshold are not used at all.
MARGIN = 1e-4


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
    fitted: Callable[[Path], Recipe] | None = None


def chunks_of(pool: int) -> Iterator[range]:
    """The numbers 0..pool - 1, a chunk at a time."""
    return (range(start, min(start + CHUNK_ROWS, pool)) for start in range(0, pool, CHUNK_ROWS))


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
    stages = tuple(
        Stage(
            members=(
                Member(
                    name=manifest.name,
                    output=manifest.output.name,
                    output_kind=manifest.output_kind,
                    cost=float(manifest.macs),
                    max_batch_size=manifest.max_batch_size,
                    sha256=manifest.sha256,
                ),
            )
        )
        for manifest in manifests
    )
    source = manifests[0].input
    base = CascadeSpec(
        name=name,
        input=InputSpec(name=source.name, dtype=source.dtype, dims=source.dims),
        classes=local.classes(members[0]),
        # A chain has thresholds in all stages but the last; `impose_exits` fills them in.
        stages=stages,
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
