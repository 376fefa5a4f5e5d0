"""Thresholds that make given shares of the recorded rows exit, whatever they are right about.

For cost and speed work: with it a cascade of random weights has the exit mix of a trained one. Nothing in the
runtime knows about it; the thresholds are ordinary ones, at quantiles of the scores.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.decision.evaluate import Evaluator
from orchestrator.decision.exit_rule import exits
from orchestrator.errors import DataError
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.replay import replay
from orchestrator.planner.search import middles
from orchestrator.spec import CascadeSpec, Fit, Stage

F32 = npt.NDArray[np.float32]


def impose_exits(
    base: CascadeSpec, records: Records, *, exit_share: Sequence[float], random_weights: Collection[str] = ()
) -> CascadeSpec:
    """The cascade of the pool, in its order, with thresholds at the quantiles that give the shares.

    Args:
        base: gives name, input, classes, combine mode and score; its stages' members are asked one after another.
        records: n rows of every member; labels are not looked at.
        exit_share: share of all rows that exits at each stage but the last.
        random_weights: members that were never trained, beside those of which the records say so.

    Returns:
        the plan; its `fit` has no accuracy, and the exit shares that the thresholds really give.

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
    left = np.ones(records.rows, np.bool_)
    stages = []
    for member, score, share in zip(members, _scores(base, records), exit_share, strict=False):
        threshold = _threshold(score[left], round(share * records.rows), member.name)
        stages.append(Stage(members=(member,), threshold=threshold))
        left &= ~exits(score, threshold)
    spec = dataclasses.replace(base, stages=(*stages, Stage(members=(members[-1],))))
    answers = replay(spec, records)
    real = np.bincount(answers.exit_stage, minlength=len(members)) / records.rows
    fit = Fit(
        data_sha256=records.data_sha256,
        rows=records.rows,
        split=str(records.meta.get("data", "")),
        target=f"imposed exits {','.join(map(str, exit_share))}",
        accuracy=None,
        accuracy_ci95=None,
        exit_share=tuple(float(value) for value in real),
        mean_cost=float(answers.cost.astype(np.float64).mean()),
        random_weights=bool(random_members(records) or random_weights),
    )
    return dataclasses.replace(spec, fit=fit)


def _threshold(score: F32, count: int, name: str) -> float:
    """The threshold that comes nearest to letting that many of the scores exit."""
    if count == 0:
        return 2.0
    if count >= len(score):
        return -1.0 if not len(score) else float(score.min()) - 1
    places = middles(score)
    if not len(places):
        raise DataError(
            f"imposed exits at {name}", got="the same score for every row", expected="scores that differ"
        )
    # How many scores reach each threshold: `exits` for all of them at once, on sorted scores.
    reaching = len(score) - np.searchsorted(np.sort(score), places.astype(np.float32))
    return float(np.float32(places[np.argmin(np.abs(reaching - count))]))


def _scores(base: CascadeSpec, records: Records) -> Iterator[F32]:
    """Score float32 (n,) of the members asked so far, one stage after another; no threshold changes it.

    Raises:
        DataError: an output is not finite.
    """
    evaluator = Evaluator(dataclasses.replace(base, stages=tuple(Stage(members=(one,)) for one in base.members)))
    sums = evaluator.combiner.empty(records.rows)
    for stage, member in enumerate(base.members):
        failed, _ = evaluator.combiner.add_stage(sums, stage, [records.outputs[member.name]])
        if failed is not None:
            bad = int((failed >= 0).sum())
            raise DataError(f"records of {member.name}", got=f"{bad} rows with NaN or infinity")
        yield evaluator.answer(sums).confidence
