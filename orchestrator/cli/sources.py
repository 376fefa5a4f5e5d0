"""Labelled rows, from the sources that commands name on the command line."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.local.digits import digits_split


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows to ask about.

    Args:
        ids: (n,).
        images: (n, *dims) in the members' input dtype.
        labels: int64 (n,), None where the source has none.
    """

    ids: npt.NDArray[Any]
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None


def rows_from_source(source: str) -> LabelledRows:
    """The rows a source names.

    Args:
        source: "digits:<split>" or the path of an `.npz` with images (n, *dims), labels and maybe ids.

    Raises:
        DataError: the source is unknown, missing or not readable.
    """
    kind, _, split = source.partition(":")
    if kind == "digits":
        digits = digits_split(split)
        return LabelledRows(ids=digits.ids, images=digits.images, labels=digits.labels)
    path = Path(source)
    if path.suffix != ".npz":
        raise DataError("data source", got=source, expected="digits:<split> or an .npz file")
    if not path.is_file():
        raise DataError(f"data source {path}", got="no such file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"data source {path}", got=f"a file numpy cannot read ({error})") from error
    if "images" not in arrays:
        raise DataError(f"data source {path}", got=", ".join(arrays) or "nothing", expected="an array images")
    images = arrays["images"]
    labels = arrays.get("labels")
    return LabelledRows(
        ids=arrays.get("ids", np.arange(len(images))),
        images=images,
        labels=None if labels is None else labels.astype(np.int64),
    )
