"""Which columns of a table make which tensors of a model, and rows from the cells of those columns."""

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.errors import DataError, shown
from orchestrator.rows.blocks import ColumnNames, RefusedRow, RowBlock, Rows
from orchestrator.spec.rows import AnyRows, c_string_fault, numpy_dtype, stacked
from orchestrator.spec.served_model import ModelInfo, TensorInfo

# Names of columns with text and with rows that are looked for where the caller names none.
USUAL_TEXT = ("text", "sentence")
USUAL_ROWS = ("image", "images", "rows", "row")
# Longer text is no row but a file, or a quote that does not end.
MOST_TEXT_BYTES = 8 << 20
# Columns that a note lists.
LISTED_COLUMNS = 50
# Characters of numbers as most are written.
_PLAIN = re.compile(r"[-+.0-9eE]+")
# What a table holds in one cell; one that could not be read is why.
Cell = Any


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """What a row must become.

    Args:
        dtype: the model's, object for text.
        dims: with -1 where the size is free.
        missing_is_nan: whether a number that is not there is NaN, instead of a fault of its row.
    """

    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    missing_is_nan: bool = False
    is_c_string: bool = False  # as in `TensorInfo`

    @property
    def values(self) -> int:
        """Numbers in one row; DataError where a size is free, so that flat numbers have no shape."""
        if -1 in self.dims:
            got = f"a model that takes {list(self.dims)}"
            raise DataError("rows as flat numbers", got=got, expected="fixed sizes", fix="use .npy")
        return math.prod(self.dims)

    @property
    def is_text(self) -> bool:
        """Whether rows are text."""
        return self.dtype == np.dtype(object)


@dataclass(frozen=True, kw_only=True)
class TensorColumns:
    """The columns that one tensor is made of: one of text or of lists, or one for each of its numbers."""

    tensor: str
    form: RowForm
    columns: tuple[str, ...]

    def row(self, cells: Sequence[Cell]) -> Rows:
        """One row (*dims) of the cells of the columns; DataError where they do not make one."""
        plain = _plain_numbers(cells, self.form.dtype)
        if plain is not None:
            return plain.reshape(self.form.dims)
        if self.form.missing_is_nan and (len(self.columns) > 1 or self.form.dims == (1,)):
            cells = [math.nan if _is_missing(cell) else cell for cell in cells]
        for name, cell in zip(self.columns, cells, strict=True):
            if cell is None:
                raise DataError(name, got="null", expected="a value in every row", fix=_missing_fix(self.form))
        if self.form.is_text:
            text = _text(self.columns[0], cells[0])
            if self.form.is_c_string and (fault := c_string_fault(self.columns[0], text)):
                raise DataError(fault.what, got=fault.got, expected=fault.expected)
            return np.array([text], object)
        if isinstance(cells[0], list):
            return _listed(self.columns[0], cells[0], self.form)
        numbers = [_number(name, cell, self.form) for name, cell in zip(self.columns, cells, strict=True)]
        # A scalar for a tensor of one number, or one column for each number.
        return np.array(numbers, self.form.dtype).reshape(self.form.dims)


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, CsvText) and not cell.strip())


def _missing_fix(form: RowForm) -> str | None:
    """What to do about a missing number; None where the dtype has no NaN."""
    return "see `missing_as_nan`" if form.dtype.kind == "f" else None


def form_of(tensor: TensorInfo, model: str, columns: ColumnNames) -> RowForm:
    """The form of a tensor's rows in a table; InputError where numpy has no such dtype."""
    dtype = numpy_dtype(tensor, f"input {tensor.name} of model {model}")
    missing_is_nan = columns.missing_as_nan and dtype.kind == "f"
    return RowForm(
        dtype=dtype, dims=tensor.shape[1:], missing_is_nan=missing_is_nan, is_c_string=tensor.is_c_string
    )


