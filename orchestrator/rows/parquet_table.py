"""Parquet as people have it: a file or a folder of them, however its columns are encoded.

Imported only for Parquet. Files are read through a small buffer and decoded a few rows at a time, so a row group
may have any size. Memory holds about three pages of each column that is read; pyarrow writes up to 1,024 rows to a
page, however large they are (docs/parquet-memory.md has figures). The scanner of pyarrow.dataset, even without
reading ahead, takes twice the memory for the same file, so it only tells what the names of folders say.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DataError
from orchestrator.rows.blocks import check_regular, is_hidden
from orchestrator.spec.answer import normal_form

# Without a buffer pyarrow reads a column of a whole row group in one piece.
BUFFER_BYTES = 1 << 16
# Rows that are decoded at once at most; pictures are read in smaller batches.
BATCH_ROWS = 1 << 16
# What pyarrow raises for files and values that it cannot use.
FOREIGN = (OSError, pa.ArrowException)
UUID = "extension<arrow.uuid>"
# By name, since older releases of pyarrow do not have them.
_VIEWS = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}


def plain_type(kind: Any) -> Any:
    """The type of the same values without dictionaries, views and extensions; a UUID stays one."""
    name = str(kind)
    if name in _VIEWS:
        return _VIEWS[name]
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and name != UUID:
        return plain_type(kind.storage_type)
    if pa.types.is_struct(kind):
        fields = [pa.field(field.name, plain_type(field.type)) for field in kind]
        is_plain = all(new.type == old.type for new, old in zip(fields, kind, strict=True))
        return kind if is_plain else pa.struct(fields)
    is_view = name.startswith(("list_view<", "large_list_view<"))
    if not is_view and not name.startswith(("list<", "large_list<", "fixed_size_list<")):
        return kind
    value = plain_type(kind.value_type)
    if value == kind.value_type and not is_view:
        return kind
    return pa.list_(value, kind.list_size) if pa.types.is_fixed_size_list(kind) else pa.large_list(value)


def plain(column: Any) -> Any:
    """A column as an array of its plain type."""
    if isinstance(column, pa.ExtensionArray) and str(column.type) != UUID:
        column = column.storage
    kind = plain_type(column.type)
    return column if column.type == kind else column.cast(kind)


def words_or_numbers(what: str, column: Any, *, each: str) -> npt.NDArray[Any]:
    """A plain column of ids or labels as a numpy array: text, or numbers.

    Text may lie in it as bytes, and whole numbers as decimals; `what` and `each` name them in errors. Raises
    DataError for nulls, bytes that are no text, decimals beyond 64 bits, or values that are neither.
    """
    if column.null_count:
        raise DataError(what, got=f"{column.null_count} nulls", expected=f"{each} in every row")
    kind = column.type
    if str(kind) == UUID:
        return np.array([str(value) for value in column.to_pylist()], np.str_)
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            column = column.cast(pa.large_string())
        if (pa.types.is_decimal(kind) and kind.scale == 0) or pa.types.is_uint64(kind):
            column = column.cast(pa.int64())
        if str(column.type) in ("string", "large_string"):
            return np.array(column.to_pylist(), np.str_)
    except (*FOREIGN, UnicodeDecodeError) as error:
        raise DataError(what, got=f"{kind} ({error})", expected="whole numbers of 64 bits, or text") from error
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(what, got=f"{kind}", expected=f"whole numbers or text, {each} in every row")
    return numpy_from(column)


def numpy_from(column: Any) -> npt.NDArray[Any]:
    """An Arrow array as a numpy array."""
    return np.asarray(column.to_numpy(zero_copy_only=False))


@dataclass(frozen=True, kw_only=True)
class ParquetPart:
    """One file of a table.

    Args:
        schema: its columns, in plain types.
        metadata: its footer.
        keys: values of the columns that are names of folders, as in `year=2024/`; None for a missing one.
    """

    path: Path
    schema: Any
    group_rows: tuple[int, ...]
    metadata: Any
    keys: Mapping[str, object]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """All rows of a file or folder.

    Args:
        parts: its files, in order.
        schema: columns of all files together, in plain types, and those that are names of folders.
        left_out: files of the folder that are no Parquet by their ending.
    """

    path: Path
    parts: tuple[ParquetPart, ...]
    schema: Any
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(part.rows for part in self.parts)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the columns that are names of folders."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.keys))

    def type_of(self, name: str) -> Any:
        """Arrow type of a column; DataError where it is there more than once."""
        if self.schema.names.count(name) > 1:
            raise DataError(f"{self.path}", got=f"several columns {name}", expected="one", fix="rename the others")
        return self.schema.field(name).type

    def row_bytes(self, name: str) -> int:
        """Bytes of a column in a usual row, without compression."""
        total = 0
        for about in (part.metadata for part in self.parts):
            leaves = range(about.num_columns)
            own = [leaf for leaf in leaves if about.schema.column(leaf).path.split(".")[0] == name]
            groups = map(about.row_group, range(about.num_row_groups))
            total += sum(group.column(leaf).total_uncompressed_size for group in groups for leaf in own)
        return int(total) // self.rows

    def whole(self, name: str) -> Any:
        """One small column; DataError where it cannot be read."""
        return pa.concat_arrays([batch.column(0) for batch in self.batches([name], size=BATCH_ROWS)])

    def batches(
        self, names: Sequence[str], *, size: int, wanted: npt.NDArray[np.int64] | None = None
    ) -> Iterator[Any]:
        """Columns as record batches of at most `size` rows, in order; one that a file lacks is null.

        Row groups without any of the rows wanted, which ascend, are not read; None wants all. Raises DataError
        where a file cannot be read.
        """
        schema = pa.schema([pa.field(name, self.type_of(name)) for name in dict.fromkeys(names)])
        start = 0
        for part in self.parts:
            if wanted is None or _any_within(wanted, start, start + part.rows):
                yield from _batches(part, schema, size=size, start=start, wanted=wanted)
            start += part.rows


def _batches(part: ParquetPart, schema: Any, *, size: int, start: int, wanted: Any) -> Iterator[Any]:
    """Record batches of one file, whose first row has the number `start`."""
    inside = [name for name in schema.names if name in part.schema.names]
    at = start
    try:
        with _opened(part.path) if inside else contextlib.nullcontext() as file:
            for group, rows in enumerate(part.group_rows):
                if wanted is not None and not _any_within(wanted, at, at + rows):
                    at += rows
                    continue
                for batch in _stored(part, file, group, inside, schema=schema, size=size):
                    stop = at + batch.num_rows
                    if wanted is None:
                        yield batch
                    elif _any_within(wanted, at, stop):
                        low, high = np.searchsorted(wanted, (at, stop))
                        yield batch.take(pa.array(wanted[low:high] - at))
                    at = stop
    except FOREIGN as error:
        raise DataError(f"{part.path}", got=f"row {at} or one after it cannot be read ({error})") from error


def _any_within(wanted: npt.NDArray[np.int64], first: int, stop: int) -> bool:
    return bool(np.searchsorted(wanted, first) < np.searchsorted(wanted, stop))


def _stored(
    part: ParquetPart, file: Any, group: int, inside: list[str], *, schema: Any, size: int
) -> Iterator[Any]:
    """Record batches of one row group, in the plain types of the whole table."""
    if not inside:
        yield _filled(part, {}, schema, part.group_rows[group])
        return
    expected = left = part.group_rows[group]
    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=inside, use_threads=False):
        left -= batch.num_rows
        yield _filled(part, dict(zip(batch.schema.names, batch.columns, strict=True)), schema, batch.num_rows)
    if left:
        # Answers would otherwise be fewer than rows, without a word.
        raise pa.ArrowInvalid(f"row group {group} holds {expected - left} rows, expected {expected} by its header")


def _filled(part: ParquetPart, columns: dict[str, Any], schema: Any, rows: int) -> Any:
    """A record batch of the stored columns, and of constants for those that the file does not have."""
    arrays = []
    for field in schema:
        column = columns.get(field.name)
        if column is None:
            value = pa.scalar(part.keys.get(field.name), field.type)
            arrays.append(pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, field.type))
        else:
            arrays.append(column if column.type == field.type else plain(column).cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _opened(path: Path) -> Any:
    return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


def parquet_table(path: Path, wanted: Sequence[Path] | None = None) -> ParquetTable:
    """A file of rows, or a folder of files with the same columns; of a folder only the files wanted.

    Folders named `key=value` are columns, as Hive, Spark and pandas write them. Files and folders whose names
    begin with a dot or an underscore are passed over. Raises DataError where there is no Parquet, no row, or files
    whose columns do not go together.
    """
    files, left_out = _files(path) if path.is_dir() else ([path], [])
    if wanted is not None:
        files, left_out = list(wanted), []
    keys = _keys(path, files)
    parts = tuple(_part(file, keys.get(file, {})) for file in files)
    if not any(part.rows for part in parts):
        raise DataError(f"{path}", got="no rows", expected="at least one")
    try:
        schema = parts[0].schema
        if len(parts) > 1:
            schema = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")
        for name in dict.fromkeys(name for part in parts for name in part.keys if name not in schema.names):
            values = [part.keys.get(name) for part in parts]
            schema = schema.append(pa.field(name, pa.array(values).type))
    except FOREIGN as error:
        raise DataError(f"{path}", got=f"files whose columns do not go together ({error})") from error
    return ParquetTable(path=path, parts=parts, schema=schema, left_out=tuple(left_out))


def _files(root: Path) -> tuple[list[Path], list[str]]:
    """Parquet files of a folder in order, and the names of the others."""
    files, left_out = [], []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            if Path(name).suffix.lower() == ".parquet" and not is_hidden(name):
                files.append(Path(place, name))
            elif not is_hidden(name):
                left_out.append(Path(place, name).relative_to(root).as_posix())
    return sorted(files, key=lambda file: ([normal_form(part) for part in file.parts], file)), left_out


def _keys(root: Path, files: Sequence[Path]) -> dict[Path, Mapping[str, object]]:
    """What the names of folders say of each file, with whole numbers as such."""
    if not any("=" in part for file in files for part in file.relative_to(root).parent.parts):
        return {}
    # Slow to import, and needed for such folders alone.
    import pyarrow.dataset as ds

    with _readable(root):
        paths, base = [str(file.absolute()) for file in files], str(root.absolute())
        dataset = ds.dataset(paths, format="parquet", partitioning="hive", partition_base_dir=base)
        found = [ds.get_partition_keys(one.partition_expression) for one in dataset.get_fragments()]
    names = dict.fromkeys(name for one in found for name in one)
    return {file: {name: one.get(name) for name in names} for file, one in zip(files, found, strict=True)}


def _part(path: Path, keys: Mapping[str, object]) -> ParquetPart:
    with _readable(path):
        check_regular(path, f"{path}")
        with _opened(path) as file:
            about = file.metadata
            rows = tuple(about.row_group(number).num_rows for number in range(about.num_row_groups))
            schema = pa.schema([pa.field(field.name, plain_type(field.type)) for field in file.schema_arrow])
            return ParquetPart(path=path, schema=schema, group_rows=rows, metadata=about, keys=keys)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FOREIGN as error:
        raise DataError(f"{path}", got=f"a file pyarrow cannot read ({error})", expected="Parquet") from error
    except UnicodeError as error:
        raise DataError(f"{str(path)!a}", got="a name that is not UTF-8", fix="rename it") from error
