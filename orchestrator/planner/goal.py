"""The goal of planning: what is asked of a plan, how to look for one, and what plans are measured against."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.planner.candidates import (
    COST_TOLERANCE,
    MOST_MEMBERS,
    CandidatePlan,
    Labels,
    Ordering,
    SubsetTable,
    mode_of,
    orderings_of,
    table_from_records,
)
from orchestrator.planner.pricing import Pricing, Subset
from orchestrator.planner.records import Records
from orchestrator.planner.search import QUANTILES
from orchestrator.progress import Advance, no_advance
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.validation import Faults, is_finite

# The reference that is no single member: all members of the pool, combined.
ENSEMBLE = "ensemble"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to look for a plan.

    Args:
        combines: combine modes to look at; the reference "ensemble" is combined by the first one.
        scores: confidence scores to look at.
        quantiles: thresholds tried per stage, besides "never".
        certify_share: part of the rows kept to certify.
        seed: of the split into rows that search and rows that certify.
        calibrate: whether temperatures are tried.
        gears: cheaper threshold vectors wanted beside the plan's own, for overload.
        pricing: what plans cost; None takes the members' costs per row.
    """

    combines: tuple[str, ...] = ("mean_logit",)
    scores: tuple[str, ...] = ("max_prob",)
    quantiles: int = QUANTILES
    certify_share: float = 0.5
    seed: int = 0
    calibrate: bool = True
    gears: int = 0
    pricing: Pricing | None = None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Exactly one of an accuracy, a reference or a budget, and what else has to hold.

    A budget may come with a reference and an epsilon: the most accurate plan within it is then certified to be at
    most that much worse, or refused.

    Args:
        min_accuracy: cheapest plan with at least this accuracy.
        reference: cheapest plan that is at most `epsilon` less accurate than this member, or than "ensemble".
        epsilon: how much worse than the reference is still good; with `label_free`, how often it may disagree.
        max_mean_cost: most accurate plan with at most this mean cost per row; with `epsilon` also held to the
            reference.
        max_worst_cost: largest cost a row may have: the sum of the members' costs.
        max_stages: longest cascade looked at.
        label_free: agreement with the reference stands in for being right; labels are not looked at.
        delta: chance, over the rows drawn, that the guarantee does not hold.
        certify: whether part of the rows is kept to certify the plan.

    Raises:
        SpecError: values out of range, or arguments that contradict each other, keyed by argument.
    """

    min_accuracy: float | None = None
    reference: str | None = None
    epsilon: float | None = None
    max_mean_cost: float | None = None
    max_worst_cost: float | None = None
    max_stages: int = MOST_MEMBERS
    label_free: bool = False
    delta: float = 0.05
    certify: bool = True

    def __post_init__(self) -> None:
        faults = Faults("plan", of_arguments=True)
        accuracy, epsilon = self.min_accuracy, self.epsilon
        if accuracy is not None:
            good = is_finite(accuracy) and 0 < accuracy <= 1
            faults.check("min_accuracy", good, f"got {accuracy:g}, expected a number above 0 and at most 1")
        if epsilon is not None:
            good = is_finite(epsilon) and 0 <= epsilon <= 1
            faults.check("epsilon", good, f"got {epsilon:g}, expected a number at least 0 and at most 1")
        for name in ("max_mean_cost", "max_worst_cost"):
            if getattr(self, name) is not None:
                faults.positive(name, getattr(self, name))
        good = is_finite(self.delta) and 0 < self.delta < 1
        faults.check("delta", good, f"got {self.delta:g}, expected a number between 0 and 1")
        faults.integer("max_stages", self.max_stages, low=1, high=MOST_MEMBERS)
        self._check_objective(faults)
        faults.close()

    def _check_objective(self, faults: Faults) -> None:
        reference = not self.has_budget and (self.reference is not None or self.label_free)
        objectives = {
            "`min_accuracy`": self.min_accuracy is not None,
            "`label_free`" if self.label_free else "`reference`": reference,
            "`max_mean_cost`": self.max_mean_cost is not None,
        }
        given = [name for name, asked in objectives.items() if asked]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            faults.add("objective", f"got {got}, expected one of {', '.join(objectives)}")
            return
        if self.min_accuracy is not None and self.label_free:
            faults.add("label_free", "got `min_accuracy` too, expected `epsilon`: without labels none is known")
        if reference:
            good = self.epsilon is not None
            faults.check("epsilon", good, f"got none, expected one with {given[0]}, such as 0.01")
        elif self.epsilon is not None and self.reference is None and not (self.label_free and self.has_budget):
            faults.add("epsilon", f"got {self.epsilon:g} without `reference`, expected both")
        elif self.reference is not None and self.epsilon is None and not self.label_free:
            faults.add("reference", f"got {self.reference} without `epsilon`, expected both, or neither")

    @property
    def is_relative(self) -> bool:
        """Whether accuracy is compared with a reference's, so that gains make up for losses."""
        return self.reference is not None and not self.label_free

    @property
    def has_budget(self) -> bool:
        """Whether accuracy is maximised under a cost, rather than the other way round."""
        return self.max_mean_cost is not None

    @property
    def has_constraint(self) -> bool:
        """Whether a plan has to keep to more than costs."""
        return self.min_accuracy is not None or self.epsilon is not None

    @property
    def allowed(self) -> float:
        """How often a plan may be wrong, 1 - min_accuracy, or how much worse than the reference it may be."""
        return 1 - self.min_accuracy if self.min_accuracy is not None else float(self.epsilon or 0)

    @property
    def noun(self) -> str:
        """What is counted, in words."""
        return f"agreement with {self.reference}" if self.label_free else "accuracy"

    @property
    def counted(self) -> str:
        """What the rows that count against a plan are called."""
        if self.label_free:
            return "in disagreement"
        return "lost" if self.reference is not None else "wrong"

    @property
    def sure(self) -> str:
        """The first words of every guarantee."""
        return f"with probability at least {1 - self.delta:g} over the rows drawn,"

    @property
    def constraint(self) -> str:
        """What a plan has to keep to besides costs, in words."""
        if self.min_accuracy is not None:
            return f"accuracy >= {self.min_accuracy:g}"
        if self.label_free:
            return f"disagreement with {self.reference} <= {self.allowed:g}"
        return f"accuracy >= that of {self.reference} - {self.allowed:g}"

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.max_mean_cost is not None:
            text = f"highest {self.noun} with mean cost <= {_number(self.max_mean_cost)}"
            text += f" and {self.constraint}" if self.has_constraint else ""
        else:
            text = f"lowest mean cost with {self.constraint}"
        if self.max_worst_cost is not None:
            text += f", worst cost <= {_number(self.max_worst_cost)}"
        return text if self.max_stages == MOST_MEMBERS else f"{text}, at most {self.max_stages} stages"


