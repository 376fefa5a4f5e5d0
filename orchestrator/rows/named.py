"""A few rows as a person names or writes them: files, digits, sentences, numbers, JSON, lines of stdin."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.errors import DataError
from orchestrator.rows.arrays import mapped_npy
from orchestrator.rows.blocks import ColumnNames, RowBlock, check_regular, check_rows_of
from orchestrator.rows.cells import CsvText, TensorColumns, block_of_cells, form_of, order_notes, tensor_columns
from orchestrator.rows.digits import digit_image
from orchestrator.rows.pictures import PICTURE_ENDINGS, ReadPicture, picture_bytes
from orchestrator.rows.tables import TABLE_ENDINGS, json_record, table_rows
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import ModelInfo, input_tensor

# Letters of a row's name in tables and errors; text may have any number.
NAME = 60
_NUMBERS = re.compile(r"\s*[-+\d.][^,]*(,[^,]*)*")
STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class NamedRow:
    """One row (1, *dims) to ask about, and its label where that is known; rows of one file are numbered.

    What a person wrote instead of a name of a file is `words`, of which the name is the begin; `notes` say how it
    was read.
    """

    name: str
    row: AnyRows
    words: str | None = None
    truth: int | None = None
    notes: tuple[str, ...] = ()


def named_rows(
    sources: Sequence[str], info: ModelInfo, *, read_picture: ReadPicture, columns: ColumnNames | None = None
) -> list[NamedRow]:
    """A few rows, in order, checked against the model.

    Args:
        sources: "digit:INDEX", paths of .npy files, pictures and tables; text for a model of text, numbers with
            commas for one of a list of numbers, a JSON object for one of several inputs; "-" for a row in each
            line of stdin.
        info: the model.
        read_picture: turns an encoded picture into one row.
        columns: which columns of a table hold what; None for the usual names.

    Raises DataError where something is missing or cannot be read, InputError for rows that do not fit the model.
    """
    columns = columns or ColumnNames()
    rows = []
    for source in sources:
        for one in _lines() if source == STDIN else [source]:
            # A line of words is no argument that may name a file.
            if _is_file(one, info) and not (source == STDIN and _takes_words(info)):
                rows += _rows_of_file(Path(one), info, columns)
            else:
                rows.append(_named_row(one, info, read_picture, columns))
    if not rows:
        raise DataError("stdin", got="no lines", expected="a row in each line")
    for named in rows:
        check_rows_of(f"{named.name}:", info, named.row)
    return rows


def _lines() -> Iterator[str]:
    """The lines of stdin without their ends; bytes that are no UTF-8 as halves of characters."""
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


def _named_row(source: str, info: ModelInfo, read_picture: ReadPicture, columns: ColumnNames) -> NamedRow:
    if len(info.inputs) != 1:
        return _row_of_json(source, info, columns)
    if info.inputs[0].is_text:
        return _row_of_cells(source, [source], info, columns)
    path = Path(source)
    if path.suffix.lower() in PICTURE_ENDINGS:
        if not _is_there(source):
            raise DataError(source, got="no such file")
        return NamedRow(name=source, row=read_picture(picture_bytes(path, source), source)[None])
    if source.startswith("digit:"):
        return _digit(source)
    if len(input_tensor(info).shape) == 2 and _NUMBERS.fullmatch(source):
        return _row_of_cells(source, [CsvText(number) for number in source.split(",")], info, columns)
    if source.lstrip().startswith("{"):
        return _row_of_json(source, info, columns)
    expected = "digit:INDEX, .npy, .png or .jpg, another picture, a table, numbers with commas, or a JSON object"
    raise DataError(source, got="an unknown kind of row", expected=expected)


def _digit(source: str) -> NamedRow:
    text = source.removeprefix("digit:")
    if not text.isdecimal():
        raise DataError(source, got=repr(text), expected="a whole number, as in digit:12")
    image, label = digit_image(int(text))
    return NamedRow(name=source, row=image[None], truth=label)


def _short(words: str) -> str:
    """Words as they stand in a table or an error: cut short, line ends escaped."""
    if words.strip() and len(words) <= NAME and words.isprintable():
        return words
    if not words.strip():
        return repr(words[:NAME])
    return repr(words[:NAME])[1:-1] + "..." * (len(words) > NAME)


def _is_there(source: str) -> bool:
    try:
        return Path(source).exists()
    except OSError:
        # Longer than the name of a file may be.
        return False


def _takes_words(info: ModelInfo) -> bool:
    return len(info.inputs) > 1 or info.inputs[0].is_text


def _is_file(source: str, info: ModelInfo) -> bool:
    """Whether an argument names a file: a sentence may end as one does."""
    if Path(source).suffix.lower() not in (*TABLE_ENDINGS, ".npy"):
        return False
    return not _takes_words(info) or not re.search(r"\s", source) or _is_there(source)


def _rows_of_file(path: Path, info: ModelInfo, columns: ColumnNames) -> list[NamedRow]:
    if not path.exists():
        fix = 'give text that ends like a file on stdin, with "-"' if info.inputs[0].is_text else None
        raise DataError(f"{path}", got="no such file", fix=fix)
    if path.suffix.lower() != ".npy":
        table = table_rows(path, info, columns=columns)
        read = [_only_rows(block, f"{path}") for block in table.blocks(1)]
        return [NamedRow(name=f"{path}[{index}]", row=rows, notes=table.notes) for index, rows in enumerate(read)]
    check_regular(path, f"{path}")
    array, tensor = mapped_npy(path), input_tensor(info)
    if array.ndim == len(tensor.shape) - 1 and not tensor.is_text:  # one row without a batch axis
        return [NamedRow(name=f"{path}", row=array[None])]
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{path}", got=f"shape {list(array.shape)}", expected="at least one row")
    return [NamedRow(name=f"{path}[{index}]", row=array[index : index + 1]) for index in range(len(array))]


def _only_rows(block: RowBlock, what: str) -> AnyRows:
    """The rows of a block; DataError where one of them was refused."""
    for one in block.refused:
        raise DataError(what, got=f"a row that cannot be read ({one.reason})")
    return block.rows


def _row_of_cells(words: str, cells: list[str], info: ModelInfo, columns: ColumnNames) -> NamedRow:
    tensor = input_tensor(info)
    size = tensor.shape[1] if len(tensor.shape) == 2 else 1
    if not tensor.is_text and size not in (len(cells), -1):
        got, expected = f"{len(cells)} numbers", f"{size}, as model {info.name} takes"
        raise DataError(_short(words), got=got, expected=expected)
    names = tuple(f"number {place}" for place in range(len(cells))) if not tensor.is_text else ("text",)
    form = form_of(tensor, info.name, columns)
    row = TensorColumns(tensor=tensor.name, form=form, columns=names).row(cells)
    return NamedRow(name=_short(words), words=words, row=row[None])


def _row_of_json(source: str, info: ModelInfo, columns: ColumnNames) -> NamedRow:
    """A row as a line of a table of JSON has it."""
    names = ", ".join(tensor.name for tensor in info.inputs)
    what = _short(source)
    record = json_record(source.encode(errors="surrogateescape"))
    if isinstance(record, DataError):
        expected = f"a JSON object with {names}, a table, or - for such lines of stdin"
        raise DataError(what, got=record.got, expected=expected)
    tensors = tensor_columns(what, info, columns.found_in(what, "keys", list(record)), list(record))
    cells = [record[name] for one in tensors for name in one.columns]
    block = block_of_cells(np.arange(1), [cells], tensors)
    notes = order_notes(tensors, columns)
    return NamedRow(name=what, words=source, row=_only_rows(block, what), notes=notes)
