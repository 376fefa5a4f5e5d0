"""The inputs of deferred rows, and which of them may share a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.bls.rows import AnyRows, Rows, RowTensors
from orchestrator.spec import CascadeSpec, RowTensor

Index = npt.NDArray[np.intp]


class Room(NamedTuple):
    """What the table of deferred rows takes."""

    rows: int
    size_bytes: int | None  # of their inputs; None where all rows have one size

    def takes(self, rows: int, size_bytes: int, *, in_table: int, bytes_in_table: int) -> bool:
        """Whether it takes so many rows beside those that it has; an empty one takes any number."""
        has_bytes = self.size_bytes is None or bytes_in_table + size_bytes <= self.size_bytes
        return not in_table or (has_bytes and in_table + rows <= self.rows)


# Differences of lengths stand above the bucket in a row's number.
_SPREAD = np.int64(1 << 40)


class Buckets:
    """Which rows may share a batch: those whose lengths lie in the same buckets.

    A request may bring tensors of unlike lengths, such as ids that are longer than their mask. Every tensor is
    padded to its own longest row, so beside others the mask would be as long as the ids, and the row would be
    answered instead of refused. Such rows share a batch with rows of the same differences alone.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self._tensors = [one for one in spec.tensors.values() if one.buckets]
        self._brought = [one for one in spec.inputs if one.length_axis is not None]

    def __bool__(self) -> bool:
        return bool(self._tensors) or len(self._brought) > 1

    def codes(self, rows: RowTensors, names: Sequence[str]) -> npt.NDArray[np.int64] | None:
        """A number per row, (n,), the same for rows that may share a batch; None where all may.

        Rows of which a tensor is not known yet have a bucket of their own for it.
        """
        found: npt.NDArray[np.int64] | None = None
        lengths = {
            tensor.name: _lengths(rows.columns[tensor.name], tensor)
            for tensor in (*self._tensors, *self._brought)
            if tensor.name in names and tensor.name in rows.columns
        }
        for tensor in self._tensors:
            if tensor.name in lengths:
                own = lengths[tensor.name]
                places = np.where(own < 0, 0, 1 + np.searchsorted(tensor.buckets, own))
                found = places if found is None else found * (len(tensor.buckets) + 2) + places
        brought = [lengths[one.name] for one in self._brought if one.name in lengths]
        for number, other in enumerate(brought[1:]):
            if (differs := other - brought[0]).any():
                found = (0 if found is None else found) + differs * (_SPREAD + number)
        return found


def _lengths(column: Rows, tensor: RowTensor) -> npt.NDArray[np.int64]:
    """Of n rows, int64 (n,); -1 for one that is not known yet."""
    axis = tensor.length_axis
    assert axis is not None, "only lengths that vary are asked for"
    return np.array([-1 if row is None else row.shape[axis] for row in column], np.int64)


class InputBuffer:
    """The inputs of deferred rows by slot: the only copies that the runtime makes of requests."""

    def __init__(self, spec: CascadeSpec) -> None:
        self._array: Rows | None = None
        self._columns: dict[str, Rows] = {}
        self._sizes_bytes: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        if spec.has_one_tensor:
            self._array = np.zeros((0, *spec.input.dims), spec.input.numpy_dtype)
        self._buckets = Buckets(spec)
        # By stage after the first: which tensors it reads, and the group of each slot's row.
        self._reads = [
            sorted({name for member in stage.members for name in spec.tensors_of(member).values()})
            for stage in spec.stages
        ]
        self._groups = [np.zeros(0, np.int64) for _ in spec.stages] if self._buckets else []
        self.bytes = 0  # held, where rows differ in size

    def __len__(self) -> int:
        return len(self._sizes_bytes if self._array is None else self._array)

    def grow(self, capacity: int) -> None:
        """Makes room for more slots."""
        more = capacity - len(self)
        if self._array is not None:
            self._array = np.pad(self._array, [(0, more), *[(0, 0)] * (self._array.ndim - 1)])
            return
        self._sizes_bytes = np.pad(self._sizes_bytes, (0, more))
        self._groups = [np.pad(group, (0, more)) for group in self._groups]
        self._columns = {name: _grown(column, more) for name, column in self._columns.items()}

    def put(self, slots: Index, rows: AnyRows) -> None:
        """Keeps copies of rows in slots."""
        if self._array is not None:
            self._array[slots] = rows
            return
        assert isinstance(rows, RowTensors), "rows of several tensors"
        kept = rows.copy()
        for name, column in kept.columns.items():
            if name not in self._columns:
                empty = np.empty((len(self._sizes_bytes), *column.shape[1:]), column.dtype)
                self._columns[name] = empty
            self._columns[name][slots] = column
        for name in set(self._columns) - set(kept.columns):  # derived for the rows that had these slots before
            self._columns[name][slots] = None
        self.bytes -= int(self._sizes_bytes[slots].sum())
        self._sizes_bytes[slots] = kept.sizes_bytes()
        self.bytes += int(self._sizes_bytes[slots].sum())
        for reads, group in zip(self._reads, self._groups, strict=False):
            codes = self._buckets.codes(kept, reads)
            group[slots] = 0 if codes is None else codes

    def groups(self, stage: int) -> npt.NDArray[np.int64] | None:
        """By slot, a number that rows have in common which may share a stage's batch; None where all may."""
        return self._groups[stage] if self._groups else None

    def take(self, slots: Index) -> AnyRows:
        """Copies of the rows in slots; texts and rows of their own lengths are the same objects."""
        if self._array is not None:
            return self._array[slots]
        return RowTensors({name: column[slots] for name, column in self._columns.items()})

    def forget(self, is_free: npt.NDArray[np.bool_]) -> None:
        """Lets go of rows of different sizes whose slots, bool (capacity,), are free."""
        gone = (is_free[: len(self._sizes_bytes)] & (self._sizes_bytes > 0)).nonzero()[0]
        if len(gone):
            self.bytes -= int(self._sizes_bytes[gone].sum())
            self._sizes_bytes[gone] = 0
            for column in self._columns.values():
                if column.dtype == object:
                    column[gone] = None


def _grown(column: Rows, more: int) -> Rows:
    made = np.empty((len(column) + more, *column.shape[1:]), column.dtype)
    made[: len(column)] = column
    return made
