"""Everything a plan is compared with: single members, ensembles, the frontier, and the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.planner.kinds import kind_seen
from orchestrator.planner.records import Records
from orchestrator.planner.subset_table import mode_of
from orchestrator.report.ladder import F32, I64, Ladder, together
from orchestrator.report.shares import Share
from orchestrator.spec import CascadeSpec, Member

ARROW = " → "


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Something that answers every row at the same cost.

    Args:
        name: in words.
        members: how many it asks.
        cost: per row; None where the records do not know it in the plan's unit.
        label: int64 (n,).
        sure: float32 (n,), probability of the answer.
    """

    name: str
    members: int
    cost: float | None
    label: I64 = field(repr=False)
    sure: F32 = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One plan nothing beats on the rows it was chosen on.

    Args:
        name: its stages in words.
        kind: "member", "ensemble" or "cascade".
        thresholds: one per stage but the last; None for never.
        combine: combine mode.
        score: score.
        quality: share of good answers, on rows of the search.
        mean_cost: per row.
        worst_cost: of a row that goes through every stage.
    """

    name: str
    kind: str
    thresholds: tuple[float | None, ...]
    combine: str
    score: str
    quality: Share
    mean_cost: float
    worst_cost: float


def pool_of(spec: CascadeSpec, records: Records, planned: Sequence[Member] = ()) -> dict[str, Member]:
    """All recorded members by name, cheapest first.

    Args:
        spec: its members are as the plan has them.
        records: of these and others.
        planned: members the plan was chosen from, with kinds and temperatures. What one that is not among them
            gives out, the records' meta says, or else its numbers.
    """
    known = {member.name: member for member in (*planned, *spec.members)}
    return {
        name: known[name] if name in known else _unplanned(name, records)
        for name in sorted(records.outputs, key=lambda name: (records.cost[name], name))
    }


def _unplanned(name: str, records: Records) -> Member:
    known = records.meta.get("members", {})
    about = known.get(name, {}) if isinstance(known, dict) else {}
    kind = about.get("output_kind") or kind_seen(records.outputs[name])
    kind = "probabilities" if kind == "probabilities" else "logits"
    return Member(name="other", output="output", output_kind=kind, cost=records.cost[name])


def same_unit(spec: CascadeSpec, records: Records) -> bool:
    """Whether the records count costs as the plan does; a plan may have measured times instead."""
    return all(math.isclose(member.cost, records.cost[member.name], rel_tol=1e-6) for member in spec.members)


def members_from_records(spec: CascadeSpec, records: Records, pool: Mapping[str, Member]) -> tuple[Rival, ...]:
    """Every member of the pool by itself."""
    comparable, own = same_unit(spec, records), {member.name for member in spec.members}
    found = []
    for name, member in pool.items():
        alone = together(spec, records, {name: member})
        cost = member.cost if comparable or name in own else None
        found.append(Rival(name=name, members=1, cost=cost, label=alone.label[0], sure=alone.sure[0]))
    return tuple(found)


def ensembles_from_ladder(
    spec: CascadeSpec, records: Records, ladder: Ladder, *, pool: Mapping[str, Member]
) -> tuple[Rival, ...]:
    """The plan cut after each stage, every row going that far; and all members of the pool together."""
    found, asked = [], 0
    for stage in range(len(spec.stages)):
        asked += len(spec.stages[stage].members)
        # With "last" a stage forgets what came before, so only a stage of several is an ensemble.
        several = asked if spec.combine != "last" else len(spec.stages[stage].members)
        if several > 1:
            names = [one.name for part in spec.stages[: stage + 1] for one in part.members][-several:]
            name, cost = " + ".join(names), float(sum(one.cost for one in spec.members if one.name in names))
            label, sure = ladder.label[stage], ladder.sure[stage]
            found.append(Rival(name=name, members=several, cost=cost, label=label, sure=sure))
    if len(pool) > max([one.members for one in found], default=1):
        found.append(everybody(spec, records, pool, combine=spec.combine))
    return tuple(found)


def everybody(spec: CascadeSpec, records: Records, pool: Mapping[str, Member], *, combine: str) -> Rival:
    """All members of the pool together, in a combine mode that need not be the plan's."""
    answered = together(spec, records, pool, combine=combine)
    how = "" if mode_of(combine) == mode_of(spec.combine) else f" by {combine}"
    return Rival(
        name=f"all {len(pool)} members{how}",
        members=len(pool),
        cost=float(sum(member.cost for member in pool.values())) if same_unit(spec, records) else None,
        label=answered.label[0],
        sure=answered.sure[0],
    )


def reference_of(name: str | None, members: Sequence[Rival], truth: I64 | None) -> Rival | None:
    """What the plan is measured against: the member asked for, else the most accurate one.

    Args:
        name: a member, or None.
        members: all single members.
        truth: int64 (n,), the true classes if they may be used.

    Returns:
        None where nothing was asked for and accuracy is not known.
    """
    for one in members:
        if one.name == name:
            return one
    if truth is None:
        return None
    costs = [math.inf if one.cost is None else one.cost for one in members]
    best = max(range(len(members)), key=lambda place: (int((members[place].label == truth).sum()), -costs[place]))
    return members[best]


def point_from_row(row: Mapping[str, Any], rows: int) -> FrontierPoint:
    """A frontier row of `committee plan --json`.

    Args:
        row: members, stages, thresholds, combine, score, accuracy, mean_cost, worst_cost.
        rows: that its accuracy was counted on.
    """
    stages = row.get("stages") or [[name] for name in row["members"]]
    kind = "cascade" if len(stages) > 1 else "ensemble" if len(stages[0]) > 1 else "member"
    return FrontierPoint(
        name=ARROW.join(" + ".join(stage) for stage in stages),
        kind=kind,
        thresholds=tuple(_threshold(value) for value in row["thresholds"]),
        combine=str(row["combine"]),
        score=str(row["score"]),
        quality=Share(hits=round(float(row["accuracy"]) * rows), rows=rows),
        mean_cost=float(row["mean_cost"]),
        worst_cost=float(row["worst_cost"]),
    )


def _threshold(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
