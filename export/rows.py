"""Rows to compare and to calibrate with: made up so that they differ, or read from a file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.spec import TensorSpec
from orchestrator.spec.request import INPUT_DTYPES


def varied_rows(tensor: TensorSpec, n: int, *, seed: int = 0) -> npt.NDArray[Any]:
    """Rows that look as little alike as pictures do: noise of many grains, contrasts, brightnesses and tints.

    Flat noise would do for comparing two runs of one network, but a network averages it away, so that all rows of
    it get nearly the same answer.

    Args:
        tensor: of the input; an image (c, h, w), or any other shape.
        n: number of rows.
        seed: of everything.

    Returns:
        (n, *dims) in the tensor's dtype; integers over its whole range, floats with values about -2 to 2.
    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(INPUT_DTYPES[tensor.dtype])
    rows = np.stack([_one(rng, tuple(abs(size) for size in tensor.dims)) for _ in range(n)])
    if dtype.kind == "u":
        most = np.iinfo(dtype).max
        levels: npt.NDArray[Any] = np.clip(np.round((rows + 1) / 2 * most), 0, most).astype(dtype)
        return levels
    values: npt.NDArray[Any] = (rows * 2).astype(dtype)
    return values


def _one(rng: np.random.Generator, dims: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """One row with values about -1 to 1."""
    if len(dims) != 3 or min(dims[1:]) < 2:
        return rng.normal(size=dims) * rng.uniform(0.2, 0.8)
    channels, height, width = dims
    picture = np.zeros(dims)
    for _ in range(3):
        grain = int(np.exp(rng.uniform(np.log(2), np.log(min(height, width)))))
        coarse = rng.normal(size=(channels, grain, grain))
        picture += coarse[:, np.arange(height) * grain // height][:, :, np.arange(width) * grain // width]
    tint = rng.normal(scale=0.3, size=(channels, 1, 1))
    return np.clip(picture / 3 * rng.uniform(0.4, 1.0) + tint + rng.normal(scale=0.3), -1, 1)


def rows_from_path(path: Path, tensor: TensorSpec) -> npt.NDArray[Any]:
    """The rows of a file, which must fit the input.

    Args:
        path: an `.npy` of rows, or an `.npz` with them under "images" (or as its only array).
        tensor: of the input.

    Raises:
        DataError: the file is missing, not readable, or its rows do not fit.
    """
    what = f"rows of {path}"
    if not path.is_file():
        raise DataError(what, got="no such file", expected="an .npy or .npz of rows")
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            rows = stored
        else:
            with stored:
                names = stored.files
                name = "images" if "images" in names else names[0] if len(names) == 1 else None
                if name is None:
                    raise DataError(what, got=", ".join(names) or "nothing", expected="an array images")
                rows = stored[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(what, got=f"a file numpy cannot read ({error})") from error
    dtype = INPUT_DTYPES[tensor.dtype]
    if str(rows.dtype) != dtype or rows.shape[1:] != tensor.dims or len(rows) == 0:
        shape = ", ".join(["n", *map(str, tensor.dims)])
        raise DataError(what, got=f"{rows.dtype} {list(rows.shape)}", expected=f"{dtype} [{shape}]")
    return rows
