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
from orchestrator.rows.labels import class_map_from_path, names_beside
from orchestrator.rows.named import named_rows
from orchestrator.rows.opening import stored_rows
from orchestrator.rows.pictures import picture_bytes
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from tests.recording.builders import picture, png, rows_of, write_folder, write_member

FOREIGN = ("n03", "n01", "n02")  # cat, dog, owl
# Sorted by code points, the decomposed \u00e9 comes before "f", the composed one behind "z".
ACCENTED = ("\u00e9clair", "fig", "zest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_member(tmp_path / "repository", "a", labels=None)
    return tmp_path


def record(folder: Path, data: Path, *options: object, code: int = 0) -> Any:
    """The records, None where there are none."""
    words = ["record", "a", "--data", data, "-o", folder / "out.npz", "--repository", folder / "repository"]
    assert run([str(word) for word in (*words, "--restart", *options)]) == code
    return records_from_path(folder / "out.npz") if code == 0 else None


def code_of(folder: Path, *options: str, members: str = "a") -> int:
    """Exit code of recording the folder of pictures."""
    words = ["record", "--members", members, "--data", str(folder / "pictures"), "-o", str(folder / "out.npz")]
    return run([*words, "--repository", str(folder / "repository"), *options])


def label_of_each(found: Records) -> dict[str, int]:
    """Label of each class name that the ids begin with, in normal form."""
    names = [unicodedata.normalize("NFC", row_id.split("/")[0]) for row_id in found.ids.tolist()]
    return dict(zip(names, labels_of(found), strict=True))


def labels_of(found: Records) -> list[int]:
    assert found.labels is not None
    return found.labels.tolist()


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
        lambda path: stored_rows(
            f"{path}", info, columns=ColumnNames(), read_picture=lambda data, what: np.zeros(2)
        ),
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
    np.savez(folder / "in.npz", images=rows_of(3), labels=np.array(labels.to_pylist()))
    for data in (table(folder, label=labels), folder / "in.npz"):
        assert labels_of(record(folder, data, *options)) == expected


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
    assert labels_of(found) == [0, 2]
    assert found.ids.tolist() == ["w", "y"]
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
    assert labels_of(record(folder, folder / "in.npz", "--label-column", "kind")) == [2, 0, 1]


# -- class maps ---------------------------------------------------------------------------------------


def mapped(folder: Path, text: str) -> Path:
    path = folder / "map.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_get_the_class_of_their_line_whatever_their_order_and_also_in_part(tmp_path: Path) -> None:
    write_member(tmp_path / "repository", "a")
    write_member(tmp_path / "repository", "nameless", labels=None)
    write_folder(tmp_path / "pictures", names=("n01", "n03"), each=2)
    path = mapped(tmp_path, "n03 cat\nn01 dog, of any kind\n\nn02\n")
    for members in ("a", "nameless"):
        assert code_of(tmp_path, "--class-map", str(path), members=members) == 0
        found = records_from_path(tmp_path / "out.npz")
        assert found.labels.tolist() == [1, 1, 0, 0]
        assert found.meta["labels_by"] == "map"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n03\nn01\n", "got 2 lines, expected 3, one per class of the members, in order"),
        ("n03 cat\n\tdog\nn02 owl\n", "got no name before 'dog', expected a name, then a tab and the words"),
        ("n03\nn01\nn03\n", "with more than one line for n03"),
        ("n03 dog\nn01 cat\nn02 owl\n", "got 'dog' on line 1, expected 'cat', which is what the members call"),
        ("n03\nn01\nn04\n", "1 of 3 classes that the class map does not have: n02, expected names such as n03"),
    ],
)
def test_a_map_that_does_not_fit_is_one_line_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    write_member(tmp_path / "repository", "a")
    write_folder(tmp_path / "pictures", names=FOREIGN, each=1)
    assert code_of(tmp_path, "--class-map", str(mapped(tmp_path, text))) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_names_are_the_same_in_either_form_of_unicode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    composed = ("caf\u00e9", "\u00fcber", "owl")
    decomposed = tuple(unicodedata.normalize("NFD", name) for name in composed)
    assert composed[:2] != decomposed[:2]
    write_member(tmp_path / "repository", "a", labels=composed)
    write_member(tmp_path / "repository", "b", labels=decomposed)
    write_member(tmp_path / "repository", "nameless", labels=None)
    write_folder(tmp_path / "pictures", names=decomposed, each=2)
    # Sorted as folders: cafe with its accent apart, owl, u with its dots apart.
    expected = [0, 0, 2, 2, 1, 1]
    assert code_of(tmp_path, members="a,b") == 0
    assert labels_of(records_from_path(tmp_path / "out.npz")) == expected
    path = mapped(tmp_path, "".join(f"{name}\tclass {name}\n" for name in composed))
    assert code_of(tmp_path, "--class-map", str(path), members="nameless") == 0
    assert labels_of(records_from_path(tmp_path / "out.npz")) == expected
    assert code_of(tmp_path, "--class-map", str(mapped(tmp_path, "x y\n\u00e9\n e\u0301\n"))) == 2
    assert "more than one line for \u00e9" in capsys.readouterr().err


