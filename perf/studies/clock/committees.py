"""The committees whose plans are predicted and served: members, rows to plan on, and other rows to ask about."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from orchestrator.planner.records import Records, records_from_path, write_records
from orchestrator.recording.job import records_of
from orchestrator.rows.digits import digits_split
from orchestrator.rows.docstrings import docstrings_split
from orchestrator.rows.npz import npz_writer
from orchestrator.spec.rows import AnyRows
from perf.routes.recipes import COMMITTED, GLYPHS, RECIPES
from perf.routes.scenario import bench_scenario
from perf.routes.three_cnn import EXIT_SHARE

TEXT = Path("perf/text/model_repository")
TOKENIZER = "tokenizer_docstrings"
# One seed of each size of glyphs: the others differ from them in weights alone.
GLYPHS_MEMBERS = tuple(f"glyphs_b{size}_s1" for size in range(6))
_GLYPHS_ROWS = {"plan": 8000, "test": 4000}
_CNN_ROWS = {"plan": range(1024), "test": range(1024, 2048)}
_TEXT_ROWS = 2000


@dataclass(frozen=True, kw_only=True)
class CommitteeRows:
    """Rows of one part and what every member says of them."""

    rows: AnyRows
    records: Records


@dataclass(frozen=True, kw_only=True)
class Committee:
    """Members of a repository.

    Args:
        name: of the committee, in results.
        repository: of the members.
        members: names.
        part: gives the rows to plan on, "plan", and those that are asked about where it is served, "test"; told a
            folder that keeps the answers.
        derive: models that make tensors which members read.
        data: rows that members are timed with; None takes made-up ones, as all rows have one shape.
        imposed: shares of the rows that exit at each stage but the last, where weights are random; None plans.
    """

    name: str
    repository: Path
    members: tuple[str, ...]
    part: Callable[[str, Path], CommitteeRows]
    derive: tuple[str, ...] = ()
    data: str | None = None
    imposed: tuple[float, ...] | None = None


def committee_of(name: str) -> Committee:
    """A committee by name, of `COMMITTEES`; the three CNNs are made where they are not there."""
    return COMMITTEES[name]()


def _recorded(path: Path, record: Callable[[], Records]) -> Records:
    """Records of an earlier run, or new ones; a plan is refused for members that have changed since."""
    if path.is_file():
        return records_from_path(path)
    made = record()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(made, path)
    return made


def _recorded_array(
    committee: str, part: str, folder: Path, record: Callable[[str], Records], **arrays: Any
) -> Records:
    """Records of arrays, which members read from a file."""

    def make() -> Records:
        with TemporaryDirectory() as made:
            path = Path(made) / f"{part}.npz"
            with npz_writer(path) as writer:
                for name, array in arrays.items():
                    writer.add(name, array)
            return record(str(path))

    return _recorded(folder / f"{committee}-{part}.npz", make)


def _glyphs() -> Committee:
    def part(name: str, folder: Path) -> CommitteeRows:
        # Pillow and matplotlib are optional, and take a second to load.
        from perf.studies.glyphs_data import glyphs_split

        drawn = glyphs_split("plan" if name == "plan" else "test", rows=_GLYPHS_ROWS[name])
        arrays = {array: getattr(drawn, array) for array in ("ids", "labels", "images")}
        record = partial(records_of, GLYPHS, GLYPHS_MEMBERS)
        return CommitteeRows(rows=drawn.images, records=_recorded_array("glyphs", name, folder, record, **arrays))

    return Committee(name="glyphs", repository=GLYPHS, members=GLYPHS_MEMBERS, part=part)


def _digits() -> Committee:
    members = ("digits_small", "digits_medium", "digits_large")

    def part(name: str, _: Path) -> CommitteeRows:
        return CommitteeRows(
            rows=digits_split(name).images, records=records_of(COMMITTED, members, f"digits:{name}")
        )

    return Committee(name="digits", repository=COMMITTED, members=members, part=part)


def _three_cnn() -> Committee:
    made = bench_scenario(RECIPES["three_cnn"])
    members = made.recipe.scenario.members

    def part(name: str, folder: Path) -> CommitteeRows:
        rows, record = made.recipe.rows_at(_CNN_ROWS[name]), partial(records_of, made.repository, members)
        # The members are made anew for another machine, and their folder has another name then.
        known = f"three_cnn-{made.repository.parent.name}"
        return CommitteeRows(rows=rows, records=_recorded_array(known, name, folder, record, images=rows))

    return Committee(
        name="three_cnn", repository=made.repository, members=members, part=part, imposed=tuple(EXIT_SHARE)
    )


def _text() -> Committee:
    members = ("docstrings_linear", "docstrings_tiny", "docstrings_large")

    def part(name: str, folder: Path) -> CommitteeRows:
        record = partial(records_of, TEXT, members, f"docstrings:{name}", derive=[TOKENIZER], limit=_TEXT_ROWS)
        said, split = _recorded(folder / f"text-{name}.npz", record), docstrings_split(name)
        texts = dict(zip(split.ids.tolist(), split.texts, strict=True))
        rows = np.array([texts[one].encode() for one in said.ids.tolist()], object)[:, None]
        return CommitteeRows(rows={"text": rows}, records=said)

    return Committee(
        name="text", repository=TEXT, members=members, part=part, derive=(TOKENIZER,), data="docstrings:plan"
    )


COMMITTEES: dict[str, Callable[[], Committee]] = {
    "digits": _digits,
    "glyphs": _glyphs,
    "three_cnn": _three_cnn,
    "text": _text,
}
