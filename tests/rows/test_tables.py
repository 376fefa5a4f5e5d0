"""Text and numbers out of tables: CSV, TSV, JSON lines and Parquet, the same rows from each."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import CommitteeError, DataError
from orchestrator.rows.blocks import ColumnNames, RowBlock
from orchestrator.rows.cells import CsvText, RowForm, TensorColumns
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.opening import row_source, stored_rows
from orchestrator.spec.served_model import ModelInfo, TensorInfo

TEXT = TensorInfo(name="text", dtype="BYTES", shape=(-1, 1))
NUMBERS = TensorInfo(name="features", dtype="FP32", shape=(-1, 3))
NONE = ColumnNames()
# Whatever a file of text may hold; JSON has halves of characters, which a test of their own has.
ANY_TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from('\n\r\0",;\t\\\N{GRINNING FACE}')))


def model(*inputs: TensorInfo) -> ModelInfo:
    return ModelInfo(name="m", platform="p", versions=("1",), max_batch_size=8, inputs=inputs, outputs=())


def blocks(path: Path, *inputs: TensorInfo, columns: ColumnNames = NONE, size: int = 3) -> list[RowBlock]:
    rows = stored_rows(f"{path}", model(*inputs), columns=columns, read_picture=lambda data, what: np.zeros(0))
    return list(rows.blocks(size))


def values(path: Path, *inputs: TensorInfo, columns: ColumnNames = NONE) -> list:
    return [row for block in blocks(path, *inputs, columns=columns) for row in block.rows.tolist()]


def refusals(path: Path, *inputs: TensorInfo, columns: ColumnNames = NONE) -> dict:
    found = blocks(path, *inputs, columns=columns)
    return {one.id: one.reason for block in found for one in block.refused}


def write(path: Path, rows: list[dict]) -> Path:
    """The rows in the kind of table that the path's ending names."""
    names = list(rows[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
        return path
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        return path
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL)
    writer.writerow(names)
    writer.writerows([[row[name] for name in names] for row in rows])
    path.write_bytes(buffer.getvalue().encode())
    return path


NUMBER_TEXTS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.text("-+.0123456789eE", max_size=5), st.just("65519.9")
)


def row_of(cells: list[str], dtype: str) -> bytes | None:
    form = RowForm(dtype=np.dtype(dtype), dims=(len(cells),))
    names = tuple(f"c{place}" for place in range(len(cells)))
    try:
        return TensorColumns(tensor="x", form=form, columns=names).row([CsvText(cell) for cell in cells]).tobytes()
    except DataError:
        return None


@given(st.lists(NUMBER_TEXTS, min_size=1, max_size=3), st.sampled_from(["float16", "float32", "float64", "int64"]))
def test_numbers_read_a_row_at_a_time_are_those_read_one_by_one(cells: list[str], dtype: str) -> None:
    # Cells with spaces around numbers are read one by one.
    assert row_of(cells, dtype) == row_of([f" {cell}" for cell in cells], dtype)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=7))
