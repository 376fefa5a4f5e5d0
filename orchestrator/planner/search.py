"""Thresholds by exhaustive search on recorded outputs.

Every subset of the pool in cost order, every tuple of thresholds on a quantile grid that includes "never". The
running combination of a prefix does not depend on thresholds, so each prefix is scored once and each tuple is
masks and sums over rows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.prefixes import middles, prefixes
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec, Member, Stage


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan with what it achieves on the rows it was chosen on.

    Args:
        spec: the plan.
        accuracy: share of rows right; None where that was not asked.
        mean_cost: per row.
        exit_share: per stage.
    """

    spec: CascadeSpec
    accuracy: float | None
    mean_cost: float
    exit_share: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """No plan satisfies the constraint; the cheapest there is, for comparison."""

    cheapest: Point


def search(
    base: CascadeSpec, records: Records, *, max_mean_cost: float, max_stages: int = 4, quantiles: int = 100
) -> Point | Infeasible:
    """The most accurate plan with mean cost at most `max_mean_cost`; ties go to the dearer.

    Args:
        base: gives name, input, classes, combine mode and score; its stages' members are the pool.
        records: n labelled rows of every member.
        max_mean_cost: per row, in the members' cost unit.
        max_stages: longest cascade looked at.
        quantiles: thresholds tried per stage, besides "never".

    Raises:
        DataError: there are no labels.
    """
    if records.labels is None:
        raise DataError("records", got="no labels", expected="labels int64 (n,)", fix="record labelled data")
    best: tuple[float, float] | None = None
    chosen: tuple[tuple[Member, ...], tuple[float | None, ...]] | None = None
    cheapest = None
    for members in _chains(base.members, max_stages):
        for thresholds, accuracy, cost in _tuples(base, records, members, quantiles):
            if cheapest is None or cost < cheapest[0]:
                cheapest = (cost, members, thresholds)
            if cost <= max_mean_cost and (best is None or (accuracy, cost) > best):
                best, chosen = (accuracy, cost), (members, thresholds)
    if chosen is None:
        assert cheapest is not None
        return Infeasible(cheapest=_point(base, records, cheapest[1], cheapest[2]))
    return _point(base, records, *chosen)


def _chains(pool: Sequence[Member], longest: int) -> Iterator[tuple[Member, ...]]:
    ordered = sorted(pool, key=lambda member: (member.cost, member.name))
    for size in range(1, min(longest, len(ordered)) + 1):
        yield from itertools.combinations(ordered, size)


def _tuples(
    base: CascadeSpec, records: Records, members: tuple[Member, ...], quantiles: int
) -> Iterator[tuple[tuple[float | None, ...], float, float]]:
    """Thresholds, accuracy and mean cost of every tuple of one chain."""
    scores, labels = prefixes(base, records, members)
    right = [label == records.labels for label in labels]
    grids = [(*_grid(score, quantiles), None) for score in scores[:-1]]
    costs = np.cumsum([member.cost for member in members])
    for thresholds in itertools.product(*grids):
        left = np.ones(records.rows, np.bool_)
        hits, cost = 0, 0.0
        for stage, threshold in enumerate((*thresholds, -np.inf)):
            done = left if threshold is None else left & (scores[stage] >= np.float32(threshold))
            if threshold is None:
                continue
            hits += int((done & right[stage]).sum())
            cost += float(done.sum()) * float(costs[stage])
            left = left & ~done
        yield thresholds, hits / records.rows, cost / records.rows


def _grid(score: npt.NDArray[np.float32], quantiles: int) -> list[float]:
    """Thresholds in the middle of gaps between neighbouring scores, near the quantiles."""
    places = middles(score)
    if len(places) == 0:
        return []
    wanted = np.quantile(score.astype(np.float64), np.linspace(0, 1, quantiles))
    nearest = np.clip(np.searchsorted(places, wanted), 0, len(places) - 1)
    return [float(np.float32(place)) for place in places[np.unique(nearest)]]


def _point(
    base: CascadeSpec, records: Records, members: tuple[Member, ...], thresholds: Sequence[float | None]
) -> Point:
    """The plan of a chain, with neighbours that never exit collapsed into one parallel stage."""
    stages: list[Stage] = []
    held: tuple[Member, ...] = ()
    for member, threshold in zip(members, (*thresholds, None), strict=True):
        held = (*held, member)
        if threshold is not None or member is members[-1]:
            stages.append(Stage(members=held, threshold=threshold))
            held = ()
    spec = dataclasses.replace(base, stages=tuple(stages))
    done = replay(spec, records)
    share = np.bincount(done.exit_stage, minlength=len(stages)) / records.rows
    return Point(
        spec=spec,
        accuracy=float((done.label == records.labels).mean()),
        mean_cost=float(done.cost.astype(np.float64).mean()),
        exit_share=tuple(float(value) for value in share),
    )
