"""From records and a goal to a plan: members, split, temperatures, table, search, certificate, cascade.json."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.planner.calibration import CalibrationResult, calibrate
from orchestrator.planner.candidates import CandidatePlan, answers_of, in_cost_order, mode_of
from orchestrator.planner.certify import Decision, UnmetConstraint, decide
from orchestrator.planner.clock import ClockPricing
from orchestrator.planner.dataset_split import DatasetSplit, kept_origin, records_of_rows, split_from_ids
from orchestrator.planner.goal import ENSEMBLE, Goal, MeasuredRows, SearchOptions, rows_from_records
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.predict import Alternative, alternatives_of, facts_of, priced, reached_stages
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.replay import exits_and_cost, replay
from orchestrator.planner.search import RIGHT, SearchResult, gears_of
from orchestrator.progress import Progress, no_progress
from orchestrator.spec import CascadeSpec, Fit, Gears, InputSpec, Member, Stage
from orchestrator.spec.cascade import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from orchestrator.spec.derived import Derived
from orchestrator.spec.documents import text_from_path, value_from_json
from orchestrator.spec.output_kind import BELOW_0, ScoreEvidence
from orchestrator.spec.planned_models import data_files_of
from orchestrator.spec.shares import evenly_spread
from orchestrator.spec.validation import COSTS, NAME, is_cost

# Letters of a wrong cost that an error shows.
WRONG_COST_LETTERS = 40
# Rows looked at to tell probabilities from logits.
LOOKED_AT = 256
_EXAMPLE = '{"cost": {"member": 1.5}, "unit": "ms"}'
# Rows of one call where neither a manifest nor a configuration says how many a member takes.
USUAL_BATCH = 64
# Letters of a name no plan can have that an error shows.
_WRONG_NAME_LETTERS = 40
# More points than this tell a reader nothing; the first and the last are always there.
FRONTIER_POINTS = 200
# The search and the served core are the same arithmetic; so many rows are replayed to see that they are.
REPLAYED_ROWS = 4096


def costs_from_path(path: Path, members: Collection[str]) -> tuple[dict[str, float], str]:
    """Costs per row of the members and their unit, by a JSON file: {"cost": {"member": 1.5}, "unit": "ms"}.

    Raises:
        DataError: the file is missing, holds something else, or lacks a member.
    """
    subject = f"cost profile {path}"
    try:
        text = text_from_path(path)
    except ValueError as error:
        raise DataError(subject, got=f"a file that {error}", expected=_EXAMPLE) from error
    try:
        value = value_from_json(text)
    except ValueError as error:
        raise DataError(subject, got=f"a file that is no JSON of use ({error})", expected=_EXAMPLE) from error
    cost, unit = (value.get("cost"), value.get("unit")) if isinstance(value, dict) else (None, None)
    if not isinstance(cost, dict) or not cost or not isinstance(unit, str) or not unit:
        is_timing = isinstance(value, dict) and isinstance(value.get("members"), list)
        got = "a timing, which `timing` takes" if is_timing else "other JSON"
        raise DataError(subject, got=got, expected=_EXAMPLE)
    bad = [
        f"{repr(number)[:WRONG_COST_LETTERS]} for {name}" for name, number in cost.items() if not is_cost(number)
    ]
    if bad:
        raise DataError(subject, got=", ".join(bad), expected=COSTS)
    missing = [name for name in members if name not in cost]
    if missing:
        got, fix = f"no cost of {', '.join(missing)}", f'add "{missing[0]}": NUMBER to its "cost"'
        raise DataError(subject, got=got, expected="one for every member", fix=fix)
    return {name: float(cost[name]) for name in members}, unit


def kind_seen(scores: npt.NDArray[np.float32]) -> str:
    """Whether scores, float32 (n, k), look like "logits" or "probabilities" by their first rows."""
    return ScoreEvidence().with_scores(scores[:LOOKED_AT]).kind


def check_probabilities(name: str, scores: npt.NDArray[np.float32], ids: npt.NDArray[Any]) -> None:
    """Refuses scores of a member, float32 (n, k), that cannot be probabilities.

    Raises:
        DataError: a row has a number below 0, or nothing above it; naming it by its id, of (n,).
    """
    bad = np.flatnonzero((scores.min(axis=1) < -BELOW_0) | (scores.max(axis=1) <= 0))
    if len(bad):
        where = f"in {len(bad)} of {len(scores)} rows, id {first_few(ids[bad])}"
        raise DataError(
            f"records, outputs of {name}",
            got=f"numbers below 0, or nothing above it, {where}",
            expected="probabilities, as its output_kind says",
            fix='say "logits" in its manifest, or in the meta of the records',
        )


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One plan nothing beats in both accuracy and cost, on the search part.

    Args:
        members: names in plan order.
        stages: the names by stage.
        accuracy: share of rows right; of rows that agree with the reference where labels are not looked at.
        worst_cost: of a row that goes through every stage.
    """

    members: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    thresholds: tuple[float, ...]
    combine: str
    score: str
    accuracy: float
    mean_cost: float
    worst_cost: float


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A plan with what it achieves.

    Args:
        spec: the plan, with `fit` filled in.
        accuracy: on the search part; agreement with the reference where labels are not looked at.
        accuracy_lower: lower bound of it from the certify part; None where nothing was certified.
        mean_cost, exit_share: per row and per stage, on the search part.
        frontier: dearest first.
        pool: all members that were chosen from, with the temperatures and costs that were planned with.
        fallback_reason: why the reference itself had to be taken; None where it had not.
    """

    spec: CascadeSpec
    accuracy: float
    accuracy_lower: float | None
    mean_cost: float
    exit_share: tuple[float, ...]
    frontier: tuple[FrontierPoint, ...]
    pool: tuple[Member, ...]
    fallback_reason: UnmetConstraint | None = None


@dataclass(frozen=True, kw_only=True)
class Infeasible:
    """No plan does what was asked: why, and the best reachable one."""

    best: PlanResult
    unmet: UnmetConstraint


def plan_from_records(
    base: CascadeSpec,
    records: Records,
    goal: Goal,
    *,
    options: SearchOptions | None = None,
    random_weights: Collection[str] = (),
    progress: Progress = no_progress,
) -> PlanResult | Infeasible:
    """The best plan for a goal, or the best reachable one where there is none.

    `base` gives name, input, classes, labels and cost unit; its stages' members are the pool, and the records have
    n rows of every one. No plan is made with `random_weights`, members that were never trained, beside those of
    which the records say so.

    Raises:
        DataError: records that cannot be planned with for this goal.
    """
    options = options or SearchOptions()
    goal = _settled(goal, base, records, random_weights={*random_weights, *random_members(records)})
    share = options.certify_share if goal.certify else 0.0
    split = split_from_ids(records.ids, certify_share=share, seed=options.seed, groups=records.groups)
    calibration = CalibrationResult(kept=False, reason="not asked for")
    if options.calibrate:
        calibration = calibrate(base, records, goal, split=split, options=options, progress=progress)
        base = calibration.applied(base)
    modes = len({mode_of(combine) for combine in options.combines})
    with progress("combining members", modes * records.rows) as advance:
        rows = rows_from_records(goal, base, records, options, advance=advance)
    search_rows = rows.take(split.search)
    certify_rows = rows.take(split.certify)
    decision = decide(search_rows, certify_rows, goal, options, progress=progress)
    origin = _Origin(base, records, split, calibration, goal, options)
    alternatives: tuple[Alternative, ...] = ()
    if isinstance(options.pricing, ClockPricing) and decision.unmet is None:
        given = (decision.plan, search_rows, certify_rows, goal, options, options.pricing)
        alternatives = alternatives_of(*given)
    result = _result(decision, search_rows, origin, alternatives)
    if decision.unmet is not None:
        return Infeasible(best=result, unmet=decision.unmet)
    return _with_gears(result, decision.plan, search_rows, options, labelled=not goal.label_free)


@dataclass(frozen=True)
class _Origin:
    """What a plan was made from; `base` has the temperatures, `goal` its reference."""

    base: CascadeSpec
    records: Records
    split: DatasetSplit
    calibration: CalibrationResult
    goal: Goal
    options: SearchOptions


def _settled(goal: Goal, base: CascadeSpec, records: Records, *, random_weights: Collection[str]) -> Goal:
    """The goal with its reference named, once the pool and the records can serve it."""
    names = [member.name for member in in_cost_order(base.members)]
    if ENSEMBLE in names:
        expected = "another name: this one means all members together"
        fix = "rename it, or leave it out with `members`"
        raise DataError("plan", got=f"a member named {ENSEMBLE}", expected=expected, fix=fix)
    random = [name for name in records.outputs if name in random_weights and name in names]
    if random:
        got = f"members with random weights, {', '.join(random)}"
        expected = "trained ones: accuracy of random weights is no result"
        raise DataError("plan", got=got, expected=expected, fix="for cost and speed work use `impose_exits`")
    if records.labels is None and not goal.label_free:
        fix = "record labelled data, or use `label_free` to certify agreement instead"
        raise DataError("records", got="no labels", expected="labels int64 (n,)", fix=fix)
    if goal.label_free and goal.reference is None:
        goal = dataclasses.replace(goal, reference=names[-1])
    if goal.reference is not None and goal.reference not in (*names, ENSEMBLE):
        raise DataError(
            "plan `reference`", got=goal.reference, expected=f"one of {', '.join(names)}, or {ENSEMBLE}"
        )
    return goal


def _result(
    decision: Decision, rows: MeasuredRows, origin: _Origin, alternatives: Sequence[Alternative]
) -> PlanResult:
    """The plan with its numbers on the search part."""
    plan, table = decision.plan, rows.table
    answers = answers_of(plan, table)
    pricing = origin.options.pricing
    spec = dataclasses.replace(
        origin.base,
        stages=spec_stages(plan, table.pool),
        combine=plan.combine,
        score=plan.score,
        fit=None,
        fused_prefix=None,
    )
    spec = without_unread(spec)
    few = origin.split.search[:REPLAYED_ROWS]
    replayed = replay(spec, records_of_rows(origin.records, few, spec.members)).label
    assert np.array_equal(replayed, answers.label[: len(few)]), f"{spec.name}: replay differs from the search"
    extra: dict[str, Any] = {}
    if isinstance(pricing, ClockPricing):
        where = reached_stages(plan, table)
        spec = priced(spec, where, table.prices)
        extra["timing"] = facts_of(where, pricing, alternatives)
    right = int(rows.right(answers.label).sum())
    accuracy = right / table.rows
    exit_share, mean_cost = exits_and_cost(spec, answers.stage)
    known = not origin.goal.label_free
    fit = Fit(
        data_sha256=origin.records.data_sha256,
        rows=table.rows,
        split=str(origin.records.meta.get("data", "")),
        target=origin.goal.text,
        accuracy=accuracy if known else None,
        accuracy_ci95=clopper_pearson(right, table.rows) if known else None,
        exit_share=exit_share,
        mean_cost=mean_cost,
        extra=_extra(decision, origin, agreement=accuracy) | extra,
    )
    return PlanResult(
        spec=dataclasses.replace(spec, fit=fit),
        accuracy=accuracy,
        accuracy_lower=decision.accuracy_lower,
        mean_cost=mean_cost,
        exit_share=exit_share,
        frontier=frontier_points(decision.result, table.pool),
        pool=table.pool,
        fallback_reason=decision.fallback_reason,
    )


def spec_stages(plan: CandidatePlan, pool: Sequence[Member]) -> tuple[Stage, ...]:
    """The stages of a plan as cascade.json has them."""
    return tuple(
        Stage(members=tuple(pool[place] for place in group), threshold=threshold)
        for group, threshold in zip(plan.stages, (*plan.thresholds, None), strict=True)
    )


def frontier_points(result: SearchResult, pool: Sequence[Member]) -> tuple[FrontierPoint, ...]:
    """The frontier of being right, thinned evenly where it is long."""
    frontier = result.frontiers[RIGHT]
    points = []
    for plan in (frontier[place] for place in evenly_spread(len(frontier), FRONTIER_POINTS)):
        stages = tuple(tuple(pool[place].name for place in group) for group in plan.stages)
        points.append(
            FrontierPoint(
                members=tuple(name for stage in stages for name in stage),
                stages=stages,
                thresholds=plan.thresholds,
                combine=plan.combine,
                score=plan.score,
                accuracy=plan.correct / result.rows,
                mean_cost=result.mean_cost(plan),
                worst_cost=float(sum(pool[place].cost for place in plan.members)),
            )
        )
    return tuple(points)


def _extra(decision: Decision, origin: _Origin, *, agreement: float) -> dict[str, Any]:
    split, goal, meta, groups = origin.split, origin.goal, origin.records.meta, origin.records.groups
    parts = (("search", split.search), ("certify", split.certify))
    extra: dict[str, Any] = {
        "split": {
            "by": "hash of id and seed" if groups is None else "hash of group and seed",
            "seed": split.seed,
            "search_rows": len(split.search),
            "certify_rows": len(split.certify),
            **({} if groups is None else {f"{name}_groups": len(np.unique(groups[rows])) for name, rows in parts}),
        },
        "calibration": origin.calibration.facts(),
        # Which recordings the rows are from, so that `evaluate` knows the rest of one from the whole.
        **kept_origin(meta),
    }
    recorded_with = _recorded_with(meta)
    if recorded_with:
        extra["recorded_with"] = recorded_with
    if goal.reference is not None:
        extra["reference"] = {"name": goal.reference, "combine": origin.options.combines[0]}
    if decision.guarantee is not None:
        extra["guarantee"] = decision.guarantee
    if goal.label_free:
        extra["agreement"] = {"reference": goal.reference, "share": agreement}
    return extra


def _recorded_with(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the scores were computed on, and which members need which processor flags to give them again."""
    found = dict(meta.get("recorded_with", {}))
    members = meta.get("members", {})
    flags = {name: one["processor_flags"] for name, one in members.items() if one.get("processor_flags")}
    return {**found, "processor_flags": flags} if flags else found


