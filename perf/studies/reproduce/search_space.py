"""Where plans are looked for: every subset's answers on the plan part, and the rules that pick a plan.

Rules of this file:
- It is given a `PlanPart` and nothing else.
- `no_worse` is the rule of every "at no lower accuracy": the cheapest plan nothing beats that is ahead of the
  reference by `MARGIN_SE` standard errors of the paired difference. A plan that is merely level was lucky to be
  chosen and loses about one of them on other rows (`rehearsal.py` shows it); the second is for the luck of the
  test.
- `certified` is the planner's own guarantee: one half of the rows proposes, the other confirms.
- `reaching` and `within` are the optimum on all rows, with no margin: they serve to compare ways of planning with
  each other, where the luck of a choice is the same for all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.candidates import CandidatePlan, answers_of, exit_shares_of, mean_cost, orderings_of
from orchestrator.planner.dataset_split import DatasetSplit, split_from_ids
from orchestrator.planner.decide import RowSet, decide
from orchestrator.planner.goal import Goal, SearchOptions, reference_of
from orchestrator.planner.search import RIGHT, Found, SearchResult, search
from orchestrator.planner.subset_table import SubsetTable, table_from_records
from orchestrator.progress import Progress
from perf.studies.reproduce.choices import ChosenPlan
from perf.studies.reproduce.parts import PlanPart

MARGIN_SE = 2.0
# Of the planner's guarantees: with probability 0.95 at most half a point, or one point, is lost.
DELTA, EPSILONS = 0.05, (0.005, 0.01)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Answers of every subset of a pool on all rows of the plan part.

    Args:
        part: whose rows they are.
        table: the answers.
        truth: int32 (n,).
        split: rows that propose and rows that confirm.
        quantiles: thresholds tried per stage.
        progress: shows searches.
    """

    part: PlanPart
    table: SubsetTable
    truth: npt.NDArray[np.int32]
    split: DatasetSplit
    quantiles: int
    progress: Progress

    @property
    def names(self) -> tuple[str, ...]:
        """The pool, cheapest first."""
        return tuple(member.name for member in self.table.pool)

    def plan_of(self, choice: CandidatePlan) -> ChosenPlan:
        """A choice by the names of its members, with what it achieves on all rows."""
        outcome = answers_of(choice, self.table)
        return ChosenPlan(
            stages=tuple(tuple(self.names[place] for place in stage) for stage in choice.stages),
            thresholds=choice.thresholds,
            combine=choice.combine,
            score=choice.score,
            accuracy=float((outcome.label == self.truth).mean()),
            mean_cost=mean_cost(choice, exit_shares_of(outcome, len(choice.stages)), self.table.costs),
        )

    def right(self, name: str) -> Bools:
        """Which rows a member gets right, bool (n,)."""
        right: Bools = self.table.tops[:, self.names.index(name)] == self.truth
        return right

    def take(self, rows: npt.NDArray[np.intp]) -> SearchSpace:
        """The same of some rows; no guarantee can be asked of them."""
        return dataclasses.replace(self, table=self.table.take(rows), truth=self.truth[rows])

    def again(self, plan: ChosenPlan) -> ChosenPlan:
        """A plan that was chosen elsewhere, with what it achieves on these rows."""
        stages = tuple(tuple(self.names.index(name) for name in stage) for stage in plan.stages)
        return self.plan_of(
            CandidatePlan(combine=plan.combine, score=plan.score, stages=stages, thresholds=plan.thresholds)
        )

    def averaged(self, names: Sequence[str]) -> ChosenPlan:
        """One member, or several that are always asked and averaged."""
        places = tuple(sorted(self.names.index(name) for name in names))
        return self.plan_of(CandidatePlan(combine="mean_logit", score="max_prob", stages=(places,), thresholds=()))


