"""The two parts: drawn, recorded once per set of members, and kept apart by their types.

What chooses takes a `PlanPart`. A `TestPart` is made after the choices are on disk and goes only to what measures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.cli.console import progress
from orchestrator.cli.plan_pool import pool_from_records
from orchestrator.errors import DataError
from orchestrator.planner.records import Records, records_from_path
from orchestrator.recording.job import Wishes, record_job
from orchestrator.recording.pool import Pool, opened_pool
from orchestrator.rows.npz import npz_writer
from orchestrator.spec import CascadeSpec

Say = Callable[[str], None]
CACHE = Path("build/glyphs")


class DrawnPart(Protocol):
    """Rows of one part."""

    @property
    def ids(self) -> npt.NDArray[Any]:
        """(n,), unique."""

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """(n, *dims)."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,)."""

    def sha256(self) -> str:
        """Of images and labels."""


# part, rows at most -> its rows.
DrawPart = Callable[[str, int | None], DrawnPart]


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """What may be chosen on.

    Args:
        records: every member's answers.
        base: its members are the pool.
        data_sha256: of images and labels.
    """

    records: Records
    base: CascadeSpec
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class TestPart:
    """What choices are judged on.

    Args:
        records: every member's answers.
        base: as of the plan part.
        images: (n, *dims), for what is timed.
        data_sha256: of images and labels.
    """

    # Its name is no wish to be collected by pytest.
    __test__ = False

    records: Records
    base: CascadeSpec
    images: npt.NDArray[np.uint8]
    data_sha256: str


@dataclass(frozen=True, kw_only=True)
class PartRecorder:
    """Records parts with the same members.

    Args:
        repository: that holds them.
        names: of the members.
        draw: makes the rows.
        rows: of each part at most; None takes all.
        cache: folder for records.
        say: told what is being done.
    """

    repository: Path
    names: Sequence[str]
    draw: DrawPart
    rows: int | None
    cache: Path
    say: Say

    def plan_part(self) -> PlanPart:
        """The part that plans are chosen on."""
        drawn, records = self._recorded("plan")
        return PlanPart(records=records, base=self._base(records), data_sha256=drawn.sha256())

    def test_part(self, *, plan: PlanPart, choices: Path) -> TestPart:
        """The part that judges them; the choices are on disk by now.

        Raises:
            DataError: they are not, or the two parts share rows.
        """
        if not choices.is_file():
            raise DataError("test part", got=f"no {choices}", expected="choices written before it is drawn")
        drawn, records = self._recorded("test")
        both = np.intersect1d(records.ids, plan.records.ids)
        if len(both) or drawn.sha256() == plan.data_sha256:
            raise DataError("test part", got=f"{len(both)} rows of the plan part", expected="rows of its own")
        return TestPart(records=records, base=self._base(records), images=drawn.images, data_sha256=drawn.sha256())

    def _base(self, records: Records) -> CascadeSpec:
        return pool_from_records(records, self.repository, name="glyphs", cost=None)[0]

    def _recorded(self, part: str) -> tuple[DrawnPart, Records]:
        self.say(f"{part} part: drawing")
        drawn = self.draw(part, self.rows)
        with opened_pool(self.names, self.repository) as pool:
            path = self.cache / f"{part}-{_key(pool, drawn)}.records.npz"
            known = self._known(path)
            if known is None:
                self.say(f"{part} part: asking {len(self.names)} members about {len(drawn.ids):,} rows")
                rows = self.cache / f"{part}-{drawn.sha256()[:12]}.npz"
                _write_rows(rows, drawn)
                record_job(pool, Wishes(data=str(rows), output=path, by_order=True), progress=progress)
                rows.unlink()
        return drawn, known or records_from_path(path)

    def _known(self, path: Path) -> Records | None:
        """An earlier recording; None where there is none that can be read."""
        if not path.is_file():
            return None
        try:
            return records_from_path(path)
        except DataError as error:
            self.say(f"recording again: {error}")
            return None


def _key(pool: Pool, drawn: DrawnPart) -> str:
    """Another member file, another cost or another row, and it is another recording."""
    known = [(name, about["sha256"], pool.cost[name]) for name, about in pool.about().items()]
    return hashlib.sha256(repr((drawn.sha256(), len(drawn.ids), known, pool.asked)).encode()).hexdigest()[:16]


def _write_rows(path: Path, drawn: DrawnPart) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with npz_writer(path) as writer:
        writer.add("ids", drawn.ids)
        writer.add("labels", drawn.labels)
        writer.add("images", drawn.images)
