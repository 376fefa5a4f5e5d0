"""What the choices achieve on the test part: one line of a table per comparison, with intervals.

Plans are replayed through the decision core that serves them. Accuracies have exact (Clopper-Pearson) intervals,
differences of accuracy are paired, row by row, with a normal interval; so are ratios of costs (delta method).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.intervals import clopper_pearson, discordant_pairs, paired_difference
from orchestrator.planner.replay import replay
from perf.studies.reproduce.choices import HEADLINE, Choices, ChosenPlan, PlanComparison
from perf.studies.reproduce.parts import TestPart
from perf.studies.reproduce.search_space import DELTA

# Two-sided 95 % of a normal distribution.
REACH = 1.959963984540054
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """One plan on the test part.

    Args:
        right: bool (n,).
        cost: float64 (n,), of every row.
        stage: int32 (n,), where it was answered.
    """

    right: npt.NDArray[np.bool_]
    cost: F64
    stage: npt.NDArray[np.int32]


class ChoiceEvaluator:
    """Replays plans, each one once.

    Args:
        part: what they are judged on.
    """

    def __init__(self, part: TestPart) -> None:
        assert part.records.labels is not None
        self._part = part
        self._truth = part.records.labels
        self._seen: dict[ChosenPlan, PlanOutcome] = {}

    def seen(self, plan: ChosenPlan) -> PlanOutcome:
        """What a plan does to every row."""
        if plan not in self._seen:
            spec = plan.spec_of(self._part.base)
            answers = replay(spec, self._part.records)
            # In float64: the runtime's own sums are float32, good for seven digits.
            spent = np.cumsum([stage.cost for stage in spec.stages])
            self._seen[plan] = PlanOutcome(
                right=answers.label == self._truth, cost=spent[answers.exit_stage], stage=answers.exit_stage
            )
        return self._seen[plan]

    def facts(self, plan: ChosenPlan) -> dict[str, Any]:
        """A plan and its numbers as JSON values."""
        seen = self.seen(plan)
        rows, right = len(seen.right), int(seen.right.sum())
        counts = np.bincount(seen.stage, minlength=len(plan.stages))
        return {
            "plan": plan.text,
            "stages": [list(stage) for stage in plan.stages],
            "thresholds": list(plan.thresholds),
            "combine": plan.combine,
            "score": plan.score,
            "n": rows,
            "right": right,
            "accuracy": right / rows,
            "accuracy_ci95": list(clopper_pearson(right, rows)),
            "plan_part_accuracy": plan.accuracy,
            "mean_cost": float(seen.cost.mean()),
            "mean_cost_ci95": list(_mean_interval(seen.cost)),
            "worst_cost": plan.spec_of(self._part.base).worst_cost,
            "exit_share": (counts / rows).tolist(),
        }

    def line(self, comparison: PlanComparison) -> dict[str, Any]:
        """A comparison and its numbers as JSON values."""
        line: dict[str, Any] = {
            "label": comparison.label,
            "note": comparison.note,
            "guarantee": comparison.guarantee,
            "other": self.facts(comparison.other),
            "one": None,
        }
        if comparison.one is None:
            return line
        one, other = self.seen(comparison.one), self.seen(comparison.other)
        difference, interval = paired_difference(one.right, other.right)
        if _same(comparison.one, comparison.other):
            # With itself there is nothing to be unsure of.
            interval = (0.0, 0.0)
        factor, factor_interval = ratio_of_means(other.cost, one.cost)
        gains, losses = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
        facts = self.facts(comparison.one)
        line |= {
            "one": facts,
            "difference": difference,
            "difference_ci95": list(interval),
            "gains": gains,
            "losses": losses,
            "worse_by_at_most": discordant_pairs(losses, gains, len(one.right), DELTA),
            "macs_factor": factor,
            "macs_factor_ci95": list(factor_interval),
            "worst_cost_factor": line["other"]["worst_cost"] / facts["worst_cost"],
        }
        return line


def _same(one: ChosenPlan, other: ChosenPlan) -> bool:
    """Whether two plans ask the same and decide alike, whatever is known of them."""
    keys = ("stages", "thresholds", "combine", "score")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def judged(choices: Choices, part: TestPart, *, say: Callable[[str], None]) -> dict[str, Any]:
    """All tables and the figure's points, as JSON values."""
    judge = ChoiceEvaluator(part)
    say(f"test part: judging {len(choices.comparisons)} comparisons")
    claims: dict[str, list[dict[str, Any]]] = {}
    for comparison in choices.comparisons:
        claims.setdefault(comparison.claim, []).append(judge.line(comparison))
    hardest = against_test_best(choices, judge)
    return {
        "claims": claims,
        "against_test_best": None if hardest is None else judge.line(hardest),
        "picture": {kind: [judge.facts(plan) for plan in plans] for kind, plans in choices.picture.items()},
    }


def against_test_best(choices: Choices, judge: ChoiceEvaluator) -> PlanComparison | None:
    """The headline plan against the single model that is most accurate on the test part.

    Nobody could have known that one beforehand and no plan is chosen by it: it only shows how much of the headline
    is the luck of the model that was most accurate on the plan part.

    Returns:
        None where there is no headline plan.
    """
    if choices.headline is None:
        return None
    best = max(choices.picture["single"], key=lambda one: (int(judge.seen(one).right.sum()), -one.mean_cost))
    return PlanComparison(
        claim=HEADLINE, label="the most accurate on the test part", one=choices.headline, other=best
    )


def ratio_of_means(above: F64, below: F64) -> tuple[float, tuple[float, float]]:
    """Mean of one cost over the mean of another on the same rows, with a 95 % interval by the delta method.

    Args:
        above: float64 (n,).
        below: float64 (n,), its mean not 0.
    """
    ratio = float(above.mean() / below.mean())
    rest = above - ratio * below
    reach = REACH * math.sqrt(float((rest**2).mean()) / len(rest)) / float(below.mean())
    return ratio, (ratio - reach, ratio + reach)


def _mean_interval(values: F64) -> tuple[float, float]:
    mean, reach = float(values.mean()), REACH * float(values.std()) / math.sqrt(len(values))
    return mean - reach, mean + reach