def _with_gears(
    result: PlanResult, plan: CandidatePlan, rows: MeasuredRows, options: SearchOptions, *, labelled: bool
) -> PlanResult:
    """The plan with its cheaper gears, where some are wanted and there are any."""
    cheaper = gears_of(plan, rows.table, right=rows.right, count=options.gears, quantiles=options.quantiles)
    if not cheaper:
        return result
    if not labelled:
        cheaper = tuple(dataclasses.replace(gear, accuracy=None) for gear in cheaper)
    return dataclasses.replace(result, spec=dataclasses.replace(result.spec, gears=Gears(cheaper=cheaper)))


def meta_of_members(records: Records) -> dict[str, dict[str, Any]]:
    """Member name -> what the records' meta says of it; members it does not mention are missing.

    Raises:
        DataError: no plan can name a member, or the meta has another form.
    """
    if bad := [repr(name[:_WRONG_NAME_LETTERS]) for name in records.outputs if NAME.match(name) is None]:
        got = f"members named {', '.join(bad)}"
        raise DataError("records", got=got, expected="up to 128 letters, digits, '_', '.', '-'")
    known = records.meta.get("members", {})
    if not isinstance(known, dict) or any(not isinstance(facts, dict) for facts in known.values()):
        raise DataError("records", got="meta whose members are no objects", expected='{"members": {name: {...}}}')
    return known