def tensor_columns(
    what: str, info: ModelInfo, columns: ColumnNames, names: Sequence[str]
) -> tuple[TensorColumns, ...]:
    """The columns of a table for each tensor of a model.

    `columns` are those of its only tensor of numbers, `text` is as in `text_columns`. Another tensor is the column
    of its name; that of a model with one input is `column`, else one of the usual names, else all that are left.

    Raises DataError where there are no such columns, or the model has no such tensor.
    """
    given: dict[str, tuple[str, ...]] = {
        tensor: (column,) for tensor, column in text_columns(info, columns, names).items()
    }
    given |= _number_columns(what, info, columns, names)
    return tuple(
        TensorColumns(
            tensor=tensor.name,
            form=form_of(tensor, info.name, columns),
            columns=given.get(tensor.name) or _found(what, info, tensor, columns, names),
        )
        for tensor in info.inputs
    )


def order_notes(tensors: Sequence[TensorColumns], columns: ColumnNames) -> tuple[str, ...]:
    """Which columns make a tensor, in which order, where the caller did not say so."""
    return tuple(
        f"input {one.tensor} is {', '.join(one.columns[:LISTED_COLUMNS])}"
        f"{', ...' if len(one.columns) > LISTED_COLUMNS else ''}, in this order; `record.columns` names another"
        for one in tensors
        if len(one.columns) > 1 and one.columns not in (columns.columns, columns.trained)
    )


def text_columns(info: ModelInfo, columns: ColumnNames, names: Sequence[str]) -> dict[str, str]:
    """Input of text -> the column, or array, that the caller named for it, of those that a file has.

    Raises DataError where the model has no such input, or several and the caller did not say which.
    """
    texts = [tensor.name for tensor in info.inputs if tensor.is_text]
    named = columns.texts(names)
    if "" in named and len(texts) == 1:
        named = {texts[0]: named[""]}
    if not set(named) <= set(texts):
        pairs = ",".join(f"{name}=COLUMN" for name in texts)
        fix = f"give `text` as {pairs}" if texts else "leave out `text`"
        others = ", ".join(name for name in named if name and name not in texts)
        raise _not_for(info, f"inputs of text {others}" if others else "one input of text", fix)
    return named


