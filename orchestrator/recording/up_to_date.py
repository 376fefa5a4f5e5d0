"""Whether a records file is up to date: a hash of everything that decides its content, kept beside it."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.planner.records import OUTPUTS, records_file_from_path, text_from_meta
from orchestrator.recording.pool import RecordingPool
from orchestrator.recording.summary import Recorded, recorded_class_names
from orchestrator.rows.blocks import RowSource
from orchestrator.rows.npz import arrays_from_path


def recording_fingerprint(
    header: Mapping[str, Any], pool: RecordingPool, source: RowSource, *, skip_bad: bool
) -> str | None:
    """Hash of everything that decides the records, or None where part of it is unknown.

    Args:
        header: what a resumed run and the one it resumes have in common.
        pool: the members.
        source: of the rows.
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
        "class_names": recorded_class_names(source, pool),
        "labels_by": source.labels.by,
        "data_state": source.state,
        "skip_bad": skip_bad,
    }
    return hashlib.sha256(text_from_meta(decides).encode()).hexdigest()


def keep_fingerprint(output: Path, fingerprint: str | None) -> None:
    """Writes the fingerprint beside a records file; not into it, since equal recordings are equal bytes.

    Args:
        output: the records file, finished.
        fingerprint: of the recording; None forgets what was noted.
    """
    note = _note_of(output)
    # Without the note the rows are recorded again, which harms nobody.
    with contextlib.suppress(OSError):
        note.unlink(missing_ok=True)
        if fingerprint is not None:
            note.write_text(json.dumps({"recording": fingerprint, "file": _state_of(output)}), encoding="utf-8")


def finished_recording(output: Path, fingerprint: str | None) -> Recorded | None:
    """The content of the records file at `output` if it was made with that fingerprint, else None.

    Outputs are read one member at a time, for they may take gigabytes.
    """
    try:
        noted = json.loads(_note_of(output).read_bytes())
        if fingerprint is None or noted != {"recording": fingerprint, "file": _state_of(output)}:
            return None
        file = records_file_from_path(output)
    except (OSError, ValueError, DataError):
        return None
    return Recorded(
        rows=file.rows,
        labels=file.labels,
        sha256=file.meta["data_sha256"],
        skipped=file.meta["skipped"],
        skipped_rows=file.meta["skipped_rows"],
        outputs=partial(_outputs, output),
    )


def _outputs(path: Path, name: str) -> Iterator[npt.NDArray[np.float32]]:
    wanted = f"{OUTPUTS}{name}"
    yield arrays_from_path(path, what=f"records {path}", wanted=lambda stored: stored == wanted)[wanted]


def _note_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.recording")


def _state_of(output: Path) -> list[int]:
    """Size and time of the file, which change when somebody writes it."""
    stat = output.stat()
    return [stat.st_size, stat.st_mtime_ns]
