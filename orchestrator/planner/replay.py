"""Plans over recorded outputs, by the core that serves them: replay, evaluation, why rows exit, imposed exits."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import AnsweredRows, Policy
from orchestrator.decision.all_stages import answer_all, joined
from orchestrator.decision.evaluate import Evaluator
from orchestrator.decision.exit_rule import exits
from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import has_seen
from orchestrator.planner.intervals import clopper_pearson, paired_difference
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.search import middles
from orchestrator.spec import CascadeSpec, Fit, Stage

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
CHUNK_ROWS = 4096
# Classes shown of an explained row.
TOP = 3


def replay(spec: CascadeSpec, records: Records, policy: Policy | None = None) -> AnsweredRows:
    """What the cascade answers, row by row in the records' order, `row` counting from 0 to n - 1.

    Args:
        spec: the plan.
        records: n rows that hold every member of the plan.
        policy: request parameters applied to every row.

    Raises:
        DataError: a member is missing from the records, the class count differs, or an output is not finite.
    """
    records.check_members(spec.members)
    if records.classes != spec.classes:
        raise DataError("records", got=f"{records.classes} classes", expected=f"{spec.classes} as in {spec.name}")
    parts = [
        _replay_chunk(spec, records, np.arange(start, min(start + CHUNK_ROWS, records.rows)), policy or Policy())
        for start in range(0, records.rows, CHUNK_ROWS)
    ]
    done = joined(parts)[np.argsort(np.concatenate([part.position for part in parts]))]
    done.row = done.position.astype(np.intp)
    return done


def _replay_chunk(
    spec: CascadeSpec, records: Records, index: npt.NDArray[np.intp], policy: Policy
) -> AnsweredRows:
    def recorded(stage: int, rows: npt.NDArray[np.intp]) -> list[F32]:
        return [records.outputs[member.name][index[rows]] for member in spec.stages[stage].members]

    answers, failures = answer_all(spec, len(index), recorded, policy=policy)
    if failed := sum(map(len, failures)):
        raise DataError("records", got=f"{failed} rows with NaN or infinite outputs", expected="finite outputs")
    answers.position = index[answers.position].astype(np.int64)
    return answers


def exits_and_cost(spec: CascadeSpec, exit_stage: npt.NDArray[Any]) -> tuple[tuple[float, ...], float]:
    """Share of rows that exit at each stage, and mean cost per row, by the stage that answers each row, (n,)."""
    rows = len(exit_stage)
    counts = np.bincount(exit_stage, minlength=len(spec.stages))
    # The runtime's own sums of costs are float32, good for seven digits.
    spent = np.cumsum(spec.stage_costs)
    return tuple(float(count) / rows for count in counts), float((counts * spent).sum()) / rows


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A cascade or a member on n rows.

    Args:
        right: how many rows it gets right.
        accuracy_ci95: exact interval.
        mean_cost: per row; None where the records count in another unit than the plan.
        exit_share: per stage; one for a member.
    """

    name: str
    right: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    mean_cost: float | None
    exit_share: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """One plan against another, row by row.

    Args:
        name: of the other plan.
        difference: accuracy of this plan minus the other's.
        difference_ci95: paired interval.
        losses: rows the other gets right and this one wrong.
        gains: rows this one gets right and the other wrong.
        cost_factor: mean cost of the other over this one's; None where the units differ or a cost is not known.
    """

    name: str
    difference: float
    difference_ci95: tuple[float, float]
    losses: int
    gains: int
    cost_factor: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A plan on n rows, compared with a reference.

    Args:
        cascade: the plan's numbers.
        members: numbers of every recorded member alone, by cost.
        reference: name of the member the plan is compared with, as another plan in `PairedComparison`.
        rows_of_the_plan: True where the plan was chosen on these rows or on some of them, as far as the records
            tell, so that its numbers flatter it.
    """

    rows: int
    cascade: EvaluatedModel
    members: tuple[EvaluatedModel, ...]
    reference: str
    difference: float
    difference_ci95: tuple[float, float]
    losses: int
    gains: int
    cost_factor: float | None
    rows_of_the_plan: bool


# A plan or a member with the rows that it gets right, bool (n,).
Judged = tuple[EvaluatedModel, Bools]


def evaluate(spec: CascadeSpec, records: Records, *, reference: str | None = None) -> Evaluation:
    """Replays a plan over labelled records; see `evaluate_plans`."""
    ((found, _),) = evaluate_plans([spec], records, reference=reference)
    return found


def evaluate_plans(
    specs: Sequence[CascadeSpec], records: Records, *, reference: str | None = None
) -> list[tuple[Evaluation, PairedComparison | None]]:
    """Replays plans over the same labelled records.

    Args:
        specs: the plans.
        records: n rows of all their members, and of others to compare with.
        reference: a recorded member; None takes the most accurate one.

    Returns:
        for each plan its numbers, and a comparison with the first plan; None for the first itself.

    Raises:
        DataError: no labels, no such member, other model files, or random weights.
    """
    labels = _checked_labels(specs, records, reference)
    right = {name: scores.argmax(axis=1) == labels for name, scores in records.outputs.items()}
    plans = []
    for spec in specs:
        answers = replay(spec, records)
        exit_share, mean_cost = exits_and_cost(spec, answers.exit_stage)
        hits = answers.label == labels
        plans.append((_evaluated(spec.name, hits, mean_cost=mean_cost, exit_share=exit_share), hits))
    found: list[tuple[Evaluation, PairedComparison | None]] = []
    for spec, plan in zip(specs, plans, strict=True):
        same_unit = spec.cost_unit == specs[0].cost_unit
        against = _compared(plan, plans[0], same_unit=same_unit) if found else None
        found.append((_evaluation(spec, records, plan, right=right, reference=reference), against))
    return found


def _evaluation(
    spec: CascadeSpec, records: Records, plan: Judged, *, right: dict[str, Bools], reference: str | None
) -> Evaluation:
    # A member outside the plan has a cost only where the records count in the plan's unit.
    same_unit = spec.cost_unit == records.cost_unit
    costs = {**(records.cost if same_unit else {}), **{member.name: member.cost for member in spec.members}}
    members = [_evaluated(name, one, mean_cost=costs.get(name), exit_share=(1.0,)) for name, one in right.items()]
    members.sort(key=lambda one: (records.cost[one.name], one.name))
    best = max(members, key=lambda one: (one.right, -records.cost[one.name]))
    beside = next(one for one in members if one.name == (reference or best.name))
    compared = vars(_compared(plan, (beside, right[beside.name]))).copy()
    return Evaluation(
        rows=records.rows,
        cascade=plan[0],
        members=tuple(members),
        reference=compared.pop("name"),
        rows_of_the_plan=has_seen(spec, records),
        **compared,
    )


def _compared(plan: Judged, reference: Judged, *, same_unit: bool = True) -> PairedComparison:
    (one, hits), (other, other_hits) = plan, reference
    difference, interval = paired_difference(hits, other_hits)
    factor = other.mean_cost / one.mean_cost if same_unit and one.mean_cost and other.mean_cost else None
    return PairedComparison(
        name=other.name,
        difference=difference,
        difference_ci95=interval,
        losses=int((other_hits & ~hits).sum()),
        gains=int((hits & ~other_hits).sum()),
        cost_factor=factor,
    )


def _checked_labels(
    specs: Sequence[CascadeSpec], records: Records, reference: str | None
) -> npt.NDArray[np.int64]:
    if reference is not None and reference not in records.outputs:
        expected = f"one of {', '.join(records.outputs)}"
        raise DataError("`reference`", got=f"{reference}, not recorded", expected=expected)
    if random := random_members(records):
        raise DataError("evaluate", got=f"random weights in {', '.join(random)}", expected="trained members")
    if records.labels is None:
        raise DataError("records", got="no labels", expected="a class per row, to tell right from wrong")
    known = records.meta.get("members", {})
    for member in (member for spec in specs for member in spec.members):
        recorded = known.get(member.name, {}).get("sha256")
        if None not in (recorded, member.sha256) and recorded != member.sha256:
            raise DataError(
                f"records of {member.name}", got="another model file than the plan's", fix="record or plan again"
            )
    return records.labels


def _evaluated(
    name: str, right: Bools, *, mean_cost: float | None, exit_share: tuple[float, ...]
) -> EvaluatedModel:
    hits, rows = int(right.sum()), len(right)
    return EvaluatedModel(
        name=name,
        right=hits,
        accuracy=hits / rows,
        accuracy_ci95=clopper_pearson(hits, rows),
        mean_cost=mean_cost,
        exit_share=exit_share,
    )


@dataclass(frozen=True, kw_only=True)
class StageExplanation:
    """How one stage judges one row.

    Args:
        row, stage: their indices.
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
    spec: CascadeSpec, outputs_by_member: Mapping[str, F32], *, policy: Policy | None = None
) -> list[StageExplanation]:
    """How every stage judges every row, stages that a row never reaches included: n times s, row by row.

    Args:
        spec: the plan.
        outputs_by_member: float32 (n, k) as each member of the plan gives it.
        policy: request parameters.
    """
    policy = policy or Policy()
    evaluator = Evaluator(spec)
    combiner, rule = evaluator.combiner, evaluator.rule
    rows = len(next(iter(outputs_by_member.values())))
    last = rule.last if policy.max_stage is None else policy.max_stage
    gear, shift = policy.gear or 0, np.full(rows, policy.threshold_shift, np.float32)
    stages = {"min_stage": policy.min_stage, "max_stage": last, "gear": gear}
    limits = {name: np.full(rows, value, np.int32) for name, value in stages.items()}
    sums = combiner.empty(rows)
    reached = np.ones(rows, np.bool_)
    columns: list[list[StageExplanation]] = []
    for stage, part in enumerate(spec.stages):
        combiner.add_stage(sums, stage, [outputs_by_member[member.name] for member in part.members])
        answer = evaluator.answer(sums)
        exits, _ = rule.decide(stage, answer.confidence, shift=shift, **limits)
        shifted = None
        if stage < rule.last and np.isfinite(rule.thresholds[gear, stage]):
            shifted = float(rule.thresholds[gear, stage] + shift[0])
        likeliest = np.argsort(-answer.probabilities, axis=1, kind="stable")[:, :TOP]
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
                    top=tuple((int(label), float(answer.probabilities[row, label])) for label in likeliest[row]),
                )
                for row in range(rows)
            ]
        )
        reached &= ~exits
    return [one for of_row in zip(*columns, strict=True) for one in of_row]


