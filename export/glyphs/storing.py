"""A part of the glyphs as a file that `committee record` and `committee batch` read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from export.glyphs.data import CLASSES, Part, glyphs_part
from orchestrator.repository.files import write_all


def store_part(path: Path, part: str, *, rows: int | None = None, progress: Callable[[str], None]) -> int:
    """Draws a part and writes it whole or not at all.

    Args:
        path: of the .npz, with `ids`, `images`, `labels` and the classes' names as `classes`.
        part: "train", "plan" or "test".
        rows: only the first so many.
        progress: told what is being done.

    Returns:
        rows written.

    Raises:
        ExportError: no such part, or it has fewer rows.
        RepositoryError: the file cannot be written.
    """
    drawn = glyphs_part(
        cast(Part, part), rows=rows, progress=lambda done, of: progress(f"drawing {part}: {done:,} of {of:,}")
    )
    stored = io.BytesIO()
    np.savez(stored, ids=drawn.ids, images=drawn.images, labels=drawn.labels, classes=np.array(CLASSES))
    write_all(path.parent, {path.name: stored.getvalue()})
    return len(drawn.ids)