def test_two_folders_that_are_one_name_are_one_class_by_name_and_refused_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=("\u00e9", "e", "x"))
    write_member(tmp_path / "repository", "nameless", labels=None)
    write_folder(tmp_path / "pictures", names=("\u00e9", "e\u0301", "x"), each=1)
    assert code_of(tmp_path) == 0
    assert sorted(labels_of(records_from_path(tmp_path / "out.npz"))) == [0, 0, 2]
    assert code_of(tmp_path, members="nameless") == 2
    assert r"'e\u0301' and '\xe9', which is the same name written in two ways" in capsys.readouterr().err


def test_a_map_that_is_missing_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        class_map_from_path(tmp_path / "none.txt", count=3, known=None)
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        class_map_from_path(tmp_path / "map.txt", count=3, known=None)


def test_a_name_with_blanks_ends_at_the_tab(tmp_path: Path) -> None:
    path = mapped(tmp_path, "\ufeffgreat white shark\tcat\r\ntench dog\nowl\n")
    found = class_map_from_path(path, count=3, known=("cat", "dog", "owl"))
    assert found.names == ("great white shark", "tench", "owl")
    assert found.class_names == ("cat", "dog", "owl")


def test_whole_lines_are_names_where_all_names_of_the_data_are_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=None)
    write_folder(tmp_path / "pictures", names=("big cat", "big dog", "owl"), each=1)
    assert code_of(tmp_path, "--class-map", str(mapped(tmp_path, "owl\nbig dog\nbig cat\n"))) == 0
    found = records_from_path(tmp_path / "out.npz")
    assert found.labels.tolist() == [2, 1, 0]
    assert found.meta["class_names"] == ["owl", "big dog", "big cat"]
    # A class that begins like another is no other class's word.
    assert class_map_from_path(
        mapped(tmp_path, "cat\nbig cat\nowl"), count=3, known=("cat", "big cat", "owl")
    ).lines
    capsys.readouterr()
    for lines, said in (
        ("owl\nbig dog x\nbig cat\n", "more than one line for big, expected every name once; put a tab"),
        ("owl,an owl\nbig dog,a dog\nbig cat,a cat\n", "put a tab behind every name"),
        ("owl,an owl\ndog,a dog\ncat,a cat\n", "put a tab behind every name"),
    ):
        assert code_of(tmp_path, "--class-map", str(mapped(tmp_path, lines)), "--restart") == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_two_classes_of_one_name_are_told_apart_by_a_map_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=("crane", "dog", "crane"))
    write_folder(tmp_path / "pictures", names=("crane", "dog"), each=1)
    assert code_of(tmp_path) == 2
    assert "say which is which with --class-map" in capsys.readouterr().err
    path = mapped(tmp_path, "x crane\ndog dog\ncrane crane\n")
    assert code_of(tmp_path, "--class-map", str(path)) == 0
    assert labels_of(records_from_path(tmp_path / "out.npz")) == [2, 1]


@pytest.mark.parametrize("flat", [True, False])
def test_a_map_without_class_folders_or_beside_an_order_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flat: bool
) -> None:
    write_member(tmp_path / "repository", "a")
    write_folder(tmp_path / "pictures", names=() if flat else FOREIGN, each=1)
    (tmp_path / "pictures").mkdir(exist_ok=True)
    if flat:
        (tmp_path / "pictures/one.png").write_bytes(png(picture(0)))
    path = mapped(tmp_path, "n03\nn01\nn02\n")
    assert code_of(tmp_path, "--class-map", str(path), *([] if flat else ["--labels-by-order"])) == 2
    assert ("no sub-folders" if flat else "expected one of them") in capsys.readouterr().err


@pytest.mark.parametrize(("labels", "got"), [([0, 1], "labels of type int64"), (None, "no labels")])
def test_a_map_for_rows_whose_labels_are_no_names_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[int] | None, got: str
) -> None:
    write_member(tmp_path / "repository", "a")
    np.savez(tmp_path / "rows.npz", images=rows_of(2), **({} if labels is None else {"labels": np.array(labels)}))
    path = mapped(tmp_path, "n03\nn01\nn02\n")
    assert code_of(tmp_path, "--data", str(tmp_path / "rows.npz"), "--class-map", str(path)) == 2
    assert f"got {got}, expected class names, which --class-map says; leave out" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


KNOWN = ("caf\xe9", "great white shark", "cat", "n01440764", "\u732b")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Cat", "Cat (nearest: cat)"),
        ("great_white_shark", r"'great_white_shark' (nearest: 'great white shark')"),
        ("great white sharc", "great white sharc (nearest: great white shark)"),
        ("cat\u200b", r"'cat\u200b' (nearest: 'cat')"),
        ("great\xa0white shark", r"'great\xa0white shark' (nearest: 'great white shark')"),
        ("great  white shark", r"'great\x20\x20white shark' (nearest: 'great white shark')"),
        ("cafe", r"'cafe' (nearest: 'caf\xe9')"),
        ("c\u0430t", "c\u0430t"),  # a Cyrillic letter, too short a name to be near by the rest
        ("gre\u0430t white shark", r"'gre\u0430t white shark' (nearest: 'great white shark')"),
        ("n01440765", "n01440765"),
        ("yak", "yak"),
        ("\u72ac", "\u72ac"),
        ("odd\x00", r"'odd\x00'"),
    ],
)
def test_the_nearest_name_is_shown_and_escaped_where_eyes_cannot_tell(name: str, shown: str) -> None:
    assert names_beside([name], KNOWN) == shown


def test_a_few_of_many_are_shown() -> None:
    assert names_beside([f"x{number}" for number in range(9)], KNOWN) == "x0, x1, x2, x3, x4, ..."
