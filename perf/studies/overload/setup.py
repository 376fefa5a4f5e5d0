"""The cascade under load: glyphs members, a plan with gears chosen on the plan part, rows of the test part."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.repository.files import copy_model, new_folder
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec, Gears
from perf.studies.glyphs import REPOSITORY
from perf.studies.reproduce.parts import DrawnPart, DrawPart, PartRecorder, require_members

EPSILON = 0.005
GEARS = 3
PLAN_ROWS = 4000
GEARED, PLAIN = "geared", "plain"
# Waits of gears keep the proportion of the defaults: 50 ms asks for a cheaper gear, 10 ms lets a dearer one back.
_LOWER_SHARE = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OverloadSource:
    """Members and the data they were trained for.

    Args:
        name: of the data.
        repository: that holds the members.
        members: their names, the largest last: plans are held against it.
        test_rows: sent; a prime, so that requests of any size meet other neighbours in every pass.
        draw: makes the rows of a part, at most so many.
    """

    name: str
    repository: Path
    members: tuple[str, ...]
    test_rows: int
    draw: DrawPart

    @property
    def reference(self) -> str:
        """The largest member."""
        return self.members[-1]


@dataclass(frozen=True, kw_only=True)
class _Digits:
    ids: npt.NDArray[np.int64]
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]

    def sha256(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def _draw_glyphs(part: str, rows: int | None) -> DrawnPart:
    from perf.studies.glyphs.data import glyphs_split  # optional: drawing takes Pillow and matplotlib

    return glyphs_split("plan" if part == "plan" else "test", rows=rows)


def _draw_digits(part: str, rows: int | None) -> DrawnPart:
    split = digits_split(part)
    return _Digits(ids=split.ids[:rows], images=split.images[:rows], labels=split.labels[:rows])


GLYPHS = OverloadSource(
    name="glyphs",
    repository=REPOSITORY,
    members=("glyphs_b1_s1", "glyphs_b3_s1", "glyphs_b5_s1"),
    test_rows=2003,
    draw=_draw_glyphs,
)
DIGITS = OverloadSource(
    name="digits",
    repository=Path("model_repository"),
    members=("digits_small", "digits_medium", "digits_large"),
    test_rows=547,
    draw=_draw_digits,
)


@dataclass(frozen=True, kw_only=True)
class OverloadSetup:
    """Everything that is served and sent.

    Args:
        source: whose members and rows.
        folder: model repository with the members, the plan with gears and the same without.
        spec: the plan, its gears in it.
        images: (n, *dims), rows of the test part.
        labels: int64 (n,).
    """

    source: OverloadSource
    folder: Path
    spec: CascadeSpec
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def make_setup(
    folder: Path, *, source: OverloadSource, cache: Path, say: Say, raise_wait_us: int | None = None
) -> OverloadSetup:
    """Records, plans and renders; recordings are kept in `cache` between runs.

    Args:
        folder: model repository to write.
        source: members and rows.
        cache: for recordings.
        say: told what is done.
        raise_wait_us: wait of deferred rows that asks for a cheaper gear; None keeps the default.

    Raises:
        CommitteeError: members are missing, or no plan has gears.
    """
    require_members(source.repository, source.members)
    recorder = PartRecorder(
        repository=source.repository,
        names=source.members,
        draw=source.draw,
        rows=PLAN_ROWS,
        cache=cache,
        say=say,
    )
    part = recorder.plan_part()
    say("planning")
    found = plan_from_records(
        part.base,
        part.records,
        Goal(reference=source.reference, epsilon=EPSILON, certify=False),
        options=SearchOptions(gears=GEARS, calibrate=False),
    )
    if not isinstance(found, PlanResult) or found.spec.gears is None:
        raise DataError("overload", got="a plan without gears", expected="stages whose thresholds can be lowered")
    spec = dataclasses.replace(found.spec, fused_prefix=None, gears=_with_wait(found.spec.gears, raise_wait_us))
    say("rendering")
    with new_folder(folder) as building:
        for member in spec.members:
            copy_model(source.repository / member.name, building / member.name)
        render(dataclasses.replace(spec, name=GEARED), building, standalone=True)
        render(dataclasses.replace(spec, name=PLAIN, gears=None), building, standalone=True)
    test = source.draw("test", source.test_rows)
    return OverloadSetup(source=source, folder=folder, spec=spec, images=test.images, labels=test.labels)


def _with_wait(gears: Gears, raise_wait_us: int | None) -> Gears:
    if raise_wait_us is None:
        return gears
    return dataclasses.replace(gears, raise_wait_us=raise_wait_us, lower_wait_us=int(_LOWER_SHARE * raise_wait_us))
