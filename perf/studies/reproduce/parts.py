"""The two parts of the data and the members that are asked about them.

What chooses is given a `PlanPart` and nothing else. A `TestPart` is made once the choices are on disk, and goes
only to what evaluates them.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.cli.console import progress
from orchestrator.cli.plan_pool import pool_from_records
from orchestrator.errors import DataError, RepositoryError
from orchestrator.planner.records import Records, records_from_path
from orchestrator.recording.job import RecordOptions, record_job
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.rows.npz import npz_writer
from orchestrator.spec import CascadeSpec
from orchestrator.spec.manifest import MANIFEST
from perf.studies.drawn import DrawnPart

Say = Callable[[str], None]
CACHE = Path("build/glyphs")
SELF = ("glyphs_self_low", "glyphs_self_high")
MEMBERS = (*(f"glyphs_b{size}_s{seed}" for size in range(6) for seed in range(2)), *SELF)
_OF_FAMILY = re.compile(r"(?P<size>.+)_s\d+$")


@dataclass(frozen=True, kw_only=True)
class MemberGroups:
    """Members grouped by what their names say they are.

    Args:
        sizes: per architecture, the smallest first, its members; they differ in the seed of their training.
        pair: one network exported at a low and at a high resolution; empty where the names lack such a pair.
    """

    sizes: tuple[tuple[str, ...], ...]
    pair: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """All members but the pair."""
        return tuple(name for size in self.sizes for name in size)


def groups_from_names(names: Sequence[str]) -> MemberGroups:
    """Groups members whose names have the shape of those in `MEMBERS`."""
    sizes: dict[str, list[str]] = {}
    for name in sorted(names):
        if found := _OF_FAMILY.match(name):
            sizes.setdefault(found["size"], []).append(name)
    pair = tuple(name for end in ("_self_low", "_self_high") for name in names if name.endswith(end))
    return MemberGroups(sizes=tuple(map(tuple, sizes.values())), pair=pair if len(pair) == 2 else ())


def require_members(repository: Path, names: Sequence[str]) -> None:
    """Refuses a repository that lacks members.

    Raises:
        RepositoryError: names the missing members and the command that trains them.
    """
    missing = [name for name in names if not (repository / name / MANIFEST).is_file()]
    if missing:
        few = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        got = f"{len(missing)} of {len(names)} missing ({few})"
        raise RepositoryError(
            f"members in {repository}", got=got, expected="all of them", fix="python -m perf glyphs"
        )


# (name of the part, number of rows or None for all) -> its rows.
DrawPart = Callable[[str, int | None], DrawnPart]


def draw_glyphs(part: str, rows: int | None) -> DrawnPart:
    """Draws the plan or the test part of the glyphs."""
    # Here because Pillow and matplotlib are optional, and take a second to load.
    from perf.studies.glyphs_data import glyphs_split

    assert part in ("plan", "test")
    return glyphs_split("plan" if part == "plan" else "test", rows=rows)


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """The part that plans are chosen on.

    Args:
        records: every member's answers.
        base: a cascade with every member in a stage of its own.
        data_sha256: hash of images and labels.
    """

    records: Records
    base: CascadeSpec
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class TestPart:
    """The part that choices are evaluated on, as `PlanPart`; its images, (n, *dims), are for measuring times."""

    # pytest would collect a class of this name.
    __test__ = False

    records: Records
    base: CascadeSpec
    images: npt.NDArray[np.uint8]
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class PartRecorder:
    """Asks members about so many rows of both parts, None for all; `cache` keeps records between runs."""

    repository: Path
    names: Sequence[str]
    draw: DrawPart
    rows: int | None
    cache: Path
    say: Say

    def plan_part(self) -> PlanPart:
        """Draws the part that plans are chosen on, and asks the members about it."""
        drawn, records = self._recorded("plan")
        return PlanPart(records=records, base=self._base(records), data_sha256=drawn.sha256())

    def test_part(self, *, plan: PlanPart, choices: Path) -> TestPart:
        """Draws the part that choices are evaluated on, and asks the members about it.

        Raises:
            DataError: choices.json is not on disk, or the two parts share rows.
        """
        if not choices.is_file():
            raise DataError("test part", got=f"no {choices}", expected="choices written before it is drawn")
        drawn, records = self._recorded("test")
        both = np.intersect1d(records.ids, plan.records.ids)
        if len(both) or drawn.sha256() == plan.data_sha256:
            raise DataError("test part", got=f"{len(both)} rows of the plan part", expected="rows of its own")
        return TestPart(records=records, base=self._base(records), images=drawn.images, data_sha256=drawn.sha256())

    def _base(self, records: Records) -> CascadeSpec:
        return pool_from_records(records, self.repository, name="glyphs", cost=None).spec

    def _recorded(self, part: str) -> tuple[DrawnPart, Records]:
        self.say(f"{part} part: drawing")
        drawn = self.draw(part, self.rows)
        with opened_pool(self.names, self.repository) as pool:
            path = self.cache / f"{part}-{_key(pool, drawn)}.records.npz"
            known = self._known(path)
            if known is None:
                self.say(f"{part} part: asking {len(self.names)} members about {len(drawn.ids):,} rows")
                rows = self.cache / f"{part}-{drawn.sha256()[:12]}.npz"
                rows.parent.mkdir(parents=True, exist_ok=True)
                with npz_writer(rows) as writer:
                    for name in ("ids", "labels", "images"):
                        writer.add(name, getattr(drawn, name))
                record_job(pool, RecordOptions(data=str(rows), by_order=True), path, progress=progress)
                rows.unlink()
        return drawn, known or records_from_path(path)

    def _known(self, path: Path) -> Records | None:
        """Records of an earlier run; None where no file is there or it cannot be read."""
        if not path.is_file():
            return None
        try:
            return records_from_path(path)
        except DataError as error:
            self.say(f"recording again: {error}")
            return None


def _key(pool: RecordingPool, drawn: DrawnPart) -> str:
    """Names a recording by all that decides its content: rows, and members with their hashes and costs."""
    known = [(name, about["sha256"], pool.cost[name]) for name, about in pool.about().items()]
    return hashlib.sha256(repr((drawn.sha256(), len(drawn.ids), known, pool.asked)).encode()).hexdigest()[:16]