def recorded_member(
    name: str, records: Records, facts: Mapping[str, Any], *, cost: float, max_batch_size: int = USUAL_BATCH
) -> Member:
    """A member as its scores and `facts` of the records' meta describe it."""
    return Member(
        name=name,
        output=facts.get("output") or UNKNOWN_OUTPUT,
        output_kind=facts.get("output_kind") or kind_seen(records.outputs[name]),
        cost=cost,
        max_batch_size=max_batch_size,
        sha256=facts.get("sha256"),
        data_files=data_files_of(facts.get("data_files") or {}),
    )


def pool_spec(
    members: Sequence[Member], records: Records, *, name: str, cost_unit: str, takes: InputSpec = UNKNOWN_INPUT
) -> CascadeSpec:
    """The members as stages of a cascade, to choose from.

    Raises:
        DataError: scores that are said to be probabilities cannot be.
    """
    for member in members:
        if member.output_kind == "probabilities":
            check_probabilities(member.name, records.outputs[member.name], records.ids)
    stages = tuple(Stage(members=(member,)) for member in members)
    return CascadeSpec(name=name, inputs=(takes,), classes=records.classes, cost_unit=cost_unit, stages=stages)


def without_unread(spec: CascadeSpec) -> CascadeSpec:
    """A plan without the inputs and deriving models that none of its members needs."""
    models = {one.name: one for stage in range(len(spec.stages)) for one in spec.derived_for(stage)}
    readers: list[Member | Derived] = [*spec.members, *models.values()]
    read = {name for one in readers for name in spec.tensors_of(one).values()}
    return dataclasses.replace(
        spec,
        inputs=tuple(one for one in spec.inputs if one.name in read),
        derived=tuple(one for one in spec.derived if one.name in models),
    )


def plan(
    records: Records,
    goal: Goal,
    *,
    name: str = "cascade",
    options: SearchOptions | None = None,
    progress: Progress = no_progress,
) -> PlanResult | Infeasible:
    """The best plan for a goal, chosen from all recorded members.

    Tensors, class names and versions, which records do not know, are filled in when the plan is rendered.

    Args:
        records: n rows of every member, with costs in one unit.
        goal: what is wanted.
        name: of the cascade.
        options: how to search.
        progress: shows what takes long.

    Returns:
        the plan, or why there is none and the nearest one.

    Raises:
        DataError: records that cannot be planned with for this goal.
    """
    known = meta_of_members(records)
    members = [
        recorded_member(member, records, known.get(member, {}), cost=records.cost[member])
        for member in records.outputs
    ]
    base = pool_spec(members, records, name=name, cost_unit=records.cost_unit)
    return plan_from_records(base, records, goal, options=options, progress=progress)
