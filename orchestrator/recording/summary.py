"""The summary of a finished recording, for people and programs, and the meta of its file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import first_few
from orchestrator.planner.intervals import Labels, chance_notes
from orchestrator.planner.records import SKIPPED_LISTED
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.scores import kind_notes, kind_of
from orchestrator.rows.blocks import RowSource
from orchestrator.spec.output_kind import ScoreEvidence
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, lacks_flags, processor_flags


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The content of a records file.

    Args:
        rows: number of rows n.
        labels: int64 (n,), None where the rows have none.
        sha256: hash of the data, None where it is not known.
        skipped: id -> why that row was left out; the first of them, where there are many.
        skipped_rows: how many were left out.
        outputs: parts of a member's outputs, float32 (n, k) in all, by its name.
    """

    rows: int
    labels: Labels | None
    sha256: str | None
    skipped: Mapping[str, str]
    skipped_rows: int
    outputs: Callable[[str], Iterator[npt.NDArray[np.float32]]]

    def right(self, name: str, labels: Labels) -> int:
        """Number of rows that a member would get right if the labels were these."""
        right, at = 0, 0
        for scores in self.outputs(name):
            right += int((scores.argmax(axis=1) == labels[at : at + len(scores)]).sum())
            at += len(scores)
        return right


def summary_of(
    recorded: Recorded, pool: RecordingPool, source: RowSource, *, output: Path, seen: Mapping[str, ScoreEvidence]
) -> dict[str, Any]:
    """JSON values: rows, classes, accuracy and cost per member, hashes, what was skipped, and notes.

    Args:
        recorded: what the file holds.
        pool: the members.
        source: of the rows.
        output: the file.
        seen: member name -> what its scores look like.
    """
    labels, about = recorded.labels, pool.about()
    right = {} if labels is None else {name: recorded.right(name, labels) for name in pool.names}
    return {
        "output": str(output),
        "up_to_date": False,
        "rows": recorded.rows,
        "classes": pool.classes,
        "labelled": labels is not None,
        "members": {
            name: {
                "cost": pool.cost[name],
                "accuracy": right[name] / recorded.rows if name in right else None,
                "random_weights": about[name]["random_weights"],
                "sha256": about[name]["sha256"],
            }
            for name in pool.names
        },
        "asked": pool.asked,
        "data_sha256": recorded.sha256,
        "resumed_rows": 0,
        "skipped_rows": recorded.skipped_rows,
        "skipped": dict(list(recorded.skipped.items())[:SKIPPED_LISTED]),
        "notes": [
            *source.labels.notes,
            *source.notes,
            *pool.version_notes(),
            *_notes(pool, recorded),
            *kind_notes(seen, pool.kinds),
            *_chance_notes(recorded, pool, source, right),
        ],
    }


def _chance_notes(
    recorded: Recorded, pool: RecordingPool, source: RowSource, right: Mapping[str, int]
) -> list[str]:
    if recorded.labels is None:
        return []
    about = pool.about()
    return chance_notes(
        {name: hits for name, hits in right.items() if not about[name]["random_weights"]},
        recorded.right,
        labels=recorded.labels,
        classes=pool.classes,
        labels_by=source.labels.by,
    )


def _notes(pool: RecordingPool, recorded: Recorded) -> list[str]:
    random = [name for name, manifest in pool.manifests.items() if manifest.random_weights]
    unknown = [name for name in pool.names if name not in pool.manifests]
    notes = []
    if random:
        notes.append(f"random weights in {', '.join(random)}: for cost and speed work, not for accuracy")
    if unknown:
        notes.append(f"no manifest of {', '.join(unknown)}: no hash, and the cost is what `cost` says")
    if unknown and pool.manifests:
        notes.append(
            f"costs of {', '.join(pool.manifests)} are MACs unless `cost` says otherwise: give all in one unit"
        )
    here = processor_flags()
    differing = [name for name, one in pool.manifests.items() if lacks_flags(one.processor_flags, here)]
    if differing and pool.made_with:
        notes.append(
            f"{', '.join(differing)} answers here otherwise than it was exported, for this processor has none of "
            f"{', '.join(DOT_PRODUCT_FLAGS)}: record it where it will be served, or quantise it to seven bits"
        )
    if recorded.skipped_rows:
        listed = first_few(list(recorded.skipped))
        notes.append(f"{recorded.skipped_rows} rows skipped, listed in meta: {listed}")
    return notes


def recorded_class_names(source: RowSource, pool: RecordingPool) -> tuple[str, ...] | None:
    """Class names in the order of the scores: those of a class map, else the members' own."""
    return source.labels.class_names or pool.class_names()


def meta_of(
    pool: RecordingPool,
    source: RowSource,
    *,
    data: str,
    sha256: str | None,
    skipped: dict[str, str],
    seen: dict[str, ScoreEvidence],
) -> dict[str, Any]:
    """The meta of a records file: JSON values that are equal for equal recordings.

    Raises:
        DataError: a member's scores are not of the kind that is said of it.
    """
    members = {
        name: {**one, "output_kind": kind_of(name, seen[name], pool.kinds)} for name, one in pool.about().items()
    }
    meta: dict[str, Any] = {
        "data": data,
        "data_sha256": sha256,
        "members": members,
        "asked": pool.asked,
        "labels_by": source.labels.by,
        "skipped_rows": len(skipped),
        "skipped": dict(list(skipped.items())[:SKIPPED_LISTED]),
    }
    if not pool.manifests:
        # All of them from `cost`, which names no unit.
        meta["cost_unit"] = "cost units"
    if pool.made_with:
        meta["recorded_with"] = dict(pool.made_with)
    if data.startswith("digits:"):
        meta["split"] = data.partition(":")[2]
    if (names := recorded_class_names(source, pool)) is not None:
        meta["class_names"] = list(names)
    return meta