def impose_exits(
    base: CascadeSpec, records: Records, *, exit_share: Sequence[float], random_weights: Collection[str] = ()
) -> CascadeSpec:
    """The cascade of the pool, in its order, with thresholds at the quantiles that give the shares of exits.

    For cost and speed work: with it a cascade of random weights has the exit mix of a trained one. Nothing in the
    runtime knows about it; the thresholds are ordinary ones.

    Args:
        base: gives name, input, classes, combine mode and score; its stages' members are asked one after another.
        records: n rows of every member; labels are not looked at, and `fit` has no accuracy.
        exit_share: share of all rows that exits at each stage but the last; `fit` has what the thresholds give.
        random_weights: members that were never trained, beside those of which the records say so.

    Raises:
        DataError: the shares do not fit the members, or no threshold gives them.
    """
    members = base.members
    good = all(0 <= share <= 1 for share in exit_share) and sum(exit_share) <= 1 + 1e-9
    if len(exit_share) != len(members) - 1 or not good:
        given = ", ".join(f"{share:g}" for share in exit_share)
        expected = f"{len(members) - 1} shares from 0 to 1 that add up to at most 1"
        raise DataError("imposed exits", got=given, expected=expected)
    left = np.ones(records.rows, np.bool_)
    stages = []
    for member, score, share in zip(members, _scores(base, records), exit_share, strict=False):
        threshold = _threshold(score[left], round(share * records.rows), member.name)
        stages.append(Stage(members=(member,), threshold=threshold))
        left &= ~exits(score, threshold)
    spec = dataclasses.replace(base, stages=(*stages, Stage(members=(members[-1],))))
    answers = replay(spec, records)
    fit = Fit(
        data_sha256=records.data_sha256,
        rows=records.rows,
        split=str(records.meta.get("data", "")),
        target=f"imposed exits {','.join(map(str, exit_share))}",
        accuracy=None,
        accuracy_ci95=None,
        exit_share=exits_and_cost(spec, answers.exit_stage)[0],
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
        got = "the same score for every row"
        raise DataError(f"imposed exits at {name}", got=got, expected="scores that differ")
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