def _number(value: float) -> str:
    """A cost; millions without an exponent, as people ask for them."""
    return f"{value:.0f}" if 1e6 <= value < 1e15 else f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """Rows with the answers of every subset, and what plans are measured against on them.

    Args:
        table: n rows; none where nothing is certified.
        target: int32 (n,), the answer that counts as right.
        reference_right: bool (n,), rows the reference gets right; all where plans are measured absolutely.
    """

    table: SubsetTable
    target: Labels
    reference_right: npt.NDArray[np.bool_]

    def take(self, rows: npt.NDArray[np.intp]) -> "MeasuredRows":
        """Some of the rows, which may repeat."""
        return MeasuredRows(
            table=self.table.take(rows), target=self.target[rows], reference_right=self.reference_right[rows]
        )

    def right(self, label: Labels) -> npt.NDArray[np.bool_]:
        """Which answers are right."""
        return np.asarray(label == self.target)

    def not_lost(self, label: Labels) -> npt.NDArray[np.bool_]:
        """Which answers are right, or wrong as the reference's."""
        return self.right(label) | ~self.reference_right


def measured_rows(goal: Goal, table: SubsetTable, records: Records, *, combine: str) -> MeasuredRows:
    """The records' table with what a goal measures rows against: the truth, a reference, or a reference's answers.

    The goal's reference is settled; `combine` is the mode of the reference "ensemble".
    """
    target = None if records.labels is None else records.labels.astype(np.int32)
    right = np.ones(table.rows, np.bool_)
    if goal.reference is not None:
        # As the plan of the reference alone answers: in probabilities, two classes a rounding apart may tie.
        answer = table.label(combine, _places(goal.reference, table.pool))
        target, right = (answer, right) if goal.label_free else (target, answer == target)
    assert target is not None
    return MeasuredRows(table=table, target=target, reference_right=right)


def rows_from_records(
    goal: Goal, base: CascadeSpec, records: Records, options: SearchOptions, *, advance: Advance = no_advance
) -> MeasuredRows:
    """The records' rows with the answers of every subset of the pool; see `table_from_records` for `advance`."""
    table = table_from_records(
        base,
        records,
        combines=options.combines,
        scores=options.scores,
        pricing=options.pricing,
        advance=advance,
    )
    return measured_rows(goal, table, records, combine=options.combines[0])


def wanted_orderings(goal: Goal, pool: Sequence[Member], options: SearchOptions) -> list[Ordering]:
    """What the search looks at for a goal; the pool stands in cost order."""
    return orderings_of(
        pool, combines=options.combines, scores=options.scores, max_stages=goal.max_stages,
        max_worst_cost=goal.max_worst_cost,
    )  # fmt: skip


def rows_wanted(goal: Goal, rows: MeasuredRows) -> float:
    """How many rows have to be right, by the goal's constraint on them."""
    if goal.min_accuracy is not None:
        return goal.min_accuracy * rows.table.rows
    return float(rows.reference_right.sum()) - (goal.epsilon or 0.0) * rows.table.rows


def _places(reference: str, pool: Sequence[Member]) -> Subset:
    """Which members of the pool the reference is."""
    if reference == ENSEMBLE:
        return tuple(range(len(pool)))
    return ([member.name for member in pool].index(reference),)


def is_reference(plan: CandidatePlan, goal: Goal, pool: Sequence[Member], *, combine: str) -> bool:
    """Whether a plan is the goal's reference itself; `combine` is the mode of the reference "ensemble"."""
    if goal.reference is None or plan.stages != (_places(goal.reference, pool),):
        return False
    return len(plan.members) == 1 or mode_of(plan.combine) == mode_of(combine)


def reference_alone(goal: Goal, pool: Sequence[Member], options: SearchOptions) -> CandidatePlan | None:
    """The reference as a plan; None where there is none, or it costs more than is allowed."""
    if goal.reference is None:
        return None
    places = _places(goal.reference, pool)
    cost = sum(pool[place].cost for place in places)
    limits = (limit for limit in (goal.max_worst_cost, goal.max_mean_cost) if limit is not None)
    if len(places) > MOST_MEMBERS or any(cost > limit * (1 + COST_TOLERANCE) for limit in limits):
        return None
    return CandidatePlan(combine=options.combines[0], score=options.scores[0], stages=(places,), thresholds=())
