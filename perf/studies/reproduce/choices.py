"""The plans chosen on the plan part, and choices.json, which holds them before the test part is drawn.

Nothing in the file comes from the test part or from a clock: the same plan part and members give the same bytes.
"""

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
# Key of the comparisons behind the headline; the first of them is about the headline plan.
HEADLINE = "headline"
# End of the label of a line whose plan was chosen by the rule without the margin.
NO_MARGIN = ", no margin"


@dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """A single model, an ensemble or a cascade.

    Args:
        stages: names of members, by stage.
        thresholds: one per stage but the last.
        combine: combine mode.
        score: confidence score.
        accuracy: share of rows of the plan part that it gets right.
        mean_cost: MACs per row, mean over the plan part.
    """

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
        label: name of the line.
        one: the plan in question; None where no plan meets the claim's rule.
        other: the plan it is compared with.
        note: why there is no plan.
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
    write_all(folder, {CHOICES: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"})
    return folder / CHOICES


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
            picture={kind: tuple(_plan(plan) for plan in plans) for kind, plans in document["picture"].items()},
            margin_validation=tuple(document["rehearsal"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"choices {path}", got=error, fix="python -m perf reproduce writes them") from error


def _comparison(value: dict[str, Any]) -> PlanComparison:
    one = value["one"]
    return PlanComparison(**{**value, "one": None if one is None else _plan(one), "other": _plan(value["other"])})


def _plan(value: dict[str, Any]) -> ChosenPlan:
    stages = tuple(tuple(stage) for stage in value["stages"])
    return ChosenPlan(**{**value, "stages": stages, "thresholds": tuple(value["thresholds"])})
