"""Whether a records file already holds what is asked for, so that the same command again has nothing to do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.cli.record_members import Pool
from orchestrator.planner.npz import BROKEN
from orchestrator.planner.records import text_from_meta
from orchestrator.planner.texts import value_from_json

# The key of the fingerprint in the records' meta.
RECORDING = "recording_sha256"


@dataclass(frozen=True, kw_only=True)
class FinishedRecording:
    """A records file, read one array at a time: a member's outputs may take gigabytes.

    Args:
        path: of the file.
        meta: its JSON values.
    """

    path: Path
    meta: Mapping[str, Any]

    def labels(self) -> npt.NDArray[np.int64] | None:
        """int64 (n,), None where the rows have none."""
        with np.load(self.path, allow_pickle=False) as stored:
            return np.asarray(stored["labels"]) if "labels" in stored.files else None

    def rows(self) -> int:
        """Number of rows n."""
        with np.load(self.path, allow_pickle=False) as stored:
            return len(stored["ids"])

    def outputs(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """A member's outputs, float32 (n, k), as one part."""
        with np.load(self.path, allow_pickle=False) as stored:
            yield stored[f"outputs/{name}"]


def recording_fingerprint(header: Mapping[str, Any], pool: Pool, *, skip_bad: bool) -> str | None:
    """Hash of everything that decides the records, or None where part of it is unknown.

    Args:
        header: what a resumed run must share with the one it resumes.
        pool: the members.
        skip_bad: whether rows that cannot be used are left out.

    Returns:
        sha256 in hex. None for members of a server, which may be replaced behind the same name, and for members
        without a hash.
    """
    if not pool.made_with or any(about["sha256"] is None for about in pool.about().values()):
        return None
    decides = {
        **header,
        "made_with": dict(pool.made_with),
        "kinds": {name: list(kind) for name, kind in pool.kinds.items()},
        "class_names": pool.class_names(),
        "skip_bad": skip_bad,
    }
    return hashlib.sha256(text_from_meta(decides).encode()).hexdigest()


def finished_recording(output: Path, fingerprint: str | None) -> FinishedRecording | None:
    """The records file at `output` if it was made with that fingerprint; None where it must be recorded again."""
    if fingerprint is None or not output.is_file():
        return None
    try:
        with np.load(output, allow_pickle=False) as stored:
            meta = value_from_json(str(stored["meta"]))
    except BROKEN:
        return None
    if not isinstance(meta, dict) or meta.get(RECORDING) != fingerprint:
        return None
    return FinishedRecording(path=output, meta=meta)
