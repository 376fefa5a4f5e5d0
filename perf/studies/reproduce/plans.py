"""The plans there are, by their answers on the plan part, and the rules that pick one of them.

Nothing here sees another row than those of the `PlanPart` it is given. The rules:
- `no_worse` stands behind every "at no lower accuracy". It takes the cheapest plan on the frontier that is ahead
  of the reference by `MARGIN_SE` standard errors of the paired difference. A plan that is merely level with the
  reference owes that to the rows it was chosen on and loses about one standard error on other rows, as
  `validate_margins` shows; the second one allows for the chance of the test rows.
- `certified` is the planner's own guarantee: one half of the rows proposes plans, the other half confirms them.
- `cheapest_at_accuracy` and `best_at_cost` are the optimum on all rows, without a margin. They compare ways of
  planning with each other, which all gain alike from choosing on the rows they are compared on.

choices.json holds the plans that were chosen before the test part is drawn. Nothing in it comes from the test part
or from a clock: the same plan part and members give the same bytes.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.candidates import (
    CandidatePlan,
    SubsetTable,
    answers_of,
    orderings_of,
    table_from_records,
)
from orchestrator.planner.certify import decide
from orchestrator.planner.dataset_split import DatasetSplit, split_from_ids
from orchestrator.planner.goal import Goal, SearchOptions, measured_rows
from orchestrator.planner.search import RIGHT, SearchResult, search
from orchestrator.progress import Progress
from orchestrator.repository.files import write_all
from orchestrator.spec import CascadeSpec, Stage
from perf.studies.reproduce.parts import PlanPart

FORMAT = 1
CHOICES = "choices.json"
# Key of the comparisons behind the headline; the first of them is about the headline plan.
HEADLINE = "headline"
# End of the label of a line whose plan was chosen by the rule without the margin.
NO_MARGIN = ", no margin"


@dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """A single model, an ensemble or a cascade; `accuracy` and `mean_cost`, MACs per row, are of the plan part."""

    stages: tuple[tuple[str, ...], ...]
    thresholds: tuple[float, ...] = ()
    combine: str = "mean_logit"
    score: str = "max_prob"
    accuracy: float = 0.0
    mean_cost: float = 0.0

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all its members, in order."""
        return tuple(name for stage in self.stages for name in stage)

    @property
    def text(self) -> str:
        """Stages in words, such as "b0_s1, then b2_s0 + b3_s0"."""
        return ", then ".join(" + ".join(short(name) for name in stage) for stage in self.stages)

    def decides_as(self, other: "ChosenPlan") -> bool:
        """Whether both give every row the same answer, whatever accuracy they were chosen at."""
        return self == dataclasses.replace(other, accuracy=self.accuracy, mean_cost=self.mean_cost)

    def spec_of(self, base: CascadeSpec) -> CascadeSpec:
        """The plan as a cascade that can be served; `base` knows every member."""
        known = {member.name: member for member in base.members}
        stages = tuple(
            Stage(members=tuple(known[name] for name in stage), threshold=threshold)
            for stage, threshold in zip(self.stages, (*self.thresholds, None), strict=True)
        )
        return dataclasses.replace(
            base, stages=stages, combine=self.combine, score=self.score, fit=None, fused_prefix=None
        )


def short(name: str) -> str:
    """A member's name without the prefix that all of them have."""
    return name.removeprefix("glyphs_")


