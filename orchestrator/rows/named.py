"""The rows that `committee infer` is given: arrays, pictures and digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InputError
from orchestrator.files import irregular_kind
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, picture_bytes
from orchestrator.spec.served_model import ModelInfo, check_rows, input_tensor


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """One row to ask about.

    Args:
        name: what the user called it; rows of one file are numbered.
        row: (1, *dims).
        truth: its label, where that is known.
    """

    name: str
    row: npt.NDArray[Any]
    truth: int | None = None


def rows_from_sources(sources: Sequence[str], info: ModelInfo, read_picture: ReadPicture) -> list[NamedRow]:
    """The rows that words of the command line name, in order, checked against the model.

    Args:
        sources: "digit:INDEX", or paths of .npy files and pictures.
        info: the model they are for.
        read_picture: turns an encoded picture into one row.

    Raises:
        DataError: something is missing or cannot be read.
        InputError: rows that do not fit the model.
    """
    rows = [named for source in sources for named in _rows_from_source(source, info, read_picture)]
    for named in rows:
        try:
            check_rows(info, named.row)
        except InputError as error:
            raise InputError(
                f"{named.name}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
            ) from error
    return rows


def _rows_from_source(source: str, info: ModelInfo, read_picture: ReadPicture) -> list[NamedRow]:
    if source.startswith("digit:"):
        return [_digit(source)]
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in (*PICTURE_ENDINGS, ".npy"):
        expected = "digit:INDEX, .npy, .png or .jpg, or another kind of picture"
        raise DataError(source, got="an unknown kind of row", expected=expected)
    if not path.exists():
        raise DataError(source, got="no such file")
    if suffix == ".npy":
        return _array_rows(path, info)
    return [NamedRow(name=source, row=read_picture(picture_bytes(path, source), source)[None])]


def _digit(source: str) -> NamedRow:
    text = source.removeprefix("digit:")
    if not text.isdecimal():
        raise DataError(source, got=repr(text), expected="a whole number, as in digit:12")
    # Only here, since it needs scikit-learn's scans.
    from orchestrator.rows.digits import digit_image

    image, label = digit_image(int(text))
    return NamedRow(name=source, row=np.asarray(image, np.float32)[None], truth=int(label))


def _array_rows(path: Path, info: ModelInfo) -> list[NamedRow]:
    if (kind := irregular_kind(path)) is not None:
        raise DataError(f"{path}", got=kind, expected="a regular file")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}", got=f"a file numpy cannot read ({error})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{path}", got="an archive of arrays", expected="one array; see `committee batch` for .npz"
        )
    if array.ndim == len(input_tensor(info).shape) - 1:
        return [NamedRow(name=f"{path}", row=array[None])]
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path}", got=f"shape {list(array.shape)}", expected="at least one row")
    return [NamedRow(name=f"{path}[{index}]", row=array[index : index + 1]) for index in range(len(array))]
