"""Members and a plan that are there already: trained ones, whose exit mix is earned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.repository.files import copy_model
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec, cascade_from_path, json_from_cascade
from orchestrator.spec.cascade_json import PLAN
from perf.routes.recipe import Predict, Recipe
from perf.routes.spec import Rows, Scenario

_DIGITS = 997
COMMITTED = Path(__file__).parents[3] / "model_repository"


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
        # It names the members' hashes too.
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
        pool=_DIGITS,
        rows=_digits,
    )


@lru_cache(maxsize=1)
def _digits() -> Rows:
    return np.concatenate([digits_split(part).images for part in ("plan", "test")])


def _make(repository: Path, *, spec: CascadeSpec, members: Path) -> CascadeSpec:
    repository.mkdir(parents=True, exist_ok=True)
    for member in spec.members:
        copy_model(members / member.name, repository / member.name)
    return dataclasses.replace(spec, name="committee")
