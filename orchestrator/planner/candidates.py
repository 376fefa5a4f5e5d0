"""Plans in terms of a pool: who is asked in which order, and what a plan answers to every row of a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.decision.exit_rule import exits
from orchestrator.planner.subset_table import Subset, SubsetTable, subsets_of
from orchestrator.spec import Member

# Sums of decimals that a person would call equal must not be told apart by their last bit.
COST_TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class CandidatePlan:
    """One plan of a search: stages as they will be served, and a threshold for each but the last.

    Candidates are equal where the plans are, whatever was counted.

    Args:
        combine: combine mode.
        score: confidence score.
        stages: places in the pool.
        thresholds: float32 values, one fewer than stages.
        correct: rows that count as correct, of those searched; 0 where the plan was not searched for.
        integer_cost: total cost of those rows in whole numbers, see `SearchResult.cost_scale`.
    """

    combine: str
    score: str
    stages: tuple[Subset, ...]
    thresholds: tuple[float, ...]
    correct: int = field(default=0, compare=False)
    integer_cost: float = field(default=0.0, compare=False)

    @property
    def members(self) -> Subset:
        """Places of all members."""
        return tuple(place for stage in self.stages for place in stage)


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """Groups of members that are asked one after another, without thresholds yet.

    Where the combination covers everything asked so far, a group that never exits and its successor are one
    parallel stage, so groups of one member and the threshold "never" cover every way of grouping. With `last`
    a group's answer is its own: groups are spelled out, since "never" would ask a member and ignore it.

    Args:
        combine: combine mode.
        score: confidence score.
        groups: places in the pool, ascending over all groups.
    """

    combine: str
    score: str
    groups: tuple[Subset, ...]

    @property
    def may_never_exit(self) -> bool:
        """Whether a group may have the threshold "never"."""
        return self.combine != "last"

    def asked(self, stage: int) -> Subset:
        """All members asked when the group has answered."""
        return tuple(place for group in self.groups[: stage + 1] for place in group)

    def subset(self, stage: int) -> Subset:
        """The members whose combination is the answer there."""
        return self.groups[stage] if self.combine == "last" else self.asked(stage)

    def may_exit(self, stage: int) -> bool:
        """Whether the score says anything there: one member always agrees with itself."""
        return self.score != "agreement" or len(self.asked(stage)) > 1


def candidate_from_ordering(
    ordering: Ordering, thresholds: Sequence[float | None], *, correct: int = 0, integer_cost: float = 0.0
) -> CandidatePlan:
    """The plan of an ordering with one threshold per group but the last, None for never.

    Neighbours that never exit become one stage.
    """
    stages: list[Subset] = []
    open_stage: Subset = ()
    for group, threshold in zip(ordering.groups[:-1], thresholds, strict=True):
        open_stage = (*open_stage, *group)
        if threshold is not None:
            stages.append(open_stage)
            open_stage = ()
    stages.append((*open_stage, *ordering.groups[-1]))
    return CandidatePlan(
        combine=ordering.combine,
        score=ordering.score,
        stages=tuple(stages),
        thresholds=tuple(threshold for threshold in thresholds if threshold is not None),
        correct=correct,
        integer_cost=integer_cost,
    )


def orderings_of(
    pool: Sequence[Member],
    *,
    combines: Sequence[str],
    scores: Sequence[str],
    max_stages: int,
    max_worst_cost: float | None = None,
) -> list[Ordering]:
    """All orderings, winners of ties first: by worst cost, number of members, names, then as modes are listed.

    Args:
        pool: members in cost order.
        combines: combine modes wanted.
        scores: scores wanted.
        max_stages: longest cascade wanted.
        max_worst_cost: largest sum of the members' costs.
    """
    worst = {subset: sum(pool[place].cost for place in subset) for subset in subsets_of(len(pool))}
    most = float("inf") if max_worst_cost is None else max_worst_cost * (1 + COST_TOLERANCE)
    affordable = sorted(
        (subset for subset, cost in worst.items() if cost <= most),
        key=lambda subset: (worst[subset], len(subset), [pool[place].name for place in subset]),
    )
    return [
        Ordering(combine=combine, score=score, groups=groups)
        for subset in affordable
        for combine in combines
        for score in scores
        for groups in _groupings(subset, combine, max_stages)
        if combine != "last" or score != "agreement" or len(groups) == 1 or len(groups[0]) > 1
    ]


def _groupings(subset: Subset, combine: str, max_stages: int) -> Iterator[tuple[Subset, ...]]:
    if combine != "last":
        yield tuple((place,) for place in subset)
        return
    for stages in range(1, min(max_stages, len(subset)) + 1):
        for cuts in combinations(range(1, len(subset)), stages - 1):
            edges = (0, *cuts, len(subset))
            yield tuple(subset[low:high] for low, high in pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class TableAnswers:
    """What a plan answers to every row of a table.

    Args:
        stage: where each row is answered, intp (n,).
        label: its answer, int32 (n,).
        exit_share: share of rows answered at each stage.
        mean_cost: cost per row.
    """

    stage: npt.NDArray[np.intp]
    label: npt.NDArray[np.int32]
    exit_share: tuple[float, ...]
    mean_cost: float


def answers_of(plan: CandidatePlan, table: SubsetTable) -> TableAnswers:
    """Runs a plan over a table, with the exit rule of serving."""
    stage = np.full(table.rows, len(plan.stages) - 1, np.intp)
    label = np.zeros(table.rows, np.int32)
    left = np.ones(table.rows, np.bool_)
    asked: Subset = ()
    for place, group in enumerate(plan.stages):
        asked = (*asked, *group)
        subset = group if plan.combine == "last" else asked
        done = left
        if place < len(plan.thresholds):
            done = left & exits(
                table.score(plan.combine, plan.score, asked=asked, subset=subset), plan.thresholds[place]
            )
        stage[done] = place
        label[done] = table.label(plan.combine, subset)[done]
        left &= ~done
    counts = np.bincount(stage, minlength=len(plan.stages))
    share = tuple(float(count) / table.rows for count in counts)
    total, spent = 0.0, 0.0
    for group, part in zip(plan.stages, share, strict=True):
        spent += sum(table.costs[place] for place in group)
        total += part * spent
    return TableAnswers(stage=stage, label=label, exit_share=share, mean_cost=total)
