"""The cascade under load: glyphs members, a plan with gears chosen on the plan part, rows of the test part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.goal import Goal, Options
from orchestrator.planner.planning import plan_from_records
from orchestrator.planner.result import Planned
from orchestrator.repository import render
from orchestrator.repository.files import copy_model, new_folder
from orchestrator.spec import CascadeSpec
from perf.reproduce.family import REPOSITORY, require_members
from perf.reproduce.parts import Recorder

MEMBERS = ("glyphs_b1_s1", "glyphs_b3_s1", "glyphs_b5_s1")
REFERENCE = MEMBERS[-1]
EPSILON = 0.005
GEARS = 3
PLAN_ROWS = 4000
# A prime, so that requests of any size meet other neighbours in every pass.
TEST_ROWS = 2003
GEARED, PLAIN = "geared", "plain"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Everything that is served and sent.

    Args:
        folder: model repository with the members, the plan with gears and the same without.
        spec: the plan, its gears in it.
        images: (n, *dims), rows of the test part.
        labels: int64 (n,).
    """

    folder: Path
    spec: CascadeSpec
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def make_ground(folder: Path, *, cache: Path, say: Say) -> Ground:
    """Records, plans and renders; recordings are kept in `cache` between runs.

    Args:
        folder: model repository to write.
        cache: for recordings.
        say: told what is done.

    Raises:
        CommitteeError: members are missing, or no plan has gears.
    """
    from export.glyphs.data import glyphs_part

    require_members(REPOSITORY, MEMBERS)
    recorder = Recorder(
        repository=REPOSITORY,
        names=MEMBERS,
        draw=lambda part, rows: glyphs_part("plan" if part == "plan" else "test", rows=rows),
        rows=PLAN_ROWS,
        cache=cache,
        say=say,
    )
    part = recorder.plan_part()
    say("planning")
    found = plan_from_records(
        part.base,
        part.records,
        Goal(reference=REFERENCE, epsilon=EPSILON, certify=False),
        options=Options(gears=GEARS, calibrate=False),
    )
    if not isinstance(found, Planned) or found.spec.gears is None:
        raise DataError("overload", got="a plan without gears", expected="stages whose thresholds can be lowered")
    spec = dataclasses.replace(found.spec, lead=None)
    say("rendering")
    with new_folder(folder) as building:
        for member in spec.members:
            copy_model(REPOSITORY / member.name, building / member.name)
        render(dataclasses.replace(spec, name=GEARED), building, standalone=True)
        render(dataclasses.replace(spec, name=PLAIN, gears=None), building, standalone=True)
    test = glyphs_part("test", rows=TEST_ROWS)
    return Ground(folder=folder, spec=spec, images=test.images, labels=test.labels)
