"""Paragraphs of the docstrings of scipy, scikit-learn and matplotlib: real text that needs no download.

The task: which subpackage does a paragraph document? It is no public benchmark and says nothing of other text.
Sources are parsed, not imported. Other releases of the libraries give other rows, which `sha256` of a split tells.
"""

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError

PARTS = {"fit": 0.6, "plan": 0.2, "test": 0.2}
LIBRARIES = ("scipy", "sklearn", "matplotlib")
CLASSES = (
    "matplotlib.axes",
    "scipy.integrate",
    "scipy.interpolate",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.signal",
    "scipy.sparse",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.decomposition",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.preprocessing",
    "sklearn.utils",
)
# Of the parts in scipy 1.17.1, scikit-learn 1.9.1 and matplotlib 3.11.2, which requirements/*.lock pin.
SHA256 = {
    "fit": "fccd389653fd983c3079c4e1303342706982e26a8759f0e14fac844dbe869358",
    "plan": "7031d9ba6b07b89f6fc6acace92494a22c5b38775ec1775c084bdd5feaa76dc2",
    "test": "478aa25a8656c1ea17df22052cd05cee38c59bf338e39b45fe9da6d111d02c72",
}
LEAST_WORDS = 6
# A row's text is cut here, in letters; one paragraph in a thousand is longer.
LONGEST = 2_000

_NAMES = sorted({*LIBRARIES, "scikit-learn", *(name.partition(".")[2] for name in CLASSES)}, key=len, reverse=True)
# With the dots around them, so that scipy.stats.norm is left as norm; linear_model is linear models in prose.
_NAMED = re.compile(
    r"\.?(?<![A-Za-z0-9_])(?:"
    + "|".join(name.replace("_", "[_ ]") for name in _NAMES)
    + r")s?(?![A-Za-z0-9_])\.?",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z]{2,}")
# How an entry of a list of parameters begins: "name, other : type", or a name alone.
_ENTRY = re.compile(r"[^\s:][^:]* : \S|\S+$")
_UNDERLINE = re.compile(r"^\s*([-=~^*#])\1{2,}\s*$")