@dataclass(frozen=True, kw_only=True)
class PlanComparison:
    """Two plans to compare: one line of a table of the document.

    Args:
        claim: key of the table.
        one: the plan in question; None where no plan meets the claim's rule, and `note` says why.
        other: the plan it is compared with.
        guarantee: facts of the certificate of a certified plan.
    """

    claim: str
    label: str
    one: ChosenPlan | None
    other: ChosenPlan
    note: str = ""
    guarantee: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Everything that is chosen on the plan part.

    Args:
        source: rows, hashes and options behind the choices.
        comparisons: lines of all tables.
        picture: kind of plan -> plans drawn in the figure.
        margin_validation: results of margins on rows that had no part in choosing; "rehearsal" in the file.
    """

    source: dict[str, Any]
    comparisons: tuple[PlanComparison, ...]
    picture: dict[str, tuple[ChosenPlan, ...]]
    margin_validation: tuple[dict[str, Any], ...] = ()

    @property
    def headline(self) -> ChosenPlan | None:
        """The headline plan; None where no cheaper plan was ahead by the margin."""
        return next((line.one for line in self.comparisons if line.claim == HEADLINE), None)


def write_choices(choices: Choices, folder: Path) -> Path:
    """Writes choices.json whole or not at all."""
    document = {"format": FORMAT, **dataclasses.asdict(choices)}
    document["rehearsal"] = document.pop("margin_validation")
    write_document(document, folder / CHOICES)
    return folder / CHOICES


def write_document(document: dict[str, Any], path: Path) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_all(path.parent, {path.name: text})


def choices_from_path(path: Path) -> Choices:
    """Reads choices.json.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"format {document.get('format')}")
        return Choices(
            source=document["source"],
            comparisons=tuple(_comparison(one) for one in document["comparisons"]),
            picture={
                kind: tuple(_plan_from_json(plan) for plan in plans) for kind, plans in document["picture"].items()
            },
            margin_validation=tuple(document["rehearsal"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"choices {path}", got=error, fix="python -m perf reproduce writes them") from error


def _comparison(value: dict[str, Any]) -> PlanComparison:
    one = value["one"]
    return PlanComparison(
        **{**value, "one": None if one is None else _plan_from_json(one), "other": _plan_from_json(value["other"])}
    )


def _plan_from_json(value: dict[str, Any]) -> ChosenPlan:
    stages = tuple(tuple(stage) for stage in value["stages"])
    return ChosenPlan(**{**value, "stages": stages, "thresholds": tuple(value["thresholds"])})


MARGIN_SE = 2.0
# What the planner guarantees: with probability 0.95 a plan loses at most half a point, or one point, of accuracy.
DELTA, EPSILONS = 0.05, (0.005, 0.01)
# `validate_margins` tries these margins on random splits, each with this share of rows to choose on.
MARGINS_SE = (0.0, 1.0, 2.0, 3.0)
_CHOOSING_SHARE = 0.6
_SPLIT_SEED = 5

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Answers of every subset of a pool on all rows of the plan part.

    Args:
        truth: labels, int32 (n,).
        split: rows that propose and rows that confirm a certified plan.
        quantiles: number of thresholds tried per stage.
    """

    part: PlanPart
    table: SubsetTable
    truth: npt.NDArray[np.int32]
    split: DatasetSplit
    quantiles: int
    progress: Progress

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, cheapest first."""
        return tuple(member.name for member in self.table.pool)

    def plan_of(self, plan: CandidatePlan) -> ChosenPlan:
        """A plan with its accuracy and its mean cost on all rows of this space."""
        answers = answers_of(plan, self.table)
        return ChosenPlan(
            stages=tuple(tuple(self.names[place] for place in stage) for stage in plan.stages),
            thresholds=plan.thresholds,
            combine=plan.combine,
            score=plan.score,
            accuracy=float((answers.label == self.truth).mean()),
            mean_cost=answers.mean_cost,
        )

    def right(self, name: str) -> Bools:
        """Whether a member is right, per row, bool (n,)."""
        right: Bools = self.table.tops[:, self.names.index(name)] == self.truth
        return right

    def take(self, rows: npt.NDArray[np.intp]) -> "SearchSpace":
        """The space of some of the rows; `split` still means all of them, so `certified` must not be asked."""
        return dataclasses.replace(self, table=self.table.take(rows), truth=self.truth[rows])

    def again(self, plan: ChosenPlan) -> ChosenPlan:
        """A plan that was chosen on other rows, with its accuracy and its mean cost on these."""
        stages = tuple(tuple(map(self.names.index, stage)) for stage in plan.stages)
        return self.plan_of(
            CandidatePlan(combine=plan.combine, score=plan.score, stages=stages, thresholds=plan.thresholds)
        )

    def averaged(self, names: Sequence[str]) -> ChosenPlan:
        """One member, or several that are always asked and whose logits are averaged."""
        return self.again(ChosenPlan(stages=(tuple(sorted(names, key=self.names.index)),)))

    def of(self, names: Sequence[str], **rule: Any) -> "SearchSpace":
        """The space of the named members on the same rows, combined as `search_space_of` is told."""
        return search_space_of(self.part, names, quantiles=self.quantiles, progress=self.progress, **rule)


def search_space_of(
    part: PlanPart,
    names: Sequence[str],
    *,
    quantiles: int,
    progress: Progress,
    combine: str = "mean_logit",
    scores: Sequence[str] = ("max_prob",),
) -> SearchSpace:
    """Combines every subset of the named members on every row of the plan part."""
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


def certified(space: SearchSpace, single: ChosenPlan, *, epsilon: float) -> PlanComparison:
    """The cheapest plan certified to be at most `epsilon` less accurate than a single model, compared with it."""
    goal = Goal(reference=single.members[0], epsilon=epsilon, delta=DELTA)
    options = SearchOptions(quantiles=space.quantiles, calibrate=False)
    everything = measured_rows(goal, space.table, space.part.records, combine="mean_logit")
    proposing, confirming = everything.take(space.split.search), everything.take(space.split.certify)
    line = partial(PlanComparison, claim=HEADLINE, label=f"epsilon {epsilon:g}", other=single)
    decision = decide(proposing, confirming, goal, options, progress=space.progress)
    if decision.unmet is not None:
        return line(one=None, note=f"none certified: {decision.unmet.got}")
    plan = space.plan_of(decision.plan)
    if plan.members != single.members:
        return line(one=plan, guarantee=decision.guarantee)
    if decision.fallback_reason is None:
        return line(one=None, note="nothing cheaper is good enough on the rows that propose")
    return line(one=None, note=f"none certified: {decision.fallback_reason.got}")


def searched(
    space: SearchSpace,
    *,
    combine: str = "mean_logit",
    score: str = "max_prob",
    max_stages: int = 4,
    max_worst_cost: float | None = None,
) -> SearchResult:
    """The frontier of plans on all rows of the space."""
    pool = space.table.pool
    orderings = orderings_of(
        pool, combines=(combine,), scores=(score,), max_stages=max_stages, max_worst_cost=max_worst_cost
    )
    with space.progress(f"searching {combine}, {score}, stages <= {max_stages}", len(orderings)) as advance:
        return search(
            space.table,
            orderings,
            measures={RIGHT: lambda label: label == space.truth},
            max_stages=max_stages,
            quantiles=space.quantiles,
            advance=advance,
        )


def no_worse(
    space: SearchSpace, found: SearchResult, reference: Bools, *, below_cost: float, margin_se: float = MARGIN_SE
) -> ChosenPlan | None:
    """The cheapest plan on the frontier that is ahead of the reference by a margin; None where none is.

    Args:
        space: the rows.
        found: the frontier.
        reference: whether the reference is right, per row, bool (n,).
        below_cost: cost of the reference; a plan that costs as much is of no use.
        margin_se: margin in standard errors of the paired difference.
    """
    level = int(reference.sum())
    for one in reversed(found.frontiers[RIGHT]):
        if one.correct < level or found.mean_cost(one) >= below_cost * (1 - 1e-12):
            continue
        right = answers_of(one, space.table).label == space.truth
        if standard_errors_ahead(right, reference) >= margin_se:
            return space.plan_of(one)
    return None


def standard_errors_ahead(one: Bools, other: Bools) -> float:
    """Mean of the paired difference one - other over its standard error; 0 where no row differs."""
    change = one.astype(np.float64) - other
    spread = float(change.std())
    return float(change.mean()) * math.sqrt(len(change)) / spread if spread else 0.0


def cheapest_at_accuracy(space: SearchSpace, found: SearchResult, *, accuracy: float) -> ChosenPlan | None:
    """The cheapest plan of at least this accuracy on these rows; None where none has it."""
    plan = found.cheapest_at_accuracy(found.frontiers[RIGHT], correct=accuracy * found.rows)
    return None if plan is None else space.plan_of(plan)


def best_at_cost(space: SearchSpace, found: SearchResult, *, mean_cost: float) -> ChosenPlan | None:
    """The most accurate plan of at most this mean cost on these rows; None where all cost more."""
    plan = found.best_at_cost(found.frontiers[RIGHT], max_mean_cost=mean_cost)
    return None if plan is None else space.plan_of(plan)


def ensembles_of(space: SearchSpace) -> list[ChosenPlan]:
    """The frontier of averages of two to four members, cheapest first."""
    units = [unit for unit in space.table.index if 1 < len(unit) <= 4]
    costs = [sum(space.table.costs[place] for place in unit) for unit in units]
    right = [int((space.table.label("mean_logit", unit) == space.truth).sum()) for unit in units]
    kept, most = [], -1
    for at in sorted(range(len(units)), key=lambda at: (costs[at], -right[at], units[at])):
        if right[at] > most:
            most = right[at]
            kept.append(space.averaged([space.names[place] for place in units[at]]))
    return kept


def validate_margins(space: SearchSpace, reference: str, *, splits: int) -> Iterator[dict[str, Any]]:
    """Tries margins of `no_worse` on rows that had no part in choosing; gives one JSON object per margin.

    Rows are split at random several times. Plans are chosen on the larger piece of each split and judged on the
    smaller one. The test part has no part in it, and no choice depends on what comes out.
    """
    seen: dict[float, list[tuple[float, float]]] = {margin: [] for margin in MARGINS_SE}
    for number in range(splits):
        order = np.random.default_rng([_SPLIT_SEED, number]).permutation(space.table.rows)
        cut = round(_CHOOSING_SHARE * len(order))
        chosen_on, judged_on = (space.take(np.sort(rows)) for rows in (order[:cut], order[cut:]))
        found, right = searched(chosen_on), chosen_on.right(reference)
        cost = space.table.costs[space.names.index(reference)]
        for margin in MARGINS_SE:
            plan = no_worse(chosen_on, found, right, below_cost=cost, margin_se=margin)
            if plan is not None:
                again = judged_on.again(plan)
                ahead = again.accuracy - float(judged_on.right(reference).mean())
                seen[margin].append((ahead, cost / again.mean_cost))
    for margin, figures in seen.items():
        differences, factors = np.array(figures).reshape(-1, 2).T
        yield {
            "margin_se": margin,
            "splits": splits,
            "plans": len(figures),
            "lower": int((differences < 0).sum()),
            "mean_difference": float(differences.mean()) if len(figures) else None,
            "mean_macs_factor": float(factors.mean()) if len(figures) else None,
        }
