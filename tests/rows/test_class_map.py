"""`committee record --class-map`: a data set's own class names, in the members' order, or one line."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.errors import DataError
from orchestrator.planner.records import records_from_path
from orchestrator.rows.labels import class_map_from_path, names_beside
from tests.recording.builders import picture, png, write_folder, write_member

FOREIGN = ("n03", "n01", "n02")  # cat, dog, owl


def record(folder: Path, *options: str, members: str = "a") -> int:
    words = ["record", "--members", members, "--data", str(folder / "pictures"), "-o", str(folder / "out.npz")]
    return run([*words, "--repository", str(folder / "repository"), *options])


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
        assert record(tmp_path, "--class-map", str(path), members=members) == 0
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
    assert record(tmp_path, "--class-map", str(mapped(tmp_path, text))) == 2
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
    assert record(tmp_path, members="a,b") == 0
    assert records_from_path(tmp_path / "out.npz").labels.tolist() == expected
    path = mapped(tmp_path, "".join(f"{name}\tclass {name}\n" for name in composed))
    assert record(tmp_path, "--class-map", str(path), members="nameless") == 0
    assert records_from_path(tmp_path / "out.npz").labels.tolist() == expected
    assert record(tmp_path, "--class-map", str(mapped(tmp_path, "x y\n\u00e9\n e\u0301\n"))) == 2
    assert "more than one line for \u00e9" in capsys.readouterr().err


def test_two_folders_that_are_one_name_are_one_class_by_name_and_refused_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=("\u00e9", "e", "x"))
    write_member(tmp_path / "repository", "nameless", labels=None)
    write_folder(tmp_path / "pictures", names=("\u00e9", "e\u0301", "x"), each=1)
    assert record(tmp_path) == 0
    assert sorted(records_from_path(tmp_path / "out.npz").labels.tolist()) == [0, 0, 2]
    assert record(tmp_path, members="nameless") == 2
    assert r"'e\u0301' and '\xe9', which is the same name written in two ways" in capsys.readouterr().err


def test_a_name_that_almost_matches_is_shown_with_its_code_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a")
    write_folder(tmp_path / "pictures", names=("cat\u200b", "Dog", "owl"), each=1)
    assert record(tmp_path) == 2
    error = capsys.readouterr().err
    assert r"2 of 3 classes that no member has: Dog (nearest: dog), 'cat\u200b' (nearest: 'cat')" in error


def test_a_map_that_is_missing_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        class_map_from_path(tmp_path / "none.txt", count=3, known=None)
    (tmp_path / "map.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text"):
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
    assert record(tmp_path, "--class-map", str(mapped(tmp_path, "owl\nbig dog\nbig cat\n"))) == 0
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
        assert record(tmp_path, "--class-map", str(mapped(tmp_path, lines)), "--restart") == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_two_classes_of_one_name_are_told_apart_by_a_map_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=("crane", "dog", "crane"))
    write_folder(tmp_path / "pictures", names=("crane", "dog"), each=1)
    assert record(tmp_path) == 2
    assert "say which is which with --class-map" in capsys.readouterr().err
    path = mapped(tmp_path, "x crane\ndog dog\ncrane crane\n")
    assert record(tmp_path, "--class-map", str(path)) == 0
    assert records_from_path(tmp_path / "out.npz").labels.tolist() == [2, 1]


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
    assert record(tmp_path, "--class-map", str(path), *([] if flat else ["--labels-by-order"])) == 2
    assert ("no sub-folders" if flat else "expected one of them") in capsys.readouterr().err


@pytest.mark.parametrize(("labels", "got"), [([0, 1], "labels of type int64"), (None, "no labels")])
def test_a_map_for_rows_whose_labels_are_no_names_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[int] | None, got: str
) -> None:
    write_member(tmp_path / "repository", "a")
    rows = np.stack([picture(seed).transpose(2, 0, 1) for seed in range(2)])
    np.savez(tmp_path / "rows.npz", images=rows, **({} if labels is None else {"labels": np.array(labels)}))
    path = mapped(tmp_path, "n03\nn01\nn02\n")
    assert record(tmp_path, "--data", str(tmp_path / "rows.npz"), "--class-map", str(path)) == 2
    assert f"got {got}, expected class names, which --class-map says; leave out" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_a_recording_no_better_than_guessing_asks_about_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(tmp_path / "repository", "a", labels=None, classes=20)
    write_folder(tmp_path / "pictures", names=tuple(f"n{number:02d}" for number in range(20)), each=5)
    assert record(tmp_path) == 0
    assert "are the labels in the order of the members' classes?" in capsys.readouterr().out
    # The answers themselves as labels: no question.
    found = records_from_path(tmp_path / "out.npz").outputs["a"].argmax(1)
    rows = np.stack([picture(seed).transpose(2, 0, 1) for seed in range(100)])
    np.savez(tmp_path / "rows.npz", images=rows, labels=found)
    assert record(tmp_path, "--data", str(tmp_path / "rows.npz"), "--restart") == 0
    assert "are the labels" not in capsys.readouterr().out


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
