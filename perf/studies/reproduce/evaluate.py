"""What chosen plans achieve on the test part: accuracy and cost, with 95 % intervals, and time on this machine.

Accuracy and cost come from a replay through the decision core that serves plans. Accuracies have exact
(Clopper-Pearson) intervals. Differences of accuracy are paired by row and have a normal interval; ratios of costs
are paired too and have one by the delta method.

Times are of one thread of ONNX Runtime in this process:
- All plans are timed in the same rounds, one after another in an order that turns, so that drift of the machine
  affects all alike. Factors are formed within a round; their median is given with the smallest and the largest.
- A single model is asked batch by batch. A cascade runs the decision core, and its decisions count: the first
  stage takes whole batches, deferred rows gather until they fill a batch (at batch 1 that is at once), and the
  rows left at the end are asked about as they are.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import CascadeRun, Policy, arrivals_from_policies
from orchestrator.local import LocalMembers
from orchestrator.planner.intervals import clopper_pearson, discordant_pairs, paired_difference
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec
from orchestrator.spec.shares import evenly_spread
from perf.studies.reproduce.parts import Say, TestPart
from perf.studies.reproduce.plans import DELTA, HEADLINE, Choices, ChosenPlan, PlanComparison

# 97.5th percentile of the normal distribution.
_NORMAL_95 = 1.959963984540054
_WARM_UP_BATCHES = 4

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """What a plan does to every row of the test part: is its label right, MACs spent, the stage that answered."""

    right: npt.NDArray[np.bool_]
    cost: Floats
    stage: npt.NDArray[np.int32]


class ChoiceEvaluator:
    """Replays plans on the test part, each plan once."""

    def __init__(self, part: TestPart) -> None:
        self._part = part
        self._outcomes: dict[ChosenPlan, PlanOutcome] = {}

    def outcome(self, plan: ChosenPlan) -> PlanOutcome:
        """What a plan does to every row."""
        if plan not in self._outcomes:
            spec = plan.spec_of(self._part.base)
            answers = replay(spec, self._part.records)
            # In float64: the sums of the decision core are float32, good for seven digits.
            spent = np.cumsum([stage.cost for stage in spec.stages])
            self._outcomes[plan] = PlanOutcome(
                right=answers.label == self._part.records.labels,
                cost=spent[answers.exit_stage],
                stage=answers.exit_stage,
            )
        return self._outcomes[plan]

    def facts(self, plan: ChosenPlan) -> dict[str, Any]:
        """A plan and its numbers as JSON values."""
        outcome = self.outcome(plan)
        rows, right = len(outcome.right), int(outcome.right.sum())
        counts = np.bincount(outcome.stage, minlength=len(plan.stages))
        mean = float(outcome.cost.mean())
        reach = _NORMAL_95 * float(outcome.cost.std()) / math.sqrt(rows)
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
            "mean_cost": mean,
            "mean_cost_ci95": [mean - reach, mean + reach],
            "worst_cost": plan.spec_of(self._part.base).worst_cost,
            "exit_share": (counts / rows).tolist(),
        }

    def line(self, comparison: PlanComparison) -> dict[str, Any]:
        """A comparison and its numbers as JSON values."""
        line: dict[str, Any] = {name: getattr(comparison, name) for name in ("label", "note", "guarantee")}
        line |= {"other": self.facts(comparison.other), "one": None}
        if comparison.one is None:
            return line
        one, other = self.outcome(comparison.one), self.outcome(comparison.other)
        difference, interval = paired_difference(one.right, other.right)
        if comparison.one.decides_as(comparison.other):
            # A plan compared with itself differs by exactly 0.
            interval = (0.0, 0.0)
        factor, factor_interval = ratio_of_means(other.cost, one.cost)
        gains, losses = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
        facts = self.facts(comparison.one)
        return line | {
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


def evaluate_choices(choices: Choices, part: TestPart, *, say: Say) -> dict[str, Any]:
    """The numbers of all tables and of the figure, as JSON values."""
    evaluator = ChoiceEvaluator(part)
    say(f"test part: judging {len(choices.comparisons)} comparisons")
    claims: dict[str, list[dict[str, Any]]] = {}
    for comparison in choices.comparisons:
        claims.setdefault(comparison.claim, []).append(evaluator.line(comparison))
    hardest = _against_test_best(choices, evaluator)
    return {
        "claims": claims,
        "against_test_best": None if hardest is None else evaluator.line(hardest),
        "picture": {kind: [evaluator.facts(plan) for plan in plans] for kind, plans in choices.picture.items()},
    }


def _against_test_best(choices: Choices, evaluator: ChoiceEvaluator) -> PlanComparison | None:
    """The headline plan against the single model that is most accurate on the test part; None without such a plan.

    Which model that is cannot be known beforehand, and no plan is chosen by it. The comparison shows how much of
    the headline is owed to the chance by which another model was the most accurate on the plan part.
    """
    if choices.headline is None:
        return None
    singles = choices.picture["single"]
    best = max(singles, key=lambda one: (int(evaluator.outcome(one).right.sum()), -one.mean_cost))
    label = "the most accurate on the test part"
    return PlanComparison(claim=HEADLINE, label=label, one=choices.headline, other=best)


def ratio_of_means(above: Floats, below: Floats) -> tuple[float, tuple[float, float]]:
    """Mean of one cost over the mean of another on the same rows, with a 95 % interval by the delta method."""
    ratio = float(above.mean() / below.mean())
    rest = above - ratio * below
    reach = _NORMAL_95 * math.sqrt(float((rest**2).mean()) / len(rest)) / float(below.mean())
    return ratio, (ratio - reach, ratio + reach)


@dataclass(frozen=True, kw_only=True)
class TimingLoad:
    """How plans are asked while they are timed: rows per call, rows per round, number of rounds."""

    batch: int
    rows: int
    rounds: int


def timed(
    plans: Sequence[ChosenPlan], part: TestPart, *, members: LocalMembers, load: TimingLoad, say: Say
) -> dict[ChosenPlan, list[float]]:
    """Milliseconds per row of every single model and cascade, one figure per round.

    Members are opened with one thread; `load.rows` pictures of the test part are taken, spread evenly.
    """
    base, images = part.base, part.images
    rows = images[evenly_spread(len(images), load.rows)]
    ways = {plan: _way(plan, base, members, load.batch) for plan in dict.fromkeys(plans)}
    for way in ways.values():
        way(rows[: _WARM_UP_BATCHES * load.batch])
    figures: dict[ChosenPlan, list[float]] = {plan: [] for plan in ways}
    order = list(ways)
    for number in range(load.rounds):
        say(f"timing batches of {load.batch}: round {number + 1} of {load.rounds}")
        turn = number * len(order) // load.rounds
        for plan in order[turn:] + order[:turn]:
            begun = time.perf_counter()
            ways[plan](rows)
            figures[plan].append(1000 * (time.perf_counter() - begun) / len(rows))
    return figures


def _way(plan: ChosenPlan, base: CascadeSpec, members: LocalMembers, batch: int) -> Callable[[Images], Labels]:
    if len(plan.members) == 1:
        return lambda rows: ask_single(members, plan.members[0], rows, batch=batch)
    spec = plan.spec_of(base)
    return lambda rows: ask_cascade(members, spec, rows, batch=batch)


def ask_single(members: LocalMembers, name: str, images: Images, *, batch: int) -> Labels:
    """Labels int64 (n,) that one member gives, asked batch by batch."""
    parts = [members.ask(name, images[first : first + batch]) for first in range(0, len(images), batch)]
    return np.concatenate([np.argmax(part, axis=1) for part in parts])


def ask_cascade(members: LocalMembers, spec: CascadeSpec, images: Images, *, batch: int) -> Labels:
    """Labels int64 (n,) that a cascade gives, deferred rows pooled over batches."""
    # Beside the batch that arrives a batch may wait at every stage.
    run = CascadeRun(spec, capacity_rows=batch * (len(spec.stages) + 1))
    label = np.full(len(images), -1, np.int64)
    row_in_slot = np.zeros(run.capacity_rows, np.intp)

    def asked(stage: int, rows: npt.NDArray[np.intp]) -> list[npt.NDArray[np.float32]]:
        return [members.ask(member.name, images[rows]) for member in spec.stages[stage].members]

    def ask_later_stages(*, least: int) -> None:
        for stage in range(1, len(spec.stages)):
            while run.waiting(stage) >= least:
                slots = run.next(stage, batch)
                rows = row_in_slot[slots]
                outcome = run.feed(slots, asked(stage, rows))
                label[rows[outcome.answers.row]] = outcome.answers.label

    for first in range(0, len(images), batch):
        rows = np.arange(first, min(first + batch, len(images)))
        arrivals = arrivals_from_policies(
            [0], [len(rows)], policies=[Policy()], now_ns=[0], default_deadline_us=spec.limits.default_deadline_us
        )
        outcome = run.admit(arrivals, asked(0, rows))
        label[rows[outcome.answers.row]] = outcome.answers.label
        row_in_slot[outcome.slots] = rows[outcome.deferred]
        ask_later_stages(least=batch)
    ask_later_stages(least=1)
    return label


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest over the rounds."""
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}
