"""Scenarios of trained members and a plan that are there already: digits, and the headline plan of the glyphs."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.repository.files import copy_model
from orchestrator.rows.digits import digits_split
from orchestrator.spec import (
    CascadeSpec,
    InputSpec,
    Stage,
    cascade_from_path,
    json_from_cascade,
    manifest_from_path,
)
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST
from perf.routes.scenario import Predict, Recipe, member_from_manifest, predicted_speedup
from perf.routes.spec import Rows, Scenario
from perf.studies.reproduce.plans import CHOICES, ChosenPlan, choices_from_path

_ROOT = Path(__file__).parents[3]
COMMITTED = _ROOT / "model_repository"
GLYPHS = _ROOT / "perf" / "glyphs" / "model_repository"
CHOSEN = _ROOT / "docs" / "reproduce" / CHOICES
_DIGITS_POOL = 997
# Pictures that are drawn, which takes a second; an input file holds nearly all of them (perf/harness/serving.py).
GLYPHS_POOL = 3001


def planned(
    name: Literal["digits", "glyphs"],
    title: str,
    *,
    spec: CascadeSpec,
    members: Path,
    pool: int,
    rows: Callable[[], Rows],
    earned: bool = False,
    predict: Predict | None = None,
) -> Recipe:
    """A scenario of a plan.

    Args:
        name: of the scenario.
        title: for people.
        spec: the plan.
        members: model repository that holds them.
        pool: how many rows there are to choose from.
        rows: all of them, (n, *dims), the same at every call.
        earned: as in Scenario.
        predict: as in Recipe.
    """
    names = tuple(member.name for member in spec.members)
    scenario = Scenario(name=name, title=title, members=names, earned=earned)
    return Recipe(
        scenario=scenario,
        pool=pool,
        make=partial(_make, spec=spec, members=members),
        rows_at=lambda numbers: rows()[np.asarray(numbers)],
        # The plan names the hashes of its members.
        settings=json_from_cascade(spec),
        predict=predict,
    )


def digits() -> Recipe:
    """The committed digits cascade on the digits no member was trained on."""
    return planned(
        "digits",
        "digits 8x8, trained members",
        spec=cascade_from_path(COMMITTED / "digits_cascade" / "1" / PLAN),
        members=COMMITTED,
        pool=_DIGITS_POOL,
        rows=_digits,
    )


@lru_cache(maxsize=1)
def _digits() -> Rows:
    return np.concatenate([digits_split(part).images for part in ("plan", "test")])


def glyphs() -> list[Recipe]:
    """The headline plan of the reproduction as a scenario; none where there is no such plan."""
    if not CHOSEN.is_file():
        return []
    plan = choices_from_path(CHOSEN).headline
    if plan is None:
        return []
    return [
        planned(
            "glyphs",
            "glyphs 32x32, trained members and the plan that matches the largest of them (docs/reproduce.md)",
            spec=_spec(plan),
            members=GLYPHS,
            pool=GLYPHS_POOL,
            rows=_pictures,
            earned=True,
            predict=predicted_speedup,
        )
    ]


def _spec(plan: ChosenPlan) -> CascadeSpec:
    manifests = {name: manifest_from_path(GLYPHS / name / MANIFEST) for name in plan.members}
    stages = tuple(
        Stage(members=tuple(member_from_manifest(manifests[name]) for name in stage), threshold=threshold)
        for stage, threshold in zip(plan.stages, (*plan.thresholds, None), strict=True)
    )
    first = manifests[plan.members[0]]
    return CascadeSpec(
        name="committee",
        input=InputSpec(name=first.input.name, dtype=first.input.dtype, dims=first.input.dims),
        classes=first.output.dims[-1],
        stages=stages,
        combine=plan.combine,
        score=plan.score,
    )


@lru_cache(maxsize=1)
def _pictures() -> Rows:
    from perf.studies.glyphs_data import glyphs_split  # optional: drawing takes libraries no other scenario needs

    return glyphs_split("test", rows=GLYPHS_POOL).images


def _make(repository: Path, *, spec: CascadeSpec, members: Path) -> CascadeSpec:
    repository.mkdir(parents=True, exist_ok=True)
    for member in spec.members:
        copy_model(members / member.name, repository / member.name)
    return dataclasses.replace(spec, name="committee")