def test_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, ending: str, texts: list[str]
) -> None:
    path = write(tmp_path_factory.mktemp("t") / f"in.{ending}", [{"text": text} for text in texts])
    assert values(path, TEXT) == [[text.encode()] for text in texts]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=5
    )
)
def test_columns_of_numbers_are_rows_in_the_order_named(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[tuple]
) -> None:
    path = tmp_path_factory.mktemp("t") / f"in.{ending}"
    write(path, [{"a": a, "id": place, "b": b, "c": c} for place, (a, b, c) in enumerate(rows)])
    assert values(path, NUMBERS, columns=ColumnNames(columns=("c", "a", "b"))) == [[c, a, b] for a, b, c in rows]
    assert values(path, NUMBERS) == [[*row] for row in rows]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_and_ids_go_with_the_rows_and_a_limit_picks_among_them(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"t{n}", "stars": ["bad", "good"][n % 2], "key": f"k{n}"} for n in range(10)]
    path = write(tmp_path / f"in.{ending}", rows)
    columns = ColumnNames(text="text", label_column="stars", id_column="key")
    classes = MemberClasses(count=2, names=("good", "bad"))
    read = row_source(f"{path}", model(TEXT), classes=classes, read_picture=lambda d, w: d, columns=columns)
    assert read.ids.tolist() == [f"k{n}" for n in range(10)]
    assert read.labels.numbers is not None
    assert read.labels.numbers.tolist() == [1, 0] * 5
    pieces = [piece.load() for piece in read.pieces(np.array([1, 4, 5, 9]), 1, 2)]
    assert [block.ids.tolist() for block in pieces] == [[1, 2], [3]]
    assert [row for block in pieces for row in block.rows.tolist()] == [[b"t4"], [b"t5"], [b"t9"]]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_come_in_the_order_that_the_model_was_fitted_on(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"in.{ending}", [{"c": 3.0, "id": 7, "a": 1.0, "b": 2.0, "label": 0}])
    trained = ColumnNames(trained=("a", "b", "c"))
    assert values(path, NUMBERS, columns=trained) == [[1, 2, 3]]
    assert stored_rows(path, model(NUMBERS), columns=trained, read_picture=lambda d, w: d).notes == ()
    with pytest.raises(
        DataError, match="got columns c,a,b, expected those it was fitted on, in this order: a,b,c"
    ):
        blocks(path, NUMBERS, columns=ColumnNames(trained=("a", "b", "c"), columns=("c", "a", "b")))
    with pytest.raises(DataError, match="in this order: a,b,d; see `columns`"):
        blocks(path, NUMBERS, columns=ColumnNames(trained=("a", "b", "d")))
    # Whoever names other columns knows what they are.
    named = ColumnNames(trained=("x", "y", "z"), columns=("c", "a", "b"))
    assert values(path, NUMBERS, columns=named) == [[3, 1, 2]]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "npz"])