def search_space_of(
    part: PlanPart,
    names: Sequence[str],
    *,
    quantiles: int,
    progress: Progress,
    combine: str = "mean_logit",
    scores: Sequence[str] = ("max_prob",),
) -> SearchSpace:
    """Asks every subset of the named members about every plan row."""
    records = part.records
    kept = tuple(stage for stage in part.base.stages if stage.members[0].name in names)
    base = dataclasses.replace(part.base, stages=kept)
    with progress(f"combining members by {combine}", records.rows) as advance:
        table = table_from_records(base, records, combines=(combine,), scores=tuple(scores), advance=advance)
    assert records.labels is not None
    return SearchSpace(
        part=part,
        table=table,
        truth=records.labels.astype(np.int32),
        split=split_from_ids(records.ids, certify_share=0.5),
        quantiles=quantiles,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class CertifiedPlan:
    """What came of asking for a guarantee.

    Args:
        plan: None where none could be certified, or none is cheaper.
        note: why.
        guarantee: facts of the certificate.
    """

    plan: ChosenPlan | None
    note: str = ""
    guarantee: dict[str, Any] | None = None


def certified(space: SearchSpace, reference: str, *, epsilon: float) -> CertifiedPlan:
    """The cheapest plan that is certified to be at most `epsilon` less accurate than a member of the pool."""
    goal = Goal(reference=reference, epsilon=epsilon, delta=DELTA)
    options = SearchOptions(quantiles=space.quantiles, calibrate=False)
    stick = reference_of(goal, space.table, space.part.records, combine="mean_logit")
    everything = RowSet(table=space.table, yardstick=stick)
    proposing, confirming = everything.take(space.split.search), everything.take(space.split.certify)
    decision = decide(proposing, confirming, goal, options, progress=space.progress)
    if decision.shortfall is not None:
        return CertifiedPlan(plan=None, note=f"none certified: {decision.shortfall.got}")
    plan = space.plan_of(decision.choice)
    if plan.members == (reference,):
        refused = decision.instead
        note = "nothing cheaper is good enough on the rows that propose" if refused is None else refused.got
        return CertifiedPlan(plan=None, note=note if refused is None else f"none certified: {note}")
    return CertifiedPlan(plan=plan, guarantee=decision.guarantee)


def searched(
    space: SearchSpace,
    *,
    combine: str = "mean_logit",
    score: str = "max_prob",
    max_stages: int = 4,
    max_worst_cost: float | None = None,
) -> SearchResult:
    """The best plans of all rows for every accuracy and every cost."""
    chains = orderings_of(
        space.table.pool,
        combines=(combine,),
        scores=(score,),
        max_stages=max_stages,
        max_worst_cost=max_worst_cost,
    )
    with space.progress(f"searching {combine}, {score}, stages <= {max_stages}", len(chains)) as advance:
        return search(
            space.table,
            chains,
            values={RIGHT: lambda label: label == space.truth},
            max_stages=max_stages,
            quantiles=space.quantiles,
            advance=advance,
        )


def no_worse(
    space: SearchSpace, found: SearchResult, reference: Bools, *, below_cost: float, margin_se: float = MARGIN_SE
) -> ChosenPlan | None:
    """The cheapest plan nothing beats that is ahead of the reference by a margin; None where none is.

    Args:
        space: of the rows.
        found: plans to choose from.
        reference: bool (n,), rows the reference gets right.
        below_cost: what the reference costs; a plan that costs as much is of no use.
        margin_se: standard errors of the paired difference.
    """
    level = int(reference.sum())
    for one in reversed(found.frontiers[RIGHT]):
        if one.right < level or found.mean_cost(one) >= below_cost * (1 - 1e-12):
            continue
        right = answers_of(one.choice, space.table).label == space.truth
        if standard_errors_ahead(right, reference) >= margin_se:
            return space.plan_of(one.choice)
    return None


def standard_errors_ahead(one: Bools, other: Bools) -> float:
    """The mean of one - other over its standard error; 0 where they are equal row by row."""
    change = one.astype(np.float64) - other
    spread = float(change.std())
    return float(change.mean()) * math.sqrt(len(change)) / spread if spread else 0.0


def cheapest_at_accuracy(space: SearchSpace, found: SearchResult, *, accuracy: float) -> ChosenPlan | None:
    """The cheapest plan with that accuracy on the plan part; None where none has it."""
    return _plan(space, found.reaching(found.frontiers[RIGHT], right=accuracy * found.rows))


def best_at_cost(space: SearchSpace, found: SearchResult, *, mean_cost: float) -> ChosenPlan | None:
    """The most accurate plan with that mean cost on the plan part; None where all cost more."""
    return _plan(space, found.within(found.frontiers[RIGHT], max_mean_cost=mean_cost))


def _plan(space: SearchSpace, found: Found | None) -> ChosenPlan | None:
    return None if found is None else space.plan_of(found.choice)


def ensembles_of(space: SearchSpace) -> list[ChosenPlan]:
    """The averages of two to four members nothing beats in accuracy and cost, cheapest first."""
    units = [unit for unit in space.table.index if 1 < len(unit) <= 4]
    costs = [sum(space.table.costs[place] for place in unit) for unit in units]
    right = [int((space.table.label("mean_logit", unit) == space.truth).sum()) for unit in units]
    kept, most = [], -1
    for at in sorted(range(len(units)), key=lambda at: (costs[at], -right[at], units[at])):
        if right[at] > most:
            most = right[at]
            kept.append(space.averaged([space.names[place] for place in units[at]]))
    return kept
