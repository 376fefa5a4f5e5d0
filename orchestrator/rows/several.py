"""Rows of several tensors in one archive, and of tensors whose rows differ in length.

A tensor is an array (n, *dims) of its name. One whose rows differ in length is two: `NAME.values` has the rows one
after another, `NAME.offsets` (n + 1,) where each begins and the last one ends.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError
from orchestrator.rows.arrays import ArrayRows, companions_from_npz, stored_array
from orchestrator.rows.blocks import (
    ColumnNames,
    Indices,
    RowBlock,
    RowPiece,
    Rows,
    check_rows_of,
    sha256_of_array,
    spans,
)
from orchestrator.rows.cells import text_columns
from orchestrator.rows.npz import array_of, opened_npz
from orchestrator.spec.rows import AnyRows, stacked
from orchestrator.spec.served_model import ModelInfo, TensorInfo

VALUES, OFFSETS = ".values", ".offsets"


@dataclass(frozen=True, kw_only=True)
class RaggedArray:
    """Rows of different lengths, in memory.

    Args:
        values: (values of all rows, *dims without the length).
        offsets: int64 (n + 1,), ascending from 0.
    """

    values: Rows
    offsets: Indices

    def sha256(self) -> str:
        """Hash of values and offsets."""
        return f"{sha256_of_array(self.values)} {sha256_of_array(self.offsets)}"

    def rows(self, indices: Indices) -> Rows:
        """Some rows, (n, *dims) where they have one length, else (n,) objects."""
        return stacked([self.values[self.offsets[row] : self.offsets[row + 1]] for row in indices.tolist()])


@dataclass(frozen=True, kw_only=True)
class SeveralArrays(ArrayRows):
    """Rows of several tensors, or of one whose rows differ in length; of several the blocks have them by name."""

    parts: Mapping[str, ArrayRows | RaggedArray] = field(default_factory=dict)

    def pieces(self, wanted: Indices | None, start: int, size: int) -> Iterator[RowPiece]:
        """As `ArrayRows.pieces`."""
        dense = {
            name: part.pieces(wanted, start, size)
            for name, part in self.parts.items()
            if isinstance(part, ArrayRows)
        }
        count = self.shape[0] if wanted is None else len(wanted)
        for first, stop in spans(count, start, size):
            indices = np.arange(first, stop) if wanted is None else wanted[first:stop]
            here = {name: next(pieces) for name, pieces in dense.items()}
            yield RowPiece(first=first, stop=stop, load=partial(self._block, indices, first, here))

    def _block(self, indices: Indices, first: int, dense: Mapping[str, RowPiece]) -> RowBlock:
        rows: dict[str, Any] = {
            name: part.rows(indices) if isinstance(part, RaggedArray) else dense[name].load().rows
            for name, part in self.parts.items()
        }
        made: AnyRows = rows if len(rows) > 1 else next(iter(rows.values()))
        return RowBlock(ids=np.arange(first, first + len(indices)), rows=made)

    def sha256(self) -> str:
        """Hash of all tensors with their names."""
        digest = hashlib.sha256()
        for name, part in sorted(self.parts.items()):
            digest.update(f"{name} {part.sha256()}\n".encode())
        return digest.hexdigest()


def needs_several(path: Path, info: ModelInfo) -> bool:
    """Whether an archive is read as several arrays: the model has several inputs, or its only one is stored so."""
    if path.suffix != ".npz" or len(info.inputs) > 1:
        return path.suffix == ".npz"
    with opened_npz(path, what=f"{path}") as stored:
        return f"{info.inputs[0].name}{OFFSETS}" in stored.files


def several_from_path(path: Path, info: ModelInfo, columns: ColumnNames) -> SeveralArrays:
    """The rows of an archive of arrays for each input of a model.

    Raises DataError where it is broken, or lacks an array, InputError where they do not fit the model.
    """
    with opened_npz(path, what=f"{path}") as stored:
        columns = columns.found_in(f"{path}", "arrays", stored.files)
        texts = text_columns(info, columns, stored.files)
        named = {tensor: texts.get(tensor.name, tensor.name) for tensor in info.inputs}
        parts = {tensor.name: _part(path, stored, tensor, name) for tensor, name in named.items()}
        counts = {name: _count(part) for name, part in parts.items()}
        total = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            got = ", ".join(f"{count} rows in {name}" for name, count in counts.items())
            raise DataError(f"{path}", got=got, expected="the same number in each")
        if not total:
            raise DataError(f"{path}", got="no rows", expected="at least one")
        companions = companions_from_npz(path, stored, columns, total)
    first = {name: _sample(part) for name, part in parts.items()}
    check_rows_of(f"{path} for", info, first if len(first) > 1 else next(iter(first.values())))
    return SeveralArrays(path=path, shape=(total,), dtype=np.dtype(object), parts=parts, **companions)


def _part(path: Path, stored: Any, tensor: TensorInfo, name: str) -> ArrayRows | RaggedArray:
    if name in stored.files:
        return stored_array(path, stored, name)
    if not {f"{name}{VALUES}", f"{name}{OFFSETS}"} <= set(stored.files):
        got = f"arrays {', '.join(stored.files) or 'none'}"
        expected = f"{name}, or where lengths differ {name}{VALUES} and {name}{OFFSETS}"
        raise DataError(f"{path}", got=got, expected=expected)
    if tensor.shape[1:].count(-1) != 1 or tensor.shape[1] != -1:
        got = f"{name}{OFFSETS} for dims {list(tensor.shape[1:])}"
        raise DataError(f"{path}", got=got, expected="a length that varies as the first size of a row")
    values, offsets = (array_of(stored, f"{name}{part}") for part in (VALUES, OFFSETS))
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not values.ndim or not _divide(values, offsets):
        expected = f"whole numbers (n + 1,) that ascend from 0 to {len(values) if values.ndim else 0}"
        raise DataError(f"{path} {name}{OFFSETS}", got=f"{offsets.dtype} {list(offsets.shape)}", expected=expected)
    return RaggedArray(values=values, offsets=offsets.astype(np.int64))


def _divide(values: Rows, offsets: Rows) -> bool:
    """Whether offsets divide the values into rows."""
    ends = offsets.astype(np.int64)
    return bool(len(ends) and ends[0] == 0 and ends[-1] == len(values) and (np.diff(ends) >= 0).all())


def _count(part: ArrayRows | RaggedArray) -> int:
    return len(part.offsets) - 1 if isinstance(part, RaggedArray) else part.shape[0]


def _sample(part: ArrayRows | RaggedArray) -> Rows:
    """One row (1, *dims), of an array without its values."""
    if isinstance(part, RaggedArray):
        return part.rows(np.arange(1))
    return np.broadcast_to(np.zeros((), part.dtype), (1, *part.shape[1:]))
