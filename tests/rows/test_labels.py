"""Labels and ids as other people's data has them: read, or refused in one line that says what to do."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.__main__ import run
from orchestrator.errors import DataError
from orchestrator.planner.records import Records, records_from_path
from orchestrator.rows.blocks import ColumnNames
from orchestrator.rows.opening import named_rows, stored_rows
from orchestrator.rows.pictures import picture_bytes
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from tests.recording.builders import picture, png, rows_of, write_folder, write_member

# Sorted by code points, the decomposed \u00e9 comes before "f", the composed one behind "z".
ACCENTED = ("\u00e9clair", "fig", "zest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_member(tmp_path / "repository", "a", labels=None)
    return tmp_path


def record(folder: Path, data: Path, *options: object, code: int = 0) -> Records | None:
    words = ["record", "a", "--data", data, "-o", folder / "out.npz", "--repository", folder / "repository"]
    assert run([str(word) for word in (*words, "--restart", *options)]) == code
    return records_from_path(folder / "out.npz") if code == 0 else None


def label_of_each(found: Records | None) -> dict[str, int]:
    """Label of each class name that the ids begin with, in normal form."""
    assert found is not None
    assert found.labels is not None
    names = [unicodedata.normalize("NFC", row_id.split("/")[0]) for row_id in found.ids.tolist()]
    return dict(zip(names, found.labels.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["folder", "npz", "parquet"])
def test_classes_in_order_are_numbered_alike_in_either_form_of_unicode(folder: Path, kind: str) -> None:
    numbered = []
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ACCENTED]
        data = folder / f"{form}.{kind}"
        ids = [f"{name}/{index}" for index, name in enumerate(names)]
        if kind == "folder":
            write_folder(data, names=tuple(names), each=1)
        elif kind == "npz":
            np.savez(data, images=rows_of(3), labels=names, ids=ids)
        else:
            pq.write_table(
                pa.table({"image": [png(picture(k)) for k in range(3)], "label": names, "id": ids}), data
            )
        numbered.append(label_of_each(record(folder, data)))
    assert numbered == [{"fig": 0, "zest": 1, "\u00e9clair": 2}] * 2


# -- files that are none -----------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("flat", [True, False])
def test_a_pipe_named_like_a_picture_is_refused_and_not_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str], flat: bool
) -> None:
    write_folder(folder / "pictures", each=1)
    data = folder / "pictures" / ("cat" if flat else "")
    pipe = folder / "pictures" / "cat" / "pipe.png"
    os.mkfifo(pipe)
    record(folder, data, code=2)
    assert "pipe.png: got a pipe, expected a regular file" in capsys.readouterr().err
    found = record(folder, data, "--skip-bad")
    assert found is not None
    assert list(found.meta["skipped"]) == [pipe.relative_to(data).as_posix()]
    with pytest.raises(DataError, match="got a pipe, expected a regular file"):
        picture_bytes(pipe, "picture")


@pytest.mark.parametrize("ending", [".png", ".npy"])
def test_a_pipe_is_no_row_to_ask_about(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    tensor = TensorInfo(name="x", dtype="FP32", shape=(-1, 2))
    info = ModelInfo(name="m", platform="", versions=("1",), max_batch_size=8, inputs=(tensor,), outputs=())
    for read in (
        lambda path: named_rows([str(path)], info, read_picture=lambda data, what: np.zeros(2)),
        lambda path: stored_rows(path, info, columns=ColumnNames(), read_picture=lambda data, what: np.zeros(2)),
    ):
        with pytest.raises(DataError, match="got a pipe, expected a regular file"):
            read(tmp_path / f"pipe{ending}")


@pytest.mark.parametrize("name", ["one.parquet", "many/one.parquet"])
def test_a_pipe_named_like_a_table_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (folder / "many").mkdir()
    os.mkfifo(folder / name)
    record(folder, folder / name.split("/")[0], code=2)
    assert capsys.readouterr().err.count("\n") == 1


# -- labels ------------------------------------------------------------------------------------------


def table(folder: Path, **columns: Any) -> Path:
    rows = len(next(iter(columns.values())))
    image = [png(picture(seed)) for seed in range(rows)]
    pq.write_table(pa.table({"image": image, **columns}), folder / "in.parquet", row_group_size=5)
    return folder / "in.parquet"


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        (pa.array([0.0, 2.0, 1.0]), (), [0, 2, 1]),
        (pa.array([True, False, True]), (), [1, 0, 1]),
        (pa.array(["3", "1", "2"]), ("--first-label", 1), [2, 0, 1]),
        (pa.array([7.0, 5.0, 6.0], pa.float32()), ("--first-label", 5), [2, 0, 1]),
        (pa.array([-1, 1, 0]), ("--first-label", -1), [0, 2, 1]),
    ],
)
def test_numbers_in_other_clothes_are_read_as_numbers(
    folder: Path, labels: Any, options: tuple[object, ...], expected: list[int]
) -> None:
    found = record(folder, table(folder, label=labels), *options)
    assert found is not None
    assert found.labels is not None
    assert found.labels.tolist() == expected
    np.savez(folder / "in.npz", images=rows_of(3), labels=np.array(labels.to_pylist()))
    again = record(folder, folder / "in.npz", *options)
    assert again is not None
    assert again.labels is not None
    assert again.labels.tolist() == expected


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, -1, 2, -1]),
        pa.array([0.0, None, 2.0, float("nan")]),
        pa.array([1, None, 3, None]),
        pa.array(["cat", None, "owl", None]),
        pa.array(["cat", None, "owl", None]).dictionary_encode(),
    ],
    ids=["-1", "floats", "from 1", "names", "dictionary"],
)
def test_rows_without_a_label_are_counted_and_left_out_where_that_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], labels: Any
) -> None:
    data = table(folder, label=labels, id=pa.array(["w", "x", "y", "z"]))
    # Names are matched with the members' own.
    write_member(folder / "named", "a")
    options = ["--repository", folder / "named", *(["--first-label", 1] if labels[0].as_py() == 1 else [])]
    record(folder, data, *options, code=2)
    error = capsys.readouterr().err
    assert "got 2 of 4 rows without a label (null, NaN or -1): x, z, expected a label in every row" in error
    assert "--skip-bad" in error
    found = record(folder, data, "--skip-bad", *options)
    assert found is not None
    assert found.labels is not None
    assert (found.ids.tolist(), found.labels.tolist()) == (["w", "y"], [0, 2])
    assert found.meta["skipped"] == {"x": "no label", "z": "no label"}
    assert record(folder, data, "--limit", 1, *options) is not None


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": pa.array([[0, 1, 0]] * 3)}, "got list<element: int64>, expected a whole number or a name"),
        ({"label": pa.array([-1, -1, -1])}, "got -1, NaN or null in every row"),
        ({"label": pa.nulls(3)}, "got -1, NaN or null in every row"),
        ({"label": pa.array([5, 6, 7])}, "they look 5-based: say so with --first-label 5"),
        ({"label": pa.array([0.5, 1, 2])}, "got float64 such as 0.5"),
        ({"id": pa.array([[0], [1], [2]])}, "got list<element: int64>, expected whole numbers or text"),
        ({"id": pa.array([1, 2, 3], pa.timestamp("us"))}, "got timestamp[us], expected whole numbers or text"),
    ],
)
def test_labels_and_ids_of_no_use_are_one_line_with_their_type(
    folder: Path, capsys: pytest.CaptureFixture[str], columns: dict[str, Any], said: str
) -> None:
    record(folder, table(folder, **columns), code=2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_text_that_is_no_class_number_is_refused_with_the_range(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(folder, table(folder, label=pa.array(["1", "2", "9"])), "--first-label", 1, code=2)
    assert "got labels from 1 to 9, expected 1 to 3" in capsys.readouterr().err


def test_named_labels_are_not_taken_for_the_rows(folder: Path) -> None:
    np.savez(folder / "in.npz", kind=np.array([2, 0, 1]), pixels=rows_of(3))
    found = record(folder, folder / "in.npz", "--label-column", "kind")
    assert found is not None
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, 1]
