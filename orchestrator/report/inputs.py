"""What the numbers of a report are computed from: answers of the plan and its baselines, and which are correct.

What every stage answers for every row is kept, so that other thresholds cost one comparison per row.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Policy
from orchestrator.decision.exit_rule import ExitRule
from orchestrator.planner.candidates import mode_of
from orchestrator.planner.goal import ENSEMBLE
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.plan import kind_seen
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.replay import replay
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.shares import evenly_spread

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Stages = npt.NDArray[np.intp]
Value = TypeVar("Value", bound=np.generic)

# Thresholds offered per stage, besides the plan's own and "never".
GRID = 200


@dataclass(frozen=True, kw_only=True)
class StageOutputs:
    """The answers of all s stages for all n rows.

    Args:
        spec: the plan.
        score: float32 (s, n), what thresholds are compared with.
        label: int64 (s, n).
        probability: float32 (s, n), of the label.
        cost: float64 (s,), of a row that exits at that stage.
    """

    spec: CascadeSpec
    score: F32 = field(repr=False)
    label: I64 = field(repr=False)
    probability: F32 = field(repr=False)
    cost: F64

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return self.score.shape[1]

    @property
    def last(self) -> int:
        """The stage that answers every row it gets."""
        return len(self.cost) - 1

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The plan's own, one per stage but the last; None never exits."""
        return tuple(stage.threshold for stage in self.spec.stages[:-1])

    def exit_stage(self, thresholds: Sequence[float | None]) -> Stages:
        """Where every row exits, intp (n,), with other thresholds, as `self.thresholds` has them."""
        stages = tuple(
            dataclasses.replace(stage, threshold=threshold)
            for stage, threshold in zip(self.spec.stages, (*thresholds, None), strict=True)
        )
        rule = ExitRule(dataclasses.replace(self.spec, stages=stages, gears=None))
        first, last = np.zeros(self.rows, np.int32), np.full(self.rows, self.last, np.int32)
        at = np.full(self.rows, self.last, np.intp)
        # Backwards, so that the first stage a row may exit at is written last.
        for stage in reversed(range(self.last)):
            exits, _ = rule.decide(
                stage, self.score[stage], min_stage=first, max_stage=last, shift=np.zeros(self.rows, np.float32)
            )
            at[exits] = stage
        return at

    def threshold_grid(self, stage: int) -> F32:
        """Thresholds to try at a stage, ascending: quantiles of its scores, the plan's own, and +inf for never."""
        own = self.thresholds[stage]
        quantiles = np.sort(self.score[stage])[evenly_spread(self.rows, GRID)]
        return np.unique(np.array([*quantiles, np.inf if own is None else own, np.inf], np.float32))


def values_at(of_stages: npt.NDArray[Value], exit_stage: Stages) -> npt.NDArray[Value]:
    """From (s, n), each row's value at the stage where it exits; (n,)."""
    return np.asarray(of_stages[exit_stage, np.arange(of_stages.shape[1])])


def stage_outputs_from_plan(spec: CascadeSpec, records: Records) -> StageOutputs:
    """Replays the plan once per stage, with every row made to exit there.

    Raises:
        DataError: the records do not fit the plan.
    """
    stages = range(len(spec.stages))
    answers = [replay(spec, records, Policy(min_stage=stage, max_stage=stage)) for stage in stages]
    rows = np.arange(records.rows)
    return StageOutputs(
        spec=spec,
        score=np.stack([one.confidence for one in answers]),
        label=np.stack([one.label for one in answers]),
        probability=np.stack([one.probabilities[rows, one.label] for one in answers]),
        cost=np.array([float(one.cost[0]) for one in answers], np.float64),
    )


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of some rows, perhaps none, have a property; the report states every frequency as one."""

    hits: int
    rows: int

    @property
    def value(self) -> float:
        """The share; NaN of no rows."""
        return self.hits / self.rows if self.rows else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Clopper-Pearson); (0, 1) of no rows."""
        return clopper_pearson(self.hits, self.rows) if self.rows else (0.0, 1.0)

    @property
    def rest(self) -> "Share":
        """The share of the rows that do not have it."""
        return Share(hits=self.rows - self.hits, rows=self.rows)


