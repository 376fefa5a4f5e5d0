"""Every scenario by name: networks with random weights, and trained members with a plan that is there already."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from export.parity import varied_rows
from orchestrator.errors import DataError
from orchestrator.repository.files import copy_model
from orchestrator.rows.digits import digits_split
from orchestrator.spec import (
    CascadeSpec,
    InputSpec,
    Stage,
    TensorSpec,
    cascade_from_path,
    json_from_cascade,
    manifest_from_path,
)
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST
from perf.routes.scenario import Predict, Recipe, imposed_cascade, member_from_manifest, predicted_speedup
from perf.routes.spec import Rows, Scenario
from perf.routes.three_cnn import sized_three_cnn
from perf.studies.reproduce.plans import CHOICES, choices_from_path

_ROOT = Path(__file__).parents[2]
COMMITTED = _ROOT / "model_repository"
GLYPHS = _ROOT / "perf" / "glyphs" / "model_repository"
CHOSEN = _ROOT / "docs" / "reproduce" / CHOICES
_DIGITS_POOL = 997
# Pictures that are drawn, which takes a second; an input file holds nearly all of them (perf/harness/serving.py).
GLYPHS_POOL = 3001

EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b3")
# The committee's images are as large as its largest member wants them; the smaller one resizes inside its graph.
_IMAGE = TensorSpec(name="image", dtype="UINT8", dims=(3, 300, 300))
_ROWS_SEED = 30_000_000
# 101 rows that all reach B3 have to be among the pool; the threshold is taken from the recorded ones.
_EFFICIENTNET_POOL, _RECORDED = 1024, 256


def efficientnet() -> Recipe:
    """EfficientNet-B0 before B3 with random weights, through the ordinary export of members."""
    title = "EfficientNet-B0 before B3, random weights"
    return Recipe(
        scenario=Scenario(name="efficientnet", title=title, members=EFFICIENTNETS, imposed=True),
        pool=_EFFICIENTNET_POOL,
        make=_make_efficientnets,
        rows_at=_images,
        settings=str(_RECORDED),
    )


def _images(numbers: Sequence[int]) -> Rows:
    return np.concatenate([varied_rows(_IMAGE, 1, seed=_ROWS_SEED + number) for number in numbers])


def _make_efficientnets(repository: Path) -> CascadeSpec:
    try:  # optional: exporting takes torch and transformers
        from export.member import export_committee, member_exports
        from export.sources import ExportOptions
    except ImportError as error:
        what, got = "scenario efficientnet", f"no package {error.name}"
        raise DataError(what, got=got, expected="torch and transformers", fix="run `make setup`") from error
    plans = member_exports(EFFICIENTNETS, ExportOptions(random_weights=True))
    plans = [dataclasses.replace(plan, parity_rows=8) for plan in plans]
    export_committee(repository, plans, force=False, progress=lambda _: None)
    return imposed_cascade(
        repository, EFFICIENTNETS, _images, name="committee", recorded=_RECORDED, exit_share=(0.85,)
    )


def planned(
    name: str,
    title: str,
    *,
    spec: CascadeSpec,
    members: Path,
    pool: int,
    rows: Callable[[], Rows],
    earned: bool = False,
    predict: Predict | None = None,
) -> Recipe:
    """A scenario of a plan whose trained members are in a model repository already.

    `rows` gives all rows of the pool, (n, *dims), the same at every call; the rest is as in Scenario and Recipe.
    """
    names = tuple(member.name for member in spec.members)
    return Recipe(
        scenario=Scenario(name=name, title=title, members=names, earned=earned),
        pool=pool,
        make=partial(_copy_planned, spec=spec, members=members),
        rows_at=lambda numbers: rows()[np.asarray(numbers)],
        # The plan names the hashes of its members.
        settings=json_from_cascade(spec),
        predict=predict,
    )


def _copy_planned(repository: Path, *, spec: CascadeSpec, members: Path) -> CascadeSpec:
    repository.mkdir(parents=True, exist_ok=True)
    for member in spec.members:
        copy_model(members / member.name, repository / member.name)
    return dataclasses.replace(spec, name="committee")


def digits() -> Recipe:
    """The committed digits cascade on the digits no member was trained on."""
    spec = cascade_from_path(COMMITTED / "digits_cascade" / "1" / PLAN)
    title = "digits 8x8, trained members"
    return planned("digits", title, spec=spec, members=COMMITTED, pool=_DIGITS_POOL, rows=_digits)


@lru_cache(maxsize=1)
def _digits() -> Rows:
    return np.concatenate([digits_split(part).images for part in ("plan", "test")])


def glyphs() -> list[Recipe]:
    """The headline plan of the reproduction as a scenario; none where there is no such plan."""
    plan = choices_from_path(CHOSEN).headline if CHOSEN.is_file() else None
    if plan is None:
        return []
    manifests = {name: manifest_from_path(GLYPHS / name / MANIFEST) for name in plan.members}
    first = manifests[plan.members[0]]
    spec = CascadeSpec(
        name="committee",
        inputs=(InputSpec(name=first.input.name, dtype=first.input.dtype, dims=first.input.dims),),
        classes=first.output.dims[-1],
        stages=tuple(
            Stage(members=tuple(member_from_manifest(manifests[name]) for name in stage), threshold=threshold)
            for stage, threshold in zip(plan.stages, (*plan.thresholds, None), strict=True)
        ),
        combine=plan.combine,
        score=plan.score,
    )
    return [
        planned(
            "glyphs",
            "glyphs 32x32, trained members and the plan that matches the largest of them (docs/reproduce.md)",
            spec=spec,
            members=GLYPHS,
            pool=GLYPHS_POOL,
            rows=_pictures,
            earned=True,
            predict=predicted_speedup,
        )
    ]


@lru_cache(maxsize=1)
def _pictures() -> Rows:
    from perf.studies.glyphs_data import glyphs_split  # optional: drawing takes libraries no other scenario needs

    return glyphs_split("test", rows=GLYPHS_POOL).images


# A scenario of a trained committee with a plan of its own is one call of `planned`.
RECIPES: dict[str, Recipe] = {
    recipe.scenario.name: recipe for recipe in (sized_three_cnn(), efficientnet(), digits(), *glyphs())
}
