"""Paragraphs of docstrings: what is a row, what its text no longer says, and that the parts share nothing."""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.rows import docstrings
from orchestrator.rows.docstrings import (
    CLASSES,
    PARTS,
    SHA256,
    docstrings_of,
    docstrings_split,
    paragraphs_of,
    without_names,
)
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.opening import row_source
from orchestrator.spec.served_model import ModelInfo, TensorInfo

DOCSTRING = """Fit a model.

Parameters
----------
x : array_like, shape (n,)
    The data that are to be fitted by it, all of it.
y, z : float, optional
    A number of six words and more here,
    over two lines.

Notes
-----
The sums of squares are found by a
method of its own kind:
   with more words below that belong to it

>>> from here import many things, and more of them
.. versionadded:: of a release with many words in it
"""


def test_rows_are_paragraphs_and_entries_of_parameters_without_headings_and_code() -> None:
    assert list(paragraphs_of(DOCSTRING)) == [
        "x : array_like, shape (n,) The data that are to be fitted by it, all of it.",
        "y, z : float, optional A number of six words and more here, over two lines.",
        "The sums of squares are found by a method of its own kind: with more words below that belong to it",
    ]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("See scipy.stats.norm for it", "See norm for it"),
        ("the Signal and linear models of sklearn.linear_model", "the and of"),
        ("statistics of resignalling", "statistics of resignalling"),
        ("`~matplotlib.axes.Axes.plot`", "`~ plot`"),
    ],
)
def test_names_of_libraries_and_classes_are_taken_out(text: str, left: str) -> None:
    assert without_names(text) == left


def test_every_docstring_of_a_module_has_a_name_of_its_own() -> None:
    source = '''"""Module."""
class A:
    """Class."""
    @property
    def f(self):
        """Get."""
    @f.setter
    def f(self, value):
        """Set."""
        def inner():
            """Inner."""
'''
    assert list(docstrings_of(source)) == [
        ("", "Module."),
        ("A", "Class."),
        ("A.f", "Get."),
        ("A.f#2", "Set."),
        ("A.f.inner", "Inner."),
    ]


@pytest.fixture
def small_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three libraries of a few files, found in the place of the real ones."""
    shared = "A sentence of many words that stands in two classes."
    again = "One that is written twice, in the same class, with many words."
    for name in CLASSES:
        folder = tmp_path.joinpath(*name.split("."))
        folder.mkdir(parents=True)
        word = name[::-1].replace(".", "")
        functions = [
            f'def f{i}():\n    """Words {letter * 3} of {word} that nobody else has at all.\n\n'
            f'    {again.upper() if i else again} {word}\n\n    {shared}"""'
            for i, letter in enumerate("abcdefghij")
        ]
        (folder / "a.py").write_text("\n".join(functions))
        (folder / "tests").mkdir()
        (folder / "tests" / "b.py").write_text('"""A docstring of a test, with many words, that is no row."""')
    monkeypatch.setattr(docstrings, "_root_of", lambda library: tmp_path / library)
    docstrings._all_paragraphs.cache_clear()
    yield
    docstrings._all_paragraphs.cache_clear()


@pytest.mark.usefixtures("small_libraries")
def test_a_docstring_lies_in_one_part_and_no_text_comes_twice() -> None:
    parts = {name: docstrings_split(name) for name in PARTS}
    texts = [text for part in parts.values() for text in part.texts]
    # Ten rows of each class that stand once, and one that stands ten times.
    assert len(texts) == len({text.lower() for text in texts}) == 11 * len(CLASSES)
    assert not any("two classes" in text or "of a test" in text for text in texts)
    files = {name: {row.rpartition(":")[0] for row in part.ids} for name, part in parts.items()}
    assert sum(map(len, files.values())) == len(set.union(*files.values()))
    assert all(files.values())
    for part in parts.values():
        assert len(part.ids) == len(part.texts) == len(part.labels)
        for row, label in zip(part.ids, part.labels, strict=True):
            assert row.startswith(CLASSES[label].replace(".", "/"))


@pytest.mark.usefixtures("small_libraries")
def test_the_hash_tells_other_rows_from_the_same() -> None:
    plan, test = docstrings_split("plan"), docstrings_split("test")
    assert plan.sha256() == docstrings_split("plan").sha256() != test.sha256()
    moved = docstrings.DocstringsSplit(ids=plan.ids, texts=plan.texts, labels=np.roll(plan.labels, 1))
    assert moved.sha256() != plan.sha256()
    assert len(plan.sha256()) == len(hashlib.sha256().hexdigest())


@pytest.mark.slow
def test_the_pinned_libraries_give_the_rows_that_are_written_down() -> None:
    """Slow: the sources of three libraries are parsed."""
    pinned = {"scipy": "1.17.1", "scikit-learn": "1.9.1", "matplotlib": "3.11.2"}
    if {name: version(name) for name in pinned} != pinned:
        pytest.skip("other releases give other rows")
    assert {name: docstrings_split(name).sha256() for name in PARTS} == SHA256


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="one of fit, plan, test"):
        docstrings_split("train")
    monkeypatch.setattr(docstrings, "LIBRARIES", ("scipy",))
    monkeypatch.setattr(docstrings, "CLASSES", ("no_such_library.stats",))
    docstrings._all_paragraphs.cache_clear()
    with pytest.raises(DataError, match="no no_such_library"):
        docstrings_split("plan")
    docstrings._all_paragraphs.cache_clear()


def test_rows_of_a_part_are_named_as_the_digits_are() -> None:
    info = ModelInfo(
        name="linear",
        platform="onnxruntime",
        versions=("1",),
        max_batch_size=8,
        inputs=(TensorInfo(name="text", dtype="BYTES", shape=(-1, 1)),),
        outputs=(),
    )
    split = docstrings_split("test")
    classes = MemberClasses(count=len(CLASSES), names=CLASSES)
    source = row_source("docstrings:test", info, classes=classes, read_picture=lambda _: np.zeros(1))
    (piece,) = source.pieces(np.array([1, 4]), 0, 8)
    assert piece.load().rows[:, 0].tolist() == [split.texts[row].encode() for row in (1, 4)]
    assert source.labels.numbers.tolist() == split.labels.tolist()
    assert source.ids.tolist() == split.ids.tolist()
    with pytest.raises(DataError, match="one of fit, plan, test"):
        row_source("docstrings:train", info, classes=classes, read_picture=lambda _: np.zeros(1))