def share_of(flags: Bools) -> Share:
    """Share of the rows whose flag is set."""
    return Share(hits=int(np.count_nonzero(flags)), rows=len(flags))


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What makes an answer correct.

    Args:
        by_labels: whether the recorded labels decide; otherwise another model's answers do.
        name: of the share of correct answers, such as "accuracy".
        for_frontier: whether the planner's frontier counted by the same criterion.
        why_not_labels: why no accuracy is shown.
    """

    by_labels: bool
    name: str
    for_frontier: bool
    why_not_labels: str | None = None


@dataclass(frozen=True, kw_only=True)
class QualityAndCost:
    """What one model, ensemble or plan achieves; its cost is None where it is not known in the plan's unit.

    Args:
        kind: "member", "ensemble" or "cascade".
        quality: correct answers.
    """

    name: str
    kind: str
    quality: Share
    mean_cost: float | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A member or an ensemble the plan is compared with; it answers every row at the same cost.

    Args:
        members: how many it asks.
        cost: per row; None where the records do not know it in the plan's unit.
        label: int64 (n,).
        probability: float32 (n,), of the label.
    """

    name: str
    members: int
    cost: float | None
    label: I64 = field(repr=False)
    probability: F32 = field(repr=False)

    def judged(self, target: I64) -> QualityAndCost:
        """Its quality and cost by the correct answers, int64 (n,)."""
        kind, quality = "member" if self.members == 1 else "ensemble", share_of(self.label == target)
        return QualityAndCost(name=self.name, kind=kind, quality=quality, mean_cost=self.cost)


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Answers of everything in the report, and which of them are correct; n rows, s stages.

    Args:
        outputs: answers of all stages.
        members: every recorded member by itself.
        ensembles: the plan cut after each stage, and all members together.
        reference: what the plan is compared with.
        criterion: what makes an answer correct.
        target: int64 (n,), the correct answers.
        stage_correct: bool (s, n), whether each stage's answer is correct.
        exit_stage: intp (n,).
        correct: bool (n,), whether the plan's answer is correct.
    """

    outputs: StageOutputs
    members: tuple[Baseline, ...]
    ensembles: tuple[Baseline, ...]
    reference: Baseline | None
    criterion: Criterion
    target: I64 = field(repr=False)
    stage_correct: Bools = field(repr=False)
    exit_stage: Stages = field(repr=False)
    correct: Bools = field(repr=False)


def report_input_from_records(spec: CascadeSpec, records: Records, *, planned: Sequence[Member]) -> ReportInput:
    """Replays the plan and all its baselines; it is compared with the reference that its `fit.extra` names."""
    extra: Mapping[str, Any] = {} if spec.fit is None else spec.fit.extra
    agreement, certificate = extra.get("agreement", {}), extra.get("guarantee", {})
    label_free = bool(agreement) or bool(certificate.get("label_free"))
    why_not = _why_not_labels(spec, records, label_free=label_free)
    outputs = stage_outputs_from_plan(spec, records)
    pool = _pool(spec, records, planned)
    members = _members(spec, records, pool)
    ensembles = _ensembles(outputs, records, pool)
    truth = records.labels if why_not is None else None
    known = extra.get("reference", {})
    name = certificate.get("reference") or known.get("name") or agreement.get("reference")
    reference = _reference(name, members, truth)
    if name == ENSEMBLE:
        whole = _all_members(spec, records, pool, combine=known.get("combine", spec.combine))
        # One of the plan's own stages may ask all of them already.
        same = [one for one in ensembles if one.members == whole.members and (one.label == whole.label).all()]
        reference = next(iter(same), whole)
        ensembles = ensembles if same or whole.members == 1 else (*ensembles, whole)
    if truth is not None:
        target, criterion = truth, Criterion(by_labels=True, name="accuracy", for_frontier=True)
    else:
        target = outputs.label[outputs.last] if reference is None else reference.label
        criterion = Criterion(
            by_labels=False,
            name=f"agreement with {'the last stage' if reference is None else reference.name}",
            for_frontier=label_free and reference is not None,
            why_not_labels=why_not,
        )
    exit_stage = outputs.exit_stage(outputs.thresholds)
    stage_correct = outputs.label == target
    return ReportInput(
        outputs=outputs, members=members, ensembles=ensembles, reference=reference, criterion=criterion,
        target=target, stage_correct=stage_correct, exit_stage=exit_stage,
        correct=values_at(stage_correct, exit_stage),
    )  # fmt: skip


def _why_not_labels(spec: CascadeSpec, records: Records, *, label_free: bool) -> str | None:
    random = random_members(records)
    if random:
        return f"the weights of {', '.join(random)} are random, so being right would be chance"
    if spec.fit is not None and spec.fit.random_weights:
        return "the plan has members with random weights, so being right would be chance"
    if records.labels is None:
        return "the records hold no labels"
    return "the plan was asked for without looking at labels" if label_free else None


def _pool(spec: CascadeSpec, records: Records, planned: Sequence[Member]) -> dict[str, Member]:
    """All recorded members by name, cheapest first; as the plan has them, else as they were planned with."""
    known = {member.name: member for member in (*planned, *spec.members)}
    return {
        name: known.get(name) or _unplanned_member(name, records)
        for name in sorted(records.outputs, key=lambda name: (records.cost[name], name))
    }


def _unplanned_member(name: str, records: Records) -> Member:
    """A member by what the records' meta says of its output, or else by its numbers."""
    known = records.meta.get("members", {})
    about = known.get(name, {}) if isinstance(known, dict) else {}
    kind = about.get("output_kind") or kind_seen(records.outputs[name])
    kind = kind if kind == "probabilities" else "logits"
    return Member(name="other", output="output", output_kind=kind, cost=records.cost[name])


