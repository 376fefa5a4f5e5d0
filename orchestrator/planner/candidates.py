"""Which committees there are: members in cost order, grouped into stages where that matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.planner.subset_table import MOST_MEMBERS, Subset, SubsetTable
from orchestrator.spec import Member


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """Members asked one group after another, before anything is said of thresholds.

    Where the combination covers everything asked so far, a group that never exits and its successor are one
    parallel stage, so groups of one member and the threshold "never" cover every way of grouping. With `last`
    a group's answer is its own: groups are spelled out and "never" would only ask a member and ignore it.

    Args:
        combine: combine mode.
        score: score.
        groups: places in the pool, ascending over all groups.
    """

    combine: str
    score: str
    groups: tuple[Subset, ...]

    @property
    def members(self) -> Subset:
        """Places of all members."""
        return tuple(place for group in self.groups for place in group)

    @property
    def may_never_exit(self) -> bool:
        """Whether a group may have the threshold "never"."""
        return self.combine != "last"

    def asked(self, stage: int) -> Subset:
        """All members asked when the group has answered."""
        return tuple(place for group in self.groups[: stage + 1] for place in group)

    def unit(self, stage: int) -> Subset:
        """The members whose combination answers there."""
        return self.groups[stage] if self.combine == "last" else self.asked(stage)

    def may_exit(self, stage: int) -> bool:
        """Whether the score says anything there: one member always agrees with itself."""
        return self.score != "agreement" or len(self.asked(stage)) > 1


@dataclass(frozen=True, kw_only=True)
class CandidatePlan:
    """One plan in terms of a pool: stages as they will be served, and a threshold for each but the last.

    Args:
        combine: combine mode.
        score: score.
        stages: places in the pool.
        thresholds: float32 values, one fewer than stages.
    """

    combine: str
    score: str
    stages: tuple[Subset, ...]
    thresholds: tuple[float, ...]

    @property
    def members(self) -> Subset:
        """Places of all members."""
        return tuple(place for stage in self.stages for place in stage)


def candidate_from_ordering(chain: Ordering, thresholds: Sequence[float | None]) -> CandidatePlan:
    """The plan of a chain with one threshold per group but the last, None for never.

    Neighbours that never exit become one stage.
    """
    stages: list[Subset] = []
    held: Subset = ()
    for group, threshold in zip(chain.groups[:-1], thresholds, strict=True):
        held = (*held, *group)
        if threshold is not None:
            stages.append(held)
            held = ()
    stages.append((*held, *chain.groups[-1]))
    kept = tuple(threshold for threshold in thresholds if threshold is not None)
    return CandidatePlan(combine=chain.combine, score=chain.score, stages=tuple(stages), thresholds=kept)


def orderings_of(
    pool: Sequence[Member],
    *,
    combines: Sequence[str],
    scores: Sequence[str],
    max_stages: int,
    max_worst_cost: float | None = None,
) -> list[Ordering]:
    """All chains, those first that win a tie: by worst cost, number of members, names, then as modes are listed.

    Args:
        pool: members in cost order.
        combines: combine modes wanted.
        scores: scores wanted.
        max_stages: longest cascade wanted.
        max_worst_cost: largest sum of the members' costs.
    """
    worst = {
        unit: sum(pool[place].cost for place in unit)
        for size in range(1, MOST_MEMBERS + 1)
        for unit in combinations(range(len(pool)), size)
    }
    # Sums of decimals that a person would call equal must not be told apart by their last bit.
    most = float("inf") if max_worst_cost is None else max_worst_cost * (1 + 1e-12)
    kept = sorted(
        (unit for unit, cost in worst.items() if cost <= most),
        key=lambda unit: (worst[unit], len(unit), [pool[place].name for place in unit]),
    )
    return [
        Ordering(combine=combine, score=score, groups=groups)
        for unit in kept
        for combine in combines
        for score in scores
        for groups in _groupings(unit, combine, max_stages)
        if combine != "last" or score != "agreement" or len(groups) == 1 or len(groups[0]) > 1
    ]


def _groupings(unit: Subset, combine: str, max_stages: int) -> Iterator[tuple[Subset, ...]]:
    if combine != "last":
        yield tuple((place,) for place in unit)
        return
    for stages in range(1, min(max_stages, len(unit)) + 1):
        for cuts in combinations(range(1, len(unit)), stages - 1):
            edges = (0, *cuts, len(unit))
            yield tuple(unit[low:high] for low, high in pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class TableAnswers:
    """What a plan does to every row.

    Args:
        stage: where each row is answered, intp (n,).
        label: its answer, int32 (n,).
    """

    stage: npt.NDArray[np.intp]
    label: npt.NDArray[np.int32]


def answers_of(choice: CandidatePlan, table: SubsetTable) -> TableAnswers:
    """Runs a plan over a table, with the exit rule of serving: score >= threshold, as float32."""
    stage = np.full(table.rows, len(choice.stages) - 1, np.intp)
    label = np.zeros(table.rows, np.int32)
    left = np.ones(table.rows, np.bool_)
    asked: Subset = ()
    for place, group in enumerate(choice.stages):
        asked = (*asked, *group)
        unit = group if choice.combine == "last" else asked
        done = left
        if place < len(choice.thresholds):
            score = table.score(choice.combine, choice.score, asked=asked, unit=unit)
            done = left & (score >= np.float32(choice.thresholds[place]))
        stage[done] = place
        label[done] = table.label(choice.combine, unit)[done]
        left &= ~done
    return TableAnswers(stage=stage, label=label)


def exit_shares_of(outcome: TableAnswers, stages: int) -> tuple[float, ...]:
    """Share of rows answered at each stage."""
    counts = np.bincount(outcome.stage, minlength=stages)
    return tuple(float(count) / len(outcome.stage) for count in counts)


def mean_cost(choice: CandidatePlan, share: Sequence[float], costs: Sequence[float]) -> float:
    """Mean cost per row that follows from the exit shares."""
    total, spent = 0.0, 0.0
    for stage, part in zip(choice.stages, share, strict=True):
        spent += sum(costs[place] for place in stage)
        total += part * spent
    return total