def _number_columns(
    what: str, info: ModelInfo, columns: ColumnNames, names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The only input of numbers -> the columns that the caller named for it, or else those it was fitted on."""
    numbers = [tensor for tensor in info.inputs if not tensor.is_text]
    if columns.columns and len(numbers) != 1:
        fix = "name columns as the inputs are named" if numbers else "leave out `columns`"
        raise _not_for(info, "one input of numbers", fix)
    trained = columns.trained
    if columns.columns:
        if columns.columns != trained and set(columns.columns) == set(trained):
            raise _other_columns(what, columns.columns, trained, fix="name them so, or leave out `columns`")
        return {numbers[0].name: columns.columns}
    is_for_one = len(info.inputs) == 1 and not info.inputs[0].is_text and columns.column is None
    if not is_for_one or math.prod(numbers[0].shape[1:]) != len(trained):
        return {}
    if set(trained) <= set(names):
        return {numbers[0].name: trained}
    if len(columns.others(names)) > 1 and not {numbers[0].name, *USUAL_ROWS} & set(names):
        raise _other_columns(what, names, trained, fix="see `columns`")
    return {}


def _other_columns(what: str, got: Sequence[str], trained: Sequence[str], *, fix: str) -> DataError:
    expected = f"those it was fitted on, in this order: {','.join(trained[:LISTED_COLUMNS])}"
    return DataError(what, got=f"columns {','.join(got[:LISTED_COLUMNS])}", expected=expected, fix=fix)


def _not_for(info: ModelInfo, expected: str, fix: str) -> DataError:
    got = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in info.inputs)
    return DataError(f"model {info.name}", got=f"inputs {got}", expected=expected, fix=fix)


def _found(
    what: str, info: ModelInfo, tensor: TensorInfo, columns: ColumnNames, names: Sequence[str]
) -> tuple[str, ...]:
    """The columns of a tensor for which the caller named none."""
    alone = len(info.inputs) == 1
    if alone and columns.column is not None:
        return (columns.column,)
    # One text must not be read for another.
    one_text = sum(one.is_text for one in info.inputs) == 1
    known = (USUAL_TEXT if one_text else ()) if tensor.is_text else USUAL_ROWS if alone else ()
    for usual in (tensor.name, *known):
        if usual in names:
            return (usual,)
    others = tuple(columns.others(names)) if alone else ()
    size = 1 if tensor.is_text else math.prod(tensor.shape[1:])
    if len(others) == 1 or (others and len(others) == size):
        return others
    got = f"columns {', '.join(names) or 'none'}"
    if not alone:
        expected = f"a column {tensor.name}, as the model's input is named"
        fix = (
            "name its column with `text`" if tensor.is_text else "name a model that makes it with `record.derive`"
        )
        raise DataError(what, got=got, expected=expected, fix=fix)
    if tensor.is_text:
        raise DataError(what, got=got, expected="a column of text", fix="see `text`")
    if len(tensor.shape) != 2:
        raise DataError(what, got=got, expected="a column image", fix="see `column`")
    expected = f"{size} columns of numbers" if size > 0 else "a column of lists of numbers"
    raise DataError(what, got=got, expected=expected, fix="see `columns` and `column`")


def _text(name: str, cell: Cell) -> bytes:
    """Text as UTF-8; bytes stay as they are."""
    if isinstance(cell, bytes):
        data = cell
    elif isinstance(cell, str):
        try:
            data = cell.encode()
        except UnicodeEncodeError as error:
            # Surrogates alone, as JSON may have them, or stand for a byte that could not be decoded.
            half = ord(cell[error.start])
            got = f"byte 0x{half - 0xDC00:02x}" if 0xDC80 <= half <= 0xDCFF else f"half a character (U+{half:04X})"
            raise DataError(name, got=f"{got} after {error.start} characters", expected="UTF-8") from error
    else:
        raise DataError(name, got=shown(cell), expected="text")
    if len(data) > MOST_TEXT_BYTES:
        raise DataError(name, got=f"{len(data):,} bytes of text", expected=f"at most {MOST_TEXT_BYTES:,}")
    return data


def _plain_numbers(cells: Sequence[Cell], dtype: np.dtype[Any]) -> Rows | None:
    """Cells that are all finite numbers as most are written, for a floating-point dtype; None for any others.

    What `_number` makes of the same cells, in less time.
    """
    kinds = set(map(type, cells)) if dtype.kind == "f" else set()
    if not (kinds and (kinds <= {int, float} or (kinds == {CsvText} and _PLAIN.fullmatch("".join(cells))))):
        return None
    try:
        numbers = np.array(list(map(float, cells)))
    except (ValueError, OverflowError):
        return None
    # Rounding to the dtype, and what it does not hold, is left to the general way.
    return numbers.astype(dtype) if (np.abs(numbers) <= np.finfo(dtype).max).all() else None


def _number(name: str, cell: Cell, form: RowForm) -> float | int:
    """A number that the dtype holds, from a number, or from text where a table has nothing else."""
    dtype = form.dtype
    if isinstance(cell, CsvText):
        cell = cell.number()
    if isinstance(cell, bool) and dtype.kind != "b":
        cell = int(cell)
    if not isinstance(cell, (bool, int, float)):
        expected = f"a number that {dtype} holds" if dtype.kind == "f" else "a number"
        fix = _missing_fix(form) if cell is None or cell == "" else None
        raise DataError(name, got="null" if cell is None else shown(cell), expected=expected, fix=fix)
    if dtype.kind == "f":
        if not _is_held(cell, dtype):
            raise DataError(name, got=shown(cell), expected=f"a number that {dtype} holds")
        return float(cell)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if cell != cell or cell in (math.inf, -math.inf) or int(cell) != cell or not low <= cell <= high:
        raise DataError(name, got=shown(cell), expected=f"a whole number from {low} to {high} ({dtype})")
    return int(cell)


def _is_held(number: float | int, dtype: np.dtype[Any]) -> bool:
    """Whether a floating-point dtype has a number: NaN, infinity, or one that does not become infinite."""
    if not float(np.finfo(dtype).max) < abs(number) < math.inf:
        return True
    # Numbers between the largest one and half a step above are rounded to it.
    with np.errstate(over="ignore"), suppress(OverflowError):
        return bool(np.isfinite(dtype.type(float(number))))
    return False


class CsvText(str):
    """A cell of CSV, in which numbers are text as all else."""

    __slots__ = ()

    def number(self) -> "float | int | str":
        """The number that it says, itself where it says none."""
        text = self.strip()
        words = {"true": True, "false": False}
        if text.lower() in words:
            return words[text.lower()]
        # Python would take 1_000, and digits of every script.
        if "_" in text or not text.isascii():
            return str(self)
        for read in (int, float):
            try:
                number = read(text)
            except ValueError:
                continue
            # Written out, and too large for any of our dtypes, unlike infinity itself.
            return str(self) if number in (math.inf, -math.inf) and "n" not in text.lower() else number
        return str(self)


def _listed(name: str, cell: list[Any], form: RowForm) -> Rows:
    """A row from a list of numbers, flat or nested as the dims say."""
    leaves, shape = _leaves(name, cell)
    leaves = [math.nan if leaf is None and form.missing_is_nan else leaf for leaf in leaves]
    values = np.array([_number(name, leaf, form) for leaf in leaves], form.dtype)
    fits = len(shape) == len(form.dims) and all(d in (s, -1) for s, d in zip(shape, form.dims, strict=True))
    if fits:
        return values.reshape(shape)
    if len(shape) == 1 and -1 not in form.dims and len(leaves) == form.values:
        return values.reshape(form.dims)
    raise DataError(name, got=f"a list of shape {list(shape)}", expected=f"the model's {list(form.dims)}")


def _leaves(name: str, cell: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The numbers of a nested list, and its shape; DataError where its parts differ in shape."""
    level, shape = [cell], []
    while level and all(isinstance(part, list) for part in level):
        sizes = {len(part) for part in level}
        if len(sizes) > 1:
            raise DataError(name, got=f"lists of {min(sizes)} and {max(sizes)} values", expected="equal ones")
        shape.append(sizes.pop())
        level = [value for part in level for value in part]
    return level, tuple(shape)


def block_of_cells(ids: Rows, cells: Iterable[Any], tensors: Sequence[TensorColumns]) -> RowBlock:
    """A block of rows from ids (n,) and n rows of cells, those of the tensors one after another.

    A row of cells may be the DataError why it could not be read.
    """
    good, made, refused = [], [], []
    for index, row in enumerate(cells):
        try:
            made.append(_row(row, tensors))
            good.append(index)
        except DataError as error:
            # Readers that know the place of a row in its file have it with the cells; an error names it itself.
            where = "" if isinstance(row, DataError) else getattr(row, "what", "row")
            said = DataError(
                f"{where} {error.what}".strip(), got=error.got, expected=error.expected, fix=error.fix
            )
            refused.append(RefusedRow(id=ids[index].item(), reason=str(said)))
    arrays = {one.tensor: stacked([row[place] for row in made]) for place, one in enumerate(tensors)}
    rows: AnyRows = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    return RowBlock(ids=ids[good], rows=rows, refused=tuple(refused))


def _row(cells: Any, tensors: Sequence[TensorColumns]) -> list[Rows]:
    if isinstance(cells, DataError):
        raise cells
    rows, start = [], 0
    for one in tensors:
        stop = start + len(one.columns)
        rows.append(one.row(cells[start:stop]))
        start = stop
    return rows
