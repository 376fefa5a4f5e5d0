"""Encoded pictures into rows, as clients decode them: decoding.py beside it is theirs. Needs numpy and Pillow."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


class PictureRowError(ValueError):
    """A picture that is not decoded; its text is one line."""


class RowPixels:
    """A decoder.

    Args:
        _folder: of its files.
        output: name of its only output.
        dtype: numpy's name of the output's dtype.
        dims: of one row, channels first or last as `preprocess` says.
        preprocess: how a picture becomes a row, the fields of the `preprocess` section of a manifest.
        max_bytes: most bytes of a picture.
    """

    def __init__(
        self,
        _folder: Path,
        *,
        output: str,
        dtype: str,
        dims: list[int],
        preprocess: dict[str, Any],
        max_bytes: int,
    ) -> None:
        # Copied beside this file; in a checkout it is orchestrator/rows/decoding.py.
        self._decoding: Any = importlib.import_module("decoding")
        self._decoding.keep_quiet()
        self._output, self._max_bytes = output, max_bytes
        self._how = {"preprocess": SimpleNamespace(**preprocess), "dtype": dtype, "dims": tuple(dims)}
        # Pillow imports what reads its formats with the first picture, a quarter of a second in which others wait.
        Image.init()

    def __call__(self, rows: Sequence[object], _wanted: Sequence[str] = ()) -> dict[str, npt.NDArray[Any]]:
        """The output (n, *dims) of n pictures as bytes; PictureRowError names the first that makes no row."""
        return {self._output: np.stack([self._row(place, row) for place, row in enumerate(rows)])}

    def _row(self, place: int, data: object) -> npt.NDArray[Any]:
        if not isinstance(data, bytes):
            raise PictureRowError(f"row {place}: got a null, expected a picture")
        if len(data) > self._max_bytes:
            raise PictureRowError(f"row {place}: got {len(data)} bytes, expected at most {self._max_bytes}")
        try:
            row: npt.NDArray[Any] = self._decoding.row_of(self._decoding.decoded(data), **self._how)
        except self._decoding.PictureError as error:
            raise PictureRowError(f"row {place}: {error}") from error
        return row


# What the model file asks this module for.
REFUSAL = PictureRowError
load = RowPixels