def _same_unit(spec: CascadeSpec, records: Records) -> bool:
    """Whether the records count costs as the plan does; a plan may have measured times instead."""
    return all(math.isclose(member.cost, records.cost[member.name], rel_tol=1e-6) for member in spec.members)


def _members(spec: CascadeSpec, records: Records, pool: Mapping[str, Member]) -> tuple[Baseline, ...]:
    own = {member.name for member in spec.members}
    same_unit = _same_unit(spec, records)
    return tuple(
        _combined(spec, records, {name: member}, name=name, cost=member.cost if same_unit or name in own else None)
        for name, member in pool.items()
    )


def _ensembles(outputs: StageOutputs, records: Records, pool: Mapping[str, Member]) -> tuple[Baseline, ...]:
    """The plan cut after each stage, with every row going that far; and all members of the pool together."""
    spec = outputs.spec
    found: list[Baseline] = []
    asked: list[Member] = []
    for number, stage in enumerate(spec.stages):
        # With "last" a stage forgets the ones before it, so only a stage of several members is an ensemble.
        asked = [*asked, *stage.members] if spec.combine != "last" else list(stage.members)
        if len(asked) > 1:
            name, cost = " + ".join(one.name for one in asked), float(sum(one.cost for one in asked))
            answers = {"label": outputs.label[number], "probability": outputs.probability[number]}
            found.append(Baseline(name=name, members=len(asked), cost=cost, **answers))
    if len(pool) > max([one.members for one in found], default=1):
        found.append(_all_members(spec, records, pool, combine=spec.combine))
    return tuple(found)


def _all_members(spec: CascadeSpec, records: Records, pool: Mapping[str, Member], *, combine: str) -> Baseline:
    """All members of the pool together, in a combine mode that need not be the plan's."""
    how = "" if mode_of(combine) == mode_of(spec.combine) else f" by {combine}"
    cost = float(sum(member.cost for member in pool.values())) if _same_unit(spec, records) else None
    return _combined(spec, records, pool, name=f"all {len(pool)} members{how}", cost=cost, combine=combine)


def _combined(
    spec: CascadeSpec, records: Records, members: Mapping[str, Member], *, name: str, cost: float | None,
    combine: str = "",
) -> Baseline:  # fmt: skip
    """Members asked about every row at once, as one stage of the decision core."""
    # Records made elsewhere may hold names that no server would take, so members go by number here.
    named = [dataclasses.replace(member, name=f"m{place}") for place, member in enumerate(members.values())]
    part = dataclasses.replace(
        records,
        outputs={one.name: records.outputs[key] for one, key in zip(named, members, strict=True)},
        cost={one.name: one.cost for one in named},
    )
    stage = CascadeSpec(
        name="together",
        inputs=spec.inputs,
        derived=spec.derived,
        classes=spec.classes,
        stages=(Stage(members=tuple(named)),),
        # A single member has the same answer in every mode, but its only vote would always be unanimous.
        combine=combine if len(named) > 1 else "mean_prob",
    )
    answers = stage_outputs_from_plan(stage, part)
    return Baseline(
        name=name, members=len(named), cost=cost, label=answers.label[0], probability=answers.probability[0]
    )


def _reference(name: str | None, members: Sequence[Baseline], truth: I64 | None) -> Baseline | None:
    """The member of that name, else the most accurate one; None where accuracy is not known either."""
    named = next((one for one in members if one.name == name), None)
    if named is not None or truth is None:
        return named

    def worth(one: Baseline) -> tuple[int, float]:
        return int((one.label == truth).sum()), -math.inf if one.cost is None else -one.cost

    return max(members, key=worth)
