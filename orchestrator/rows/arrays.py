"""Rows that are arrays already: .npz, .npy, and the digits."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError
from orchestrator.rows.batch_arrays import (
    check_in_file,
    check_single_array,
    mapped_npy,
    named_array,
    npz_member,
    rows_array_name,
)
from orchestrator.rows.digits import digits_split
from orchestrator.rows.ids import check_ids, sha256_of_array, sha256_of_parts
from orchestrator.rows.labels import Classes, labels_from_array
from orchestrator.rows.npz import BROKEN, opened_npz
from orchestrator.rows.sources import Indices, Loaded, Piece, Rows, Source, spans
from orchestrator.rows.stored import ID_NAMES, LABEL_NAMES, ColumnNames, checked_ids
from orchestrator.spec.served_model import ModelInfo

# Bytes read at once while an array is hashed.
BLOCK_BYTES = 1 << 22


def digits_source(text: str, info: ModelInfo, *, classes: Classes) -> Source:
    """The rows of "digits:<split>".

    Raises:
        DataError: there is no such split.
        InputError: digits do not fit the model.
    """
    split = digits_split(text.partition(":")[2])
    return _source(text, info, images=split.images, ids=split.ids, labels=split.labels, classes=classes)


def array_source(path: Path, info: ModelInfo, *, columns: ColumnNames, classes: Classes) -> Source:
    """The rows of a .npy array, or of a .npz with `images` and maybe `labels` and `ids`.

    Raises:
        DataError: broken, empty, or with arrays that do not fit together.
        InputError: its rows do not fit the model.
    """
    if path.suffix == ".npy":
        check_single_array(path, columns)
        return _source(f"{path}", info, images=mapped_npy(path), ids=None, labels=None, classes=classes)
    with opened_npz(path, what=f"{path}") as stored:
        name = rows_array_name(path, stored.files, columns)
        ids = named_array(path, stored, columns.ids, usual=ID_NAMES)
        labels = named_array(path, stored, columns.labels, usual=LABEL_NAMES)
    with _broken_as(path, f" array {name}"), npz_member(path, name) as (_, shape, fortran, dtype):
        pass
    if fortran:
        # No row of it lies in one piece, so only this kind is held whole.
        with opened_npz(path, what=f"{path} array {name}") as stored:
            images = stored[name]
        return _source(f"{path}", info, images=images, ids=ids, labels=labels, classes=classes)
    return _streamed_source(
        path, info, name=name, shape=shape, dtype=dtype, ids=ids, labels=labels, classes=classes
    )


@contextlib.contextmanager
def _broken_as(path: Path, part: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise DataError(f"{path}{part}", got=f"a file numpy cannot read ({error})") from error


def _source(
    name: str,
    info: ModelInfo,
    *,
    images: Rows,
    ids: Rows | None,
    labels: Rows | None,
    classes: Classes,
) -> Source:
    """A source of rows that can be indexed."""
    known = _checked(Path(name), info, images.shape, images.dtype, ids=ids)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[Piece]:
        for first, stop in spans(len(wanted), start, size):
            yield Piece(first=first, stop=stop, load=partial(_picked, images, wanted[first:stop], first))

    if isinstance(images, np.memmap):
        rows = max(1, BLOCK_BYTES // max(1, images[:1].nbytes))
        parts = (images[first:stop] for first, stop in spans(len(images), 0, rows))
        sha256 = sha256_of_parts(images.dtype, images.shape, parts=parts)
    else:
        sha256 = sha256_of_array(images)
    return _described(name, known, labels, classes=classes, pieces=pieces, sha256=sha256)


def _picked(images: Rows, indices: Indices, first: int) -> Loaded:
    positions = np.arange(first, first + len(indices))
    return Loaded(positions=positions, rows=np.ascontiguousarray(images[indices]))


def _streamed_source(
    path: Path,
    info: ModelInfo,
    *,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    ids: Rows | None,
    labels: Rows | None,
    classes: Classes,
) -> Source:
    """A source of rows that lie in an archive and pass through memory in order."""
    known = _checked(path, info, shape, dtype, ids=ids)

    def pieces(wanted: Indices, start: int, size: int) -> Iterator[Piece]:
        with _broken_as(path, f" array {name}"), npz_member(path, name) as (file, _, _, _):
            base = file.tell()
            for first, stop in spans(len(wanted), start, size):
                rows = _read_rows(file, base, wanted[first:stop], shape[1:], dtype)
                loaded = Loaded(positions=np.arange(first, stop), rows=rows)
                yield Piece(first=first, stop=stop, load=partial(_given, loaded))

    with _broken_as(path, f" array {name}"):
        sha256 = _streamed_sha256(path, name, shape, dtype)
    return _described(f"{path}", known, labels, classes=classes, pieces=pieces, sha256=sha256)


def _given(loaded: Loaded) -> Loaded:
    return loaded


def _read_rows(file: Any, base: int, indices: Indices, dims: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """Rows by ascending index from an open array, one read for each run of neighbours."""
    row_bytes = math.prod(dims) * dtype.itemsize
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    parts = []
    for run in runs:
        file.seek(base + int(run[0]) * row_bytes)
        data = file.read(len(run) * row_bytes)
        parts.append(np.frombuffer(data, dtype).reshape(len(run), *dims))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _streamed_sha256(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
    with npz_member(path, name) as (file, _, _, _):

        def parts() -> Iterator[Rows]:
            left = shape[0] * row_bytes
            while left:
                data = file.read(min(left, BLOCK_BYTES))
                if not data:
                    raise EOFError(f"it ends {left} bytes too early")
                left -= len(data)
                yield np.frombuffer(data, np.uint8)
            # Only a read past the end compares the checksum.
            file.read(1)

        return sha256_of_parts(dtype, shape, parts=parts())


def _checked(
    path: Path, info: ModelInfo, shape: tuple[int, ...], dtype: np.dtype[Any], *, ids: Rows | None
) -> Rows:
    """The ids of rows that fit the model."""
    if not shape or shape[0] == 0:
        raise DataError(f"{path}", got=f"shape {list(shape)}", expected="at least one row")
    check_in_file(path, info, np.empty((1, *shape[1:]), dtype))
    if ids is None:
        return np.arange(shape[0])
    known = checked_ids(path, ids, shape[0])
    check_ids(f"{path} ids", known, shape[0])
    return known


def _described(name: str, ids: Rows, labels: Rows | None, *, classes: Classes, pieces: Any, sha256: str) -> Source:
    known = labels_from_array(name, labels, rows=len(ids), classes=classes)
    identity = {"rows_sha256": sha256, "ids_sha256": sha256_of_array(ids)}
    if known.numbers is not None:
        identity["labels_sha256"] = sha256_of_array(known.numbers)
    return Source(
        name=name,
        ids=ids,
        labels=known.numbers,
        labels_by=known.by,
        class_names=known.class_names,
        pieces=pieces,
        identity=identity,
        data_sha256=sha256,
        notes=known.notes,
    )
