"""Why rows exit where they do: every stage of a plan judges every row as it does in serving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Policy
from orchestrator.decision.evaluate import Evaluator
from orchestrator.spec import CascadeSpec

TOP = 3


@dataclass(frozen=True, kw_only=True)
class StageExplanation:
    """How one stage judges one row.

    Args:
        row: index of the row.
        stage: index of the stage.
        members: that are asked there.
        score: confidence score of the answer there.
        threshold: that the score has to reach, with the request's shift; None where no row exits, and at the last
            stage, where every row does.
        low: score at or below which the stage answers with the abstain bit, if it has such a window.
        reached: False where the row was answered before.
        exits: True at the one stage that answers.
        top: the likeliest classes with their probabilities, likeliest first.
    """

    row: int
    stage: int
    members: tuple[str, ...]
    score: float
    threshold: float | None
    low: float | None
    reached: bool
    exits: bool
    top: tuple[tuple[int, float], ...]


def explain_rows(
    spec: CascadeSpec,
    outputs_by_member: Mapping[str, npt.NDArray[np.float32]],
    *,
    policy: Policy | None = None,
) -> list[StageExplanation]:
    """How every stage judges every row, stages that a row never reaches included.

    Args:
        spec: the plan.
        outputs_by_member: float32 (n, k) as each member of the plan gives it.
        policy: request parameters.

    Returns:
        n times s explanations, row by row.
    """
    policy = policy or Policy()
    evaluator = Evaluator(spec)
    combiner, rule = evaluator.combiner, evaluator.rule
    rows = len(next(iter(outputs_by_member.values())))
    last = rule.last if policy.max_stage is None else policy.max_stage
    gear = policy.gear or 0
    limits: dict[str, Any] = {
        "min_stage": np.full(rows, policy.min_stage, np.int32),
        "max_stage": np.full(rows, last, np.int32),
        "shift": np.full(rows, policy.threshold_shift, np.float32),
        "gear": np.full(rows, gear, np.int32),
    }
    sums = combiner.empty(rows)
    reached = np.ones(rows, np.bool_)
    columns: list[list[StageExplanation]] = []
    for stage, part in enumerate(spec.stages):
        combiner.add_stage(sums, stage, [outputs_by_member[member.name] for member in part.members])
        answer = evaluator.answer(sums)
        exits, _ = rule.decide(stage, answer.confidence, **limits)
        shifted = None
        if stage < rule.last and np.isfinite(rule.thresholds[gear, stage]):
            shifted = float(rule.thresholds[gear, stage] + limits["shift"][0])
        columns.append(
            [
                StageExplanation(
                    row=row,
                    stage=stage,
                    members=tuple(member.name for member in part.members),
                    score=float(answer.confidence[row]),
                    threshold=shifted,
                    low=part.low,
                    reached=bool(reached[row]),
                    exits=bool(reached[row] and exits[row]),
                    top=_likeliest(answer.probabilities[row]),
                )
                for row in range(rows)
            ]
        )
        reached &= ~exits
    return [one for of_row in zip(*columns, strict=True) for one in of_row]


def _likeliest(p: npt.NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-p, kind="stable")[:TOP]
    return tuple((int(label), float(p[label])) for label in order)
