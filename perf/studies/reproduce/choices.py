"""What is chosen on the plan part, as one JSON file that is written before the test part is drawn.

Nothing in it comes from the test part or from a clock: the same plan part and members give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.repository.files import write_all
from orchestrator.spec import CascadeSpec, Stage

FORMAT = 1
CHOICES = "choices.json"
# Key of the claim that the headline is made of; its first line is the plan.
HEADLINE = "headline"


@dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """A single model, an ensemble or a cascade.

    Args:
        stages: names of members, by stage.
        thresholds: one per stage but the last.
        combine: combine mode.
        score: score.
        accuracy: share of plan rows right.
        mean_cost: per plan row.
    """

    stages: tuple[tuple[str, ...], ...]
    thresholds: tuple[float, ...] = ()
    combine: str = "mean_logit"
    score: str = "max_prob"
    accuracy: float = 0.0
    mean_cost: float = 0.0

    @property
    def members(self) -> tuple[str, ...]:
        """All of them, in plan order."""
        return tuple(name for stage in self.stages for name in stage)

    @property
    def text(self) -> str:
        """Stages in words, such as "b0_s1, then b2_s0 + b3_s0"."""
        return ", then ".join(" + ".join(short(name) for name in stage) for stage in self.stages)

    def spec_of(self, base: CascadeSpec) -> CascadeSpec:
        """The plan as it is served; `base` has every member."""
        known = {member.name: member for member in base.members}
        stages = tuple(
            Stage(members=tuple(known[name] for name in stage), threshold=threshold)
            for stage, threshold in zip(self.stages, (*self.thresholds, None), strict=True)
        )
        return dataclasses.replace(
            base, stages=stages, combine=self.combine, score=self.score, fit=None, fused_prefix=None
        )


def short(name: str) -> str:
    """A member's name without what all of them share."""
    return name.removeprefix("glyphs_")


@dataclass(frozen=True, kw_only=True)
class PlanComparison:
    """One line of a table: one plan against another.

    Args:
        claim: key of the table.
        label: what the line is about.
        one: the plan in question; None where no plan does what was asked.
        other: what it is held against.
        note: why there is no plan.
        guarantee: facts of the certificate, where there is one.
    """

    claim: str
    label: str
    one: ChosenPlan | None
    other: ChosenPlan
    note: str = ""
    guarantee: dict[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Everything chosen.

    Args:
        source: what they were chosen on: rows, hashes, options.
        comparisons: all lines of all tables.
        picture: kind of plan -> plans drawn in the figure.
        rehearsal: what margins come to on plan rows that had no part in choosing.
    """

    source: dict[str, Any]
    comparisons: tuple[PlanComparison, ...]
    picture: dict[str, tuple[ChosenPlan, ...]]
    rehearsal: tuple[dict[str, Any], ...] = ()

    @property
    def headline(self) -> ChosenPlan | None:
        """The headline plan; None where no plan was ahead by the margin."""
        return next((line.one for line in self.comparisons if line.claim == HEADLINE), None)


def write_choices(choices: Choices, folder: Path) -> Path:
    """Writes choices.json whole or not at all."""
    document = {"format": FORMAT, **dataclasses.asdict(choices)}
    write_all(folder, {CHOICES: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"})
    return folder / CHOICES


def choices_from_path(path: Path) -> Choices:
    """The choices a file holds.

    Raises:
        DataError: it is missing or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise ValueError(f"format {document.get('format')}")
        return Choices(
            source=document["source"],
            comparisons=tuple(_comparison(one) for one in document["comparisons"]),
            picture={kind: tuple(_plan(plan) for plan in plans) for kind, plans in document["picture"].items()},
            rehearsal=tuple(document["rehearsal"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"choices {path}", got=error, fix="python -m perf reproduce writes them") from error


def _comparison(value: dict[str, Any]) -> PlanComparison:
    one = value["one"]
    return PlanComparison(**{**value, "one": None if one is None else _plan(one), "other": _plan(value["other"])})


def _plan(value: dict[str, Any]) -> ChosenPlan:
    stages = tuple(tuple(stage) for stage in value["stages"])
    return ChosenPlan(**{**value, "stages": stages, "thresholds": tuple(value["thresholds"])})
