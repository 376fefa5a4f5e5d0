"""Thresholds that make given shares of the recorded rows exit, whatever they are right about.

For cost and speed work: with it a cascade of random weights has the exit mix of a trained one. Nothing in the
runtime knows about it; the thresholds are ordinary ones, at quantiles of the scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Combiner, confidence_score
from orchestrator.errors import DataError
from orchestrator.planner.grid import middles
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.planner.search import Point
from orchestrator.spec import CascadeSpec, Member, Stage


def impose(base: CascadeSpec, records: Records, *, exit_share: Sequence[float]) -> Point:
    """The cascade of the pool, in its order, with thresholds at the quantiles that give the shares.

    Args:
        base: gives name, input, classes, combine mode and score; its stages' members are the chain.
        records: n rows of every member; labels are not looked at.
        exit_share: share of all rows that exits at each stage but the last.

    Returns:
        the plan; its accuracy is None, and its exit_share what the thresholds really give.

    Raises:
        DataError: the shares do not fit the members, or no threshold gives them.
    """
    members = base.members
    good = all(0 <= share <= 1 for share in exit_share) and sum(exit_share) <= 1 + 1e-9
    if len(exit_share) != len(members) - 1 or not good:
        given = ", ".join(f"{share:g}" for share in exit_share)
        raise DataError(
            "imposed exits", got=given, expected=f"{len(members) - 1} shares from 0 to 1 that add up to at most 1"
        )
    scores, _ = prefixes(base, records, members)
    left = np.ones(records.rows, np.bool_)
    stages = []
    for member, score, share in zip(members, scores, exit_share, strict=False):
        threshold = _threshold(score[left], round(share * records.rows), member.name)
        stages.append(Stage(members=(member,), threshold=threshold))
        left &= ~(score >= np.float32(threshold))
    spec = dataclasses.replace(base, stages=(*stages, Stage(members=(members[-1],))))
    done = replay(spec, records)
    real = np.bincount(done.exit_stage, minlength=len(members)) / records.rows
    return Point(
        spec=spec,
        accuracy=None,
        mean_cost=float(done.cost.astype(np.float64).mean()),
        exit_share=tuple(float(value) for value in real),
    )


def _threshold(score: npt.NDArray[np.float32], exits: int, name: str) -> float:
    """The threshold that comes nearest to letting that many of the scores pass."""
    if exits == 0:
        return 2.0
    if exits >= len(score):
        return -1.0 if not len(score) else float(score.min()) - 1
    places = middles(score)
    if not len(places):
        raise DataError(
            f"imposed exits at {name}", got="the same score for every row", expected="scores that differ"
        )
    passing = len(score) - np.searchsorted(np.sort(score), places.astype(np.float32))
    return float(np.float32(places[np.argmin(np.abs(passing - exits))]))


def prefixes(
    base: CascadeSpec, records: Records, members: tuple[Member, ...]
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.int64]]]:
    """Per prefix of the chain: score float32 (n,) and label int64 (n,).

    Raises:
        DataError: an output is not finite.
    """
    chain = dataclasses.replace(base, stages=tuple(Stage(members=(member,)) for member in members))
    combiner = Combiner(chain)
    tally = combiner.empty(records.rows)
    scores, labels = [], []
    for stage, member in enumerate(members):
        failed, _ = combiner.add_stage(tally, stage, [records.outputs[member.name]])
        if failed is not None:
            bad = int((failed >= 0).sum())
            raise DataError(f"records of {member.name}", got=f"{bad} rows with NaN or infinity")
        p, label = combiner.distribution(tally)
        scores.append(confidence_score(base.score, p, label, tally.tops, combiner.weights))
        labels.append(label)
    return scores, labels
