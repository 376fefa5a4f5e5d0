"""The summary of a finished recording, for people and programs, and the meta of its file."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import first_few
from orchestrator.planner.intervals import Labels, chance_notes
from orchestrator.planner.records import MEAN_LENGTH, NON_FINITE, SKIPPED_LISTED, RecordsFile
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.scores import kind_notes, kind_of
from orchestrator.rows.arrays import is_installed
from orchestrator.rows.blocks import RowSource
from orchestrator.spec.output_kind import ScoreEvidence
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, lacks_flags, processor_flags

# Parts of a member's outputs, float32 (n, k) in all, by its name.
Outputs = Callable[[str], Iterable[npt.NDArray[np.float32]]]


def summary_of(
    file: RecordsFile,
    outputs: Outputs,
    pool: RecordingPool,
    source: RowSource,
    *,
    seen: Mapping[str, ScoreEvidence],
) -> dict[str, Any]:
    """JSON values: rows, classes, accuracy and cost per member, hashes, what was skipped, and notes.

    `seen` is what each member's scores look like.
    """
    about, labels, notes = pool.about(), file.labels, _notes(pool, file)
    notes += kind_notes(seen, pool.kinds)
    right: dict[str, int] = {}
    if labels is not None:
        count = partial(_right, outputs)
        right = {name: count(name, labels) for name in pool.names}
        trained = {name: hits for name, hits in right.items() if not about[name]["random_weights"]}
        notes += chance_notes(trained, count, labels=labels, classes=pool.classes, labels_by=source.labels.by)
    return {
        "output": str(file.path),
        "up_to_date": False,
        **facts_of(file, right, about),
        "asked": pool.asked,
        "data_sha256": file.meta["data_sha256"],
        "resumed_rows": 0,
        "skipped_rows": file.meta["skipped_rows"],
        "skipped": file.meta["skipped"],
        "notes": [*source.labels.notes, *source.notes, *notes],
    }


def facts_of(
    file: RecordsFile, right: Mapping[str, int], about: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What every summary says of records; `right` are the rows each member gets right, empty without labels."""
    recorded = file.meta.get("members") or {}
    members = {
        name: {
            "cost": cost,
            "accuracy": right[name] / file.rows if name in right else None,
            "random_weights": bool(about.get(name, {}).get("random_weights")),
            "sha256": about.get(name, {}).get("sha256"),
            MEAN_LENGTH: recorded.get(name, {}).get(MEAN_LENGTH),
        }
        for name, cost in file.cost.items()
    }
    labelled = file.labels is not None
    return {"rows": file.rows, "classes": file.classes, "labelled": labelled, "members": members}


def _right(outputs: Outputs, name: str, labels: Labels) -> int:
    """Number of rows that a member would get right if the labels were these."""
    right, at = 0, 0
    for scores in outputs(name):
        right += int((scores.argmax(axis=1) == labels[at : at + len(scores)]).sum())
        at += len(scores)
    return right


def _notes(pool: RecordingPool, file: RecordsFile) -> list[str]:
    random = [name for name, manifest in pool.manifests.items() if manifest.random_weights]
    unknown = [name for name in pool.names if name not in pool.manifests]
    notes = pool.version_notes()
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
    if count := file.meta.get(NON_FINITE):
        notes.append(f"{count} rows hold NaN or infinity: a cascade answers such rows with `plan.non_finite` pass")
    if skipped := file.meta["skipped_rows"]:
        notes.append(f"{skipped} rows skipped, listed in meta: {first_few(list(file.meta['skipped']))}")
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

    Raises DataError where a member's scores are not of the kind that is said of it.
    """
    about = pool.about().items()
    meta: dict[str, Any] = {
        "data": data,
        "data_sha256": sha256,
        "members": {name: {**one, "output_kind": kind_of(name, seen[name], pool.kinds)} for name, one in about},
        **pool.about_derived(),
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
    if is_installed(data):
        meta["split"] = data.partition(":")[2]
    if (names := recorded_class_names(source, pool)) is not None:
        meta["class_names"] = list(names)
    return meta


def costs_of_rows(
    pool: RecordingPool, lengths: Mapping[str, npt.NDArray[np.int64]], meta: dict[str, Any]
) -> dict[str, float]:
    """The members' costs per row: where they depend on its length, int64 (n,), the mean over the recorded rows.

    How long these are on average is written into the meta, which tells such a cost from one that is the same for
    all rows.
    """
    cost = dict(pool.cost)
    for name, length in pool.lengths.items():
        cost[name] = float(np.mean(length.macs(lengths[name].astype(np.float64))))
        meta["members"][name][MEAN_LENGTH] = float(lengths[name].mean())
    return cost