@dataclass(frozen=True, kw_only=True)
class DocstringsSplit:
    """Rows of one part: ids (n,) as text, texts (n,) as text, labels int64 (n,), places in `CLASSES`."""

    ids: npt.NDArray[np.str_]
    texts: tuple[str, ...]
    labels: npt.NDArray[np.int64]

    @property
    def groups(self) -> npt.NDArray[np.str_]:
        """The docstring, (n,) as text, that each row is a paragraph of."""
        return np.char.rpartition(self.ids, ":")[:, 0]

    def sha256(self) -> str:
        """Of ids, texts and labels."""
        rows = zip(self.ids.tolist(), self.texts, self.labels.tolist(), strict=True)
        return hashlib.sha256("\n".join(f"{i}\t{label}\t{text}" for i, text, label in rows).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Paragraph:
    """A paragraph: the docstring it stands in, its place there, its text and its class."""

    docstring: str
    place: int
    text: str
    subpackage: str

    @property
    def key(self) -> str:
        """The same for paragraphs that differ in case, numbers, spaces and punctuation alone."""
        return " ".join(_WORD.findall(self.text.lower()))


def docstrings_split(name: str) -> DocstringsSplit:
    """The rows of a part, in the order of files and lines.

    Raises DataError where there is no such part, or a library is not installed.
    """
    if name not in PARTS:
        raise DataError("docstrings split", got=repr(name), expected=f"one of {', '.join(PARTS)}")
    rows = [row for row in _distinct(_all_paragraphs()) if part_of(row.docstring) == name]
    return DocstringsSplit(
        ids=np.array([f"{row.docstring}:{row.place}" for row in rows], np.str_),
        texts=tuple(row.text for row in rows),
        labels=np.array([CLASSES.index(row.subpackage) for row in rows], np.int64),
    )


def unlabelled_texts() -> tuple[str, ...]:
    """Paragraphs of the other subpackages of the libraries, none of whose texts is a row; raises DataError."""
    rows = {row.key for row in _distinct(_all_paragraphs())}
    found: dict[str, str] = {}
    for library in LIBRARIES:
        for file, where in _files(library):
            if ".".join(Path(where).parts[:2]) not in CLASSES:
                for row in _of_file(file, where, library):
                    if row.key not in rows:
                        found.setdefault(row.key, row.text)
    return tuple(found.values())


def part_of(docstring: str) -> str:
    """The part that all paragraphs of a docstring are in, by a hash of its name."""
    place = int.from_bytes(hashlib.sha256(docstring.encode()).digest()[:8], "big") / 2**64
    for name, share in PARTS.items():
        if place < share:
            return name
        place -= share
    return name


def without_names(text: str) -> str:
    """A text without the names of libraries and classes, wherever they stand, in single spaces."""
    return " ".join(_NAMED.sub(" ", text).split())


def paragraphs_of(docstring: str) -> Iterator[str]:
    """The prose of a cleaned docstring: its paragraphs, and each entry of a list of parameters by itself.

    Headings, examples in code, directives, and what has fewer than `LEAST_WORDS` words are left out.
    """
    for block in re.split(r"\n[ \t]*\n", docstring):
        lines = [line.rstrip() for line in block.splitlines() if line.strip()]
        # A heading is a line above one of dashes.
        while len(lines) > 1 and _UNDERLINE.match(lines[1]):
            lines = lines[2:]
        for entry in _entries(lines):
            text = without_names(" ".join(entry))[:LONGEST]
            if not entry[0].lstrip().startswith((">>>", "..", "|", "+-")) and _is_prose(text):
                yield text


def _is_prose(text: str) -> bool:
    return len(_WORD.findall(text)) >= LEAST_WORDS and ">>>" not in text


def _entries(lines: list[str]) -> Iterator[list[str]]:
    """The lines of a block, cut where an entry begins: as far left as the first line, an indented one below."""
    if not lines:
        return
    margins = [len(line) - len(line.lstrip()) for line in lines]
    entry: list[str] = []
    for place, line in enumerate(lines):
        indented_below = place + 1 < len(lines) and margins[place + 1] > margins[0]
        if entry and margins[place] <= margins[0] and indented_below and _ENTRY.match(line.strip()):
            yield entry
            entry = []
        entry.append(line)
    yield entry


def _distinct(rows: Iterable[_Paragraph]) -> list[_Paragraph]:
    """One row of each key, the first; none where the same text documents several classes."""
    first: dict[str, _Paragraph] = {}
    shared: set[str] = set()
    for row in rows:
        if first.setdefault(row.key, row).subpackage != row.subpackage:
            shared.add(row.key)
    return [row for key, row in first.items() if key not in shared]


@lru_cache(maxsize=1)
def _all_paragraphs() -> tuple[_Paragraph, ...]:
    return tuple(row for name in CLASSES for file, where in _files(name) for row in _of_file(file, where, name))


def _files(subpackage: str) -> Iterator[tuple[Path, str]]:
    """The source files of a subpackage but its tests, and what to call them, in the order of their names."""
    library, _, below = subpackage.partition(".")
    root = _root_of(library)
    for path in sorted((root / below).rglob("*.py")):
        inside = path.relative_to(root.parent)
        if "tests" not in inside.parts:
            yield path, inside.as_posix()


def _root_of(library: str) -> Path:
    found = importlib.util.find_spec(library)
    if found is None or not found.submodule_search_locations:
        fix = "install the demo's packages: pip install 'committee[demo]'"
        raise DataError("docstrings", got=f"no {library}", expected=", ".join(LIBRARIES), fix=fix)
    return Path(found.submodule_search_locations[0])


def _of_file(path: Path, where: str, subpackage: str) -> Iterator[_Paragraph]:
    for name, docstring in docstrings_of(path.read_text(encoding="utf-8")):
        for place, text in enumerate(paragraphs_of(docstring)):
            yield _Paragraph(docstring=f"{where}:{name}", place=place, text=text, subpackage=subpackage)


def docstrings_of(source: str) -> Iterator[tuple[str, str]]:
    """Name and cleaned docstring of a module and of every class and function in it.

    A name that a module has several times, such as that of a property and its setter, is numbered.
    """
    counts: dict[str, int] = {}

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                counts[name] = counts.get(name, 0) + 1
                yield name if counts[name] == 1 else f"{name}#{counts[name]}", docstring
        for child in ast.iter_child_nodes(node):
            own = getattr(child, "name", "") if isinstance(child, ast.stmt) else ""
            yield from walk(child, f"{name}.{own}".strip(".") if own else name)

    yield from walk(ast.parse(source), "")