def test_groups_go_with_the_rows_and_every_row_has_one(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"t{n}", "patient": f"p{n // 3}", "ward": n // 5} for n in range(10)]
    path = tmp_path / f"in.{ending}"
    if ending == "npz":
        np.savez(path, **{name: np.array([row[name] for row in rows]) for name in rows[0]})
    else:
        write(path, rows)

    def groups(name: str | None) -> list[Any] | None:
        columns = ColumnNames(text="text", group_column=name)
        how: dict[str, Any] = {"classes": MemberClasses(count=2), "read_picture": lambda d, w: d}
        read = row_source(f"{path}", model(TEXT), columns=columns, **how)
        return None if read.groups is None else read.groups.tolist()

    assert groups("patient") == [row["patient"] for row in rows]
    assert groups("ward") == [row["ward"] for row in rows]
    assert groups(None) is None
    with pytest.raises(DataError, match="expected clinic; see `group_column`"):
        groups("clinic")
    if ending in ("jsonl", "parquet"):
        write(path, [*rows, {"text": "t", "patient": None, "ward": 1}])
        with pytest.raises(DataError, match="expected a group in every row"):
            groups("patient")


def test_class_numbers_of_csv_are_numbers_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text,label\na,1\nb,\nc,0\n")
    read = row_source(f"{path}", model(TEXT), classes=MemberClasses(count=2), read_picture=lambda d, w: d)
    assert read.labels.numbers is not None
    assert read.labels.numbers.tolist() == [1, -1, 0]


UNREAD = [
    ("in.csv", "key,text,label\n{a},one,0\nshort\n{b},two,1\n{c},three,0\nlong,x,1,2\n"),
    ("in.tsv", "key\ttext\tlabel\n{a}\tone\t0\nshort\n{b}\ttwo\t1\n{c}\tthree\t0\nlong\tx\t1\t2\n"),
    (
        "in.jsonl",
        '{{"key": "{a}", "text": "one", "label": 0}}\n{{"key\n{{"key": "{b}", "text": "two", "label": 1}}\n'
        '{{"key": "{c}", "text": "three", "label": 0}}\n[1]\n',
    ),
]


@pytest.mark.parametrize(("name", "content"), UNREAD)
@pytest.mark.parametrize("keys", [("1", "-7", "30"), ("a", "b", "c")])
def test_rows_that_are_no_records_are_refused_alone_beside_ids_and_labels(
    tmp_path: Path, name: str, content: str, keys: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_text(content.format(**dict(zip("abc", keys, strict=True))))
    columns = ColumnNames(text="text", id_column="key", label_column="label")
    batch = blocks(path, TEXT, columns=ColumnNames(text="text", id_column="key", keep_columns=("label",)))
    assert [f"{one}" for block in batch for one in block.ids] == [*keys]
    assert [row for block in batch for row in block.rows.tolist()] == [[b"one"], [b"two"], [b"three"]]
    assert len({one.id for block in batch for one in block.refused} - {*keys}) == 2
    classes = MemberClasses(count=2)
    read = row_source(f"{path}", model(TEXT), classes=classes, read_picture=lambda d, w: d, columns=columns)
    assert read.labels.numbers is not None
    assert read.labels.numbers[[0, 2, 3]].tolist() == [0, 1, 0]
    # Not for want of a label: what is wrong with them is said when they are read.
    assert (read.labels.numbers >= 0).all()
    assert [f"{read.ids[place]}" for place in (0, 2, 3)] == [*keys]
    (piece,) = [piece.load() for piece in read.pieces(np.arange(5), 0, 8)]
    assert piece.ids.tolist() == [0, 2, 3]
    assert [(one.id, f"{name} row {one.id} (line" in one.reason) for one in piece.refused] == [
        (1, True),
        (4, True),
    ]


def test_a_file_without_a_readable_row_says_what_is_wrong_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\n{"text": "cut \xc3"}\n{"text": \n')
    with pytest.raises(DataError, match=r"in\.jsonl row 0 \(line 2\): got byte 0xc3 at 14, expected UTF-8"):
        blocks(path, TEXT)


def missing_numbers(path: Path) -> Path:
    """A table of three rows, of which the first lacks two of its numbers and the second none."""
    if path.suffix == ".csv":
        path.write_text("a,b,c\n,1, \n2,3,4\n5,x,\n")
    else:
        rows = [{"a": None, "b": 1.0, "c": None}, {"a": 2.0, "b": 3.0, "c": 4.0}, {"a": 5.0, "b": 6.0, "c": None}]
        write(path, rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_missing_numbers_are_nan_where_that_is_asked_for_and_faults_of_their_rows_elsewhere(
    tmp_path: Path, ending: str
) -> None:
    path = missing_numbers(tmp_path / f"in.{ending}")
    assert values(path, NUMBERS) == [[2, 3, 4]]
    refused = refusals(path, NUMBERS)
    assert list(refused) == [0, 2]
    assert f"in.{ending} row 0" in refused[0]
    assert "see `missing_as_nan`" in refused[0]
    asked = ColumnNames(missing_as_nan=True)
    found = values(path, NUMBERS, columns=asked)
    np.testing.assert_array_equal(found[:2], [[np.nan, 1, np.nan], [2, 3, 4]])
    # Text is no missing number.
    assert len(found) == (2 if ending == "csv" else 3)
    whole = TensorInfo(name="features", dtype="INT32", shape=(-1, 3))
    assert values(path, whole, columns=asked) == [[2, 3, 4]]
    assert "missing_as_nan" not in refusals(path, whole)[0]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_the_order_of_columns_is_noted_where_nobody_named_them(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"in.{ending}", [{"c": 1.0, "id": 7, "a": 2.0, "b": 3.0}])

    def notes(columns: ColumnNames) -> list[tuple[str, ...]]:
        said = stored_rows(f"{path}", model(NUMBERS), columns=columns, read_picture=lambda d, w: np.zeros(0)).notes
        source = row_source(
            f"{path}",
            model(NUMBERS),
            classes=MemberClasses(count=2),
            read_picture=lambda d, w: np.zeros(0),
            columns=columns,
        )
        return [said, source.notes]

    assert notes(NONE) == [("input features is c, a, b, in this order; `record.columns` names another",)] * 2
    assert notes(ColumnNames(columns=("a", "b", "c"))) == [()] * 2


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_missing_numbers_in_lists_are_nan_but_a_missing_list_is_none(tmp_path: Path, ending: str) -> None:
    path = write(
        tmp_path / f"in.{ending}", [{"features": row} for row in ([1.0, None, 3.0], None, [4.0, 5.0, 6.0])]
    )
    assert list(refusals(path, NUMBERS)) == [0, 1]
    asked = ColumnNames(missing_as_nan=True)
    np.testing.assert_array_equal(values(path, NUMBERS, columns=asked), [[1, np.nan, 3], [4, 5, 6]])
    assert list(refusals(path, NUMBERS, columns=asked)) == [1]


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1e400", "1" + "0" * 400])
@pytest.mark.filterwarnings("error")
def test_a_number_that_the_dtype_does_not_hold_is_refused_and_infinity_is_not(tmp_path: Path, number: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f"a,b,c\n1,2,3.4028235e38\n1,{number},3\ninf,-inf,nan\n")
    refused = refusals(path, NUMBERS)
    assert list(refused) == [1]
    assert "expected a number that float32 holds" in refused[1]
    path = tmp_path / "in.jsonl"
    lines = "[1, 2, 3.4028235e38]", f"[1, {number}, 3]", "[Infinity, 2, 3]"
    path.write_text("".join(f'{{"features": {line}}}\n' for line in lines))
    assert list(refusals(path, NUMBERS)) == [1]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"features": [[1.0, 2.0, 3.4e38], [1.0, 1e39, 3.0], [np.inf, 1.0, np.nan]]}), path)
    assert "row 1: got a number that float32 does not hold" in refusals(path, NUMBERS)[1]
    assert [block.ids.tolist() for block in blocks(path, NUMBERS)] == [[0, 2]]
    whole = TensorInfo(name="features", dtype="INT8", shape=(-1, 2))
    pq.write_table(pa.table({"features": [[1, 2], [1, 300]]}), path)
    assert list(refusals(path, whole)) == [1]


BAD_TEXT = [
    ("in.csv", b"text\ngood\n\xff\xfe\nfine\n", 1, "in.csv row 1 (line 3) text: got byte 0xff after 0 characters"),
    ("in.csv", b"text,b\ngood,1\nbad\nfine,2\n", 1, "row 1 (line 3): got 1 cells, expected 2"),
    (
        "in.csv",
        b'text\n"two\nlines"\n' + b"x" * 10_000_000 + b"\nfine\n",
        1,
        "(line 4) text: got 10,000,000 bytes",
    ),
    ("in.jsonl", b'{"text": "good"}\n{"text": null}\n{"text": "fine"}\n', 1, "row 1 (line 2) text: got null"),
    ("in.jsonl", b'{"text": "good"}\n{"other": 1}\n{"text": "fine"}\n', 1, "text: got null"),
    (
        "in.jsonl",
        b'{"text": "good"}\n\n{"text": 5}\n{"text": "fine"}\n',
        1,
        "row 1 (line 3) text: got 5, expected",
    ),
    ("in.jsonl", b'{"text": "good"}\n{"text": "\\ud83d"}\n{"text": "fine"}\n', 1, "half a character (U+D83D)"),
    ("in.jsonl", b'{"text": "good"}\n{"text": "\xe4"}\n{"text": "fine"}\n', 1, "byte 0xe4 at 10, expected UTF-8"),
    ("in.jsonl", b'{"text": "good"}\n{"text"\n{"text": "fine"}\n', 1, "(line 2): got no JSON"),
    ("in.jsonl", b'{"text": "good"}\n[1]\n{"text": "fine"}\n', 1, "expected an object of columns"),
    ("in.jsonl", b'{"text": "good"}\n' + b"[" * 100_000 + b'\n{"text": "fine"}\n', 1, "got no JSON"),
]


@pytest.mark.parametrize(("name", "data", "row", "said"), BAD_TEXT)
def test_a_bad_row_of_text_is_refused_with_file_and_row(
    tmp_path: Path, name: str, data: bytes, row: int, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    columns = ColumnNames(text="text")
    refused = refusals(path, TEXT, columns=columns)
    assert list(refused) == [row]
    assert said in refused[row]
    assert "\n" not in refused[row]
    assert values(path, TEXT, columns=columns)[-1] == [b"fine"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("in.csv", b"a,b,c\n1,2,3\n1,,3\n4,5,6\n", "row 1 (line 3) b: got '', expected a number"),
        ("in.csv", b"a,b,c\n1,2,3\n1,x,3\n4,5,6\n", "row 1 (line 3) b: got 'x', expected a number"),
        ("in.csv", b"a,b,c\n1,2,3\n1,1_0,3\n4,5,6\n", "got '1_0', expected a number"),
        (
            "in.jsonl",
            b'{"a":1,"b":2,"c":3}\n{"a":1,"b":"2","c":3}\n{"a":4,"b":5,"c":6}\n',
            "b: got '2', expected a",
        ),
        ("in.jsonl", b'{"a":1,"b":2,"c":3}\n{"a":1,"b":null,"c":3}\n{"a":4,"b":5,"c":6}\n', "b: got null"),
    ],
)
def test_what_is_no_number_is_refused_with_file_and_row(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert said in refusals(path, NUMBERS)[1]
    assert values(path, NUMBERS) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("value", ["1.5", "300", "-1", "nan", "inf", "1e30"])
def test_what_a_whole_number_of_the_model_cannot_be_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(f"a,b\n{value},1\n255,0\n")
    tensor = TensorInfo(name="x", dtype="UINT8", shape=(-1, 2))
    assert "a: got" in refusals(path, tensor)[0]
    assert values(path, tensor) == [[255, 0]]


@pytest.mark.parametrize(
    ("name", "data", "columns", "said"),
    [
        ("in.csv", b"a,b\n1,2\n", ColumnNames(text="c"), "got columns a, b, expected c; see `text`"),
        ("in.jsonl", b'{"a": 1}\n', ColumnNames(text="c"), "got columns a, expected c; see `text`"),
        ("in.csv", b"a,b\n1,2\n", NONE, "expected a column of text; see `text`"),
        (
            "in.csv",
            b"a,b\n1,2\n",
            ColumnNames(columns=("a",)),
            "expected one input of numbers; leave out `columns`",
        ),
        ("in.csv", b"text,text\n1,2\n", NONE, "several columns text"),
        ("in.csv", b"text\n", NONE, "no rows"),
        ("in.csv", b"", NONE, "no rows"),
        ("in.jsonl", b"\n", NONE, "no rows"),
        ("in.csv", b'text\n"never ends\nb\n', NONE, "in.csv line 3: got unexpected end of data"),
        ("in.csv", b"id,text\n1,a\n1,b\n", NONE, "an id more than once: 1"),
        ("in.jsonl", b'{"id": 1, "text": "a"}\n{"id": "b", "text": "b"}\n', NONE, "got 'b' after 1"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(
    tmp_path: Path, name: str, data: bytes, columns: ColumnNames, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    classes = MemberClasses(count=2)
    with pytest.raises(CommitteeError) as caught:
        row_source(f"{path}", model(TEXT), classes=classes, read_picture=lambda d, w: d, columns=columns)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_text_that_is_no_utf_8_or_null_is_refused_by_row_and_other_types_at_once(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": broken}), path)
    assert "in.parquet row 1 text: got byte 0xff" in refusals(path, TEXT)[1]
    assert values(path, TEXT) == [[b"a"], [b"b"]]
    pq.write_table(pa.table({"text": ["a", None]}), path)
    assert refusals(path, TEXT) == {1: f"{path} row 1 text: got null, expected a value in every row"}
    pq.write_table(pa.table({"text": [1]}), path)
    with pytest.raises(DataError, match="column text: got int64, expected text"):
        blocks(path, TEXT)
    pq.write_table(pa.table({"a": ["1"], "b": [1], "c": [1]}), path)
    with pytest.raises(DataError, match="column a: got string, expected numbers"):
        blocks(path, NUMBERS)


def test_several_inputs_read_columns_of_their_names_and_text_and_numbers_the_ones_named(tmp_path: Path) -> None:
    ids = TensorInfo(name="input_ids", dtype="INT64", shape=(-1, -1))
    rows = [{"text": "a", "input_ids": [1, 2]}, {"text": "b", "input_ids": [3]}]
    for ending in ("jsonl", "parquet"):
        (block,) = blocks(write(tmp_path / f"in.{ending}", rows), TEXT, ids)
        assert isinstance(block.rows, dict)
        assert [row.tolist() for row in block.rows["input_ids"]] == [[1, 2], [3]]
        assert block.rows["text"].tolist() == [[b"a"], [b"b"]]
    path = write(tmp_path / "in.csv", [{"review": "a", "x": 1, "y": 2, "z": 3}])
    (block,) = blocks(path, TEXT, NUMBERS, columns=ColumnNames(text="review", columns=("z", "y", "x")))
    assert isinstance(block.rows, dict)
    assert {name: rows.tolist() for name, rows in block.rows.items()} == {
        "text": [[b"a"]],
        "features": [[3, 2, 1]],
    }
