"""What a finished plan does to rows that had no say in it, beside the members alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import has_seen
from orchestrator.planner.intervals import clopper_pearson, paired_difference
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """One way to an answer, on n rows.

    Args:
        name: of the cascade or member.
        right: how many rows it gets right.
        accuracy: share of them.
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
        gains: the other way round.
        cost_factor: mean cost of the other over this one's; None where they count in different units.
    """

    name: str
    difference: float
    difference_ci95: tuple[float, float]
    losses: int
    gains: int
    cost_factor: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A plan on rows, against a reference.

    Args:
        rows: how many.
        cascade: the plan.
        members: every recorded member alone, by cost.
        reference: the member it is compared with.
        difference: accuracy of the cascade minus the reference's.
        difference_ci95: paired interval.
        losses: rows the reference gets right and the cascade wrong.
        gains: the other way round.
        cost_factor: mean cost of the reference over the cascade's.
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
        for each plan what it does, and how it compares with the first plan; None for the first.

    Raises:
        DataError: no labels, no such member, other model files, or random weights.
    """
    labels = _checked_labels(specs, records)
    right = {name: scores.argmax(axis=1) == labels for name, scores in records.outputs.items()}
    found: list[tuple[Evaluation, PairedComparison | None]] = []
    first: tuple[CascadeSpec, EvaluatedModel, npt.NDArray[np.bool_]] | None = None
    for spec in specs:
        cascade, hits = _cascade(spec, records, labels)
        against = None if first is None else _compared(spec, cascade, hits, *first)
        first = first or (spec, cascade, hits)
        found.append((_evaluation(spec, records, cascade, hits, right=right, reference=reference), against))
    return found


def _evaluation(
    spec: CascadeSpec,
    records: Records,
    cascade: EvaluatedModel,
    hits: npt.NDArray[np.bool_],
    *,
    right: dict[str, npt.NDArray[np.bool_]],
    reference: str | None,
) -> Evaluation:
    costs = _costs(spec, records)
    members = [_route(name, one, costs.get(name)) for name, one in right.items()]
    members.sort(key=lambda one: (records.cost[one.name], one.name))
    best = max(members, key=lambda one: (one.right, -records.cost[one.name]))
    beside = next(one for one in members if one.name == (reference or best.name))
    difference, interval = paired_difference(hits, right[beside.name])
    return Evaluation(
        rows=records.rows,
        cascade=cascade,
        members=tuple(members),
        reference=beside.name,
        difference=difference,
        difference_ci95=interval,
        losses=int((right[beside.name] & ~hits).sum()),
        gains=int((hits & ~right[beside.name]).sum()),
        cost_factor=_factor(beside.mean_cost, cascade.mean_cost),
        rows_of_the_plan=has_seen(spec, records),
    )


def _compared(
    spec: CascadeSpec,
    cascade: EvaluatedModel,
    hits: npt.NDArray[np.bool_],
    other_spec: CascadeSpec,
    other: EvaluatedModel,
    other_hits: npt.NDArray[np.bool_],
) -> PairedComparison:
    difference, interval = paired_difference(hits, other_hits)
    same_unit = spec.cost_unit == other_spec.cost_unit
    return PairedComparison(
        name=other.name,
        difference=difference,
        difference_ci95=interval,
        losses=int((other_hits & ~hits).sum()),
        gains=int((hits & ~other_hits).sum()),
        cost_factor=_factor(other.mean_cost, cascade.mean_cost) if same_unit else None,
    )


def _factor(other: float | None, own: float | None) -> float | None:
    return other / own if other and own else None


def check_reference(records: Records, reference: str | None) -> None:
    """Refuses a reference that is no recorded member.

    Raises:
        DataError: naming those that are.
    """
    if reference is not None and reference not in records.outputs:
        raise DataError(
            "`reference`", got=f"{reference}, not recorded", expected=f"one of {', '.join(records.outputs)}"
        )


def _checked_labels(specs: Sequence[CascadeSpec], records: Records) -> npt.NDArray[np.int64]:
    random = random_members(records)
    if random:
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


def _costs(spec: CascadeSpec, records: Records) -> dict[str, float]:
    """Cost per row in the plan's unit; a member outside the plan has one only where the units are the same."""
    same = spec.cost_unit == records.meta.get("cost_unit", "MACs")
    return {**(records.cost if same else {}), **{member.name: member.cost for member in spec.members}}


def _route(name: str, right: npt.NDArray[np.bool_], cost: float | None) -> EvaluatedModel:
    hits, rows = int(right.sum()), len(right)
    return EvaluatedModel(
        name=name,
        right=hits,
        accuracy=hits / rows,
        accuracy_ci95=clopper_pearson(hits, rows),
        mean_cost=cost,
        exit_share=(1.0,),
    )


def _cascade(
    spec: CascadeSpec, records: Records, labels: npt.NDArray[np.int64]
) -> tuple[EvaluatedModel, npt.NDArray[np.bool_]]:
    answers = replay(spec, records)
    right = answers.label == labels
    counts = np.bincount(answers.exit_stage, minlength=len(spec.stages))
    # In float64: the runtime's own sums are float32, good for seven digits.
    spent = np.cumsum([stage.cost for stage in spec.stages])
    hits = int(right.sum())
    route = EvaluatedModel(
        name=spec.name,
        right=hits,
        accuracy=hits / records.rows,
        accuracy_ci95=clopper_pearson(hits, records.rows),
        mean_cost=float((counts * spent).sum()) / records.rows,
        exit_share=tuple(float(count) / records.rows for count in counts),
    )
    return route, right
