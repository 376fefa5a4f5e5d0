"""The glyphs: the committed plan that matches the largest member, on rows nobody chose it by."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.routes.predicted import predicted_speedup
from perf.routes.recipe import Recipe
from perf.routes.recipes.trained import planned
from perf.routes.spec import Rows
from perf.studies.reproduce.choices import CHOICES, ChosenPlan, choices_from_path

_PERF = Path(__file__).parents[2]
MEMBERS = _PERF / "glyphs" / "model_repository"
CHOSEN = _PERF.parent / "docs" / "reproduce" / CHOICES
# Drawn in a second; a file of rows holds nearly all of them (perf/harness/serving.py).
POOL = 3001


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
            members=MEMBERS,
            pool=POOL,
            rows=_pictures,
            earned=True,
            predict=predicted_speedup,
        )
    ]


def _spec(plan: ChosenPlan) -> CascadeSpec:
    manifests = {name: manifest_from_path(MEMBERS / name / MANIFEST) for name in plan.members}
    stages = tuple(
        Stage(
            members=tuple(
                Member(
                    name=name,
                    output=manifests[name].output.name,
                    output_kind=manifests[name].output_kind,
                    cost=float(manifests[name].macs),
                    max_batch_size=manifests[name].max_batch_size,
                    sha256=manifests[name].sha256,
                )
                for name in stage
            ),
            threshold=threshold,
        )
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
    # Drawing takes libraries that no other scenario needs.
    from perf.studies.glyphs.data import glyphs_split

    return glyphs_split("test", rows=POOL).images
