"""What every number of the report rests on: the answers of all stages and rivals, and what makes one good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.planner.goal import ENSEMBLE
from orchestrator.planner.records import Records, random_members
from orchestrator.report.ladder import I64, Bools, Ladder, ladder_from_plan, picked
from orchestrator.report.rivals import (
    Rival,
    ensembles_from_ladder,
    everybody,
    members_from_records,
    pool_of,
    reference_of,
)
from orchestrator.report.shares import Share, share_of
from orchestrator.spec import CascadeSpec, Member


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What makes an answer good.

    Args:
        accuracy: whether it is being right; otherwise it is agreeing with some other answer.
        word: the quality in words, such as "accuracy".
        frontier: whether the planner's frontier counts the same.
        why_not: why no accuracy is shown.
    """

    accuracy: bool
    word: str
    frontier: bool
    why_not: str | None = None


@dataclass(frozen=True, kw_only=True)
class Achieved:
    """Quality and cost of one way to answer.

    Args:
        name: in words.
        kind: "member", "ensemble" or "cascade".
        quality: rows answered well.
        mean_cost: per row; None where it is not known in the plan's unit.
    """

    name: str
    kind: str
    quality: Share
    mean_cost: float | None


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Answers and their worth; n rows, s stages.

    Args:
        ladder: answers of all stages.
        members: every recorded member by itself.
        ensembles: the plan cut after each stage, and all members together.
        reference: what the plan is compared with.
        measure: what a good answer is, in words.
        target: int64 (n,), the good answer.
        good: bool (s, n), whether each stage's answer is good.
        at: intp (n,), where each row stops.
        done: bool (n,), whether its answer is good.
    """

    ladder: Ladder
    members: tuple[Rival, ...]
    ensembles: tuple[Rival, ...]
    reference: Rival | None
    measure: Measure
    target: I64 = field(repr=False)
    good: Bools = field(repr=False)
    at: npt.NDArray[np.intp] = field(repr=False)
    done: Bools = field(repr=False)

    def achieved(self) -> tuple[Achieved, ...]:
        """Members, then ensembles."""
        rivals = [(one, "member") for one in self.members] + [(one, "ensemble") for one in self.ensembles]
        return tuple(
            Achieved(name=one.name, kind=kind, quality=share_of(one.label == self.target), mean_cost=one.cost)
            for one, kind in rivals
        )


def basis_from_records(
    spec: CascadeSpec, records: Records, *, certify: Mapping[str, Any], planned: Sequence[Member] = ()
) -> Basis:
    """Replays the plan and everything it is compared with.

    Args:
        spec: the plan; `reference` of its `fit.extra` is what it is compared with.
        records: n rows of its members and others.
        certify: facts of the guarantee; `reference` in them comes first, a member or "ensemble".
        planned: members the plan was chosen from.
    """
    extra: Mapping[str, Any] = {} if spec.fit is None else spec.fit.extra
    agreement = extra.get("agreement", {})
    label_free = bool(agreement) or bool(certify.get("label_free"))
    why_not = _why_no_accuracy(spec, records, label_free=label_free)
    ladder = ladder_from_plan(spec, records)
    pool = pool_of(spec, records, planned)
    members = members_from_records(spec, records, pool)
    ensembles = ensembles_from_ladder(spec, records, ladder, pool=pool)
    truth = records.labels if why_not is None else None
    known = extra.get("reference", {})
    asked = certify.get("reference") or known.get("name") or agreement.get("reference")
    reference = reference_of(asked, members, truth)
    if asked == ENSEMBLE:
        whole = everybody(spec, records, pool, combine=known.get("combine", spec.combine))
        # One of the plan's own stages may be all of them already.
        same = [one for one in ensembles if one.members == whole.members and (one.label == whole.label).all()]
        reference = next(iter(same), whole)
        ensembles = ensembles if same or whole.members == 1 else (*ensembles, whole)
    if truth is not None:
        target, measure = truth, Measure(accuracy=True, word="accuracy", frontier=True)
    elif reference is not None:
        word = f"agreement with {reference.name}"
        target = reference.label
        measure = Measure(accuracy=False, word=word, frontier=label_free, why_not=why_not)
    else:
        word = "agreement with the last stage"
        target = ladder.label[ladder.last]
        measure = Measure(accuracy=False, word=word, frontier=False, why_not=why_not)
    at = ladder.exits(ladder.thresholds)
    good = ladder.label == target
    return Basis(
        ladder=ladder, members=members, ensembles=ensembles, reference=reference, measure=measure,
        target=target, good=good, at=at, done=picked(good, at),
    )  # fmt: skip


def _why_no_accuracy(spec: CascadeSpec, records: Records, *, label_free: bool) -> str | None:
    random = random_members(records)
    if random:
        return f"the weights of {', '.join(random)} are random, so being right would be chance"
    if spec.fit is not None and spec.fit.random_weights:
        return "the plan has members with random weights, so being right would be chance"
    if records.labels is None:
        return "the records hold no labels"
    return "the plan was asked for without looking at labels" if label_free else None
