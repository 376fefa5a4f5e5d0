"""Rows that a classifier of tables is compared with its original on: around the values that it decides by.

Some cells hold what models treat apart from all other numbers: an exact 0, a missing value, a value that stands
for a missing one, a category.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export.sources import Rows

Range = tuple[npt.NDArray[Any], npt.NDArray[Any]]
# By column, its categories, and whether the classifier takes others, too.
Categories = dict[int, tuple[npt.NDArray[np.float32], bool]]
TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
# What classifiers keep of the rows they were fitted on, (m, f); the work of the first two is going through it.
KEPT = ("_fit_X", "theta_", "support_vectors_", "means_")
# Share of the cells that hold a value treated apart, and of cells of a column with categories an unknown one.
_APART, _UNKNOWN = 0.3, 0.1


def rows_around(
    graph: onnx.GraphProto, classifier: Any, ask: Callable[[Rows], Rows], count: int
) -> Callable[[int, int], Rows]:
    """A function that draws n rows float32 (n, f), by a seed, from around the values a model compares them with.

    Trees and scalers that read the graph's only input themselves say where these lie, or what a classifier keeps
    of its rows; other columns are around 0. Rows from anywhere else would all take the same way through a tree,
    and any two trees would agree on them. `ask` is the original; columns where it takes NaN have some.
    """
    centre, spread = _places([*_kept_ranges(classifier, count), *_ranges_in(graph, count)], count)
    # Trees of LightGBM take a number without its fraction for a category; none is ever given any.
    categories: Categories = {column: (known, True) for column, known in _categories_in(graph).items()}
    categories |= encoded_categories(classifier, list(range(count)))
    apart = np.array([0.0, *stand_ins(classifier)], np.float32)

    def numbers(rng: np.random.Generator, n: int) -> npt.NDArray[np.float32]:
        rows: npt.NDArray[np.float32] = (centre + spread * rng.normal(size=(n, count))).astype(np.float32)
        special = rng.random(rows.shape) < _APART
        rows[special] = rng.choice(apart, int(special.sum()))
        for column, (known, takes_others) in categories.items():
            rows[:, column] = rng.choice(known, n)
            unknown = rng.random(n) < _UNKNOWN * takes_others
            others = np.setdiff1d([-1, known.max() + 1, known.max() + 100], known)
            rows[unknown, column] = rng.choice(others, int(unknown.sum()))
        return rows

    missing = _columns_with_nan(ask, numbers(np.random.default_rng(0), 1))

    def draw(n: int, seed: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        rows = numbers(rng, n)
        rows[(rng.random(rows.shape) < _APART / 2) & missing] = np.nan
        return rows

    return draw


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python has them."""
    return {part.name: onnx.helper.get_attribute_value(part) for part in node.attribute}


def kept_rows(classifier: Any, count: int) -> list[npt.NDArray[Any]]:
    """Arrays (m, f) that a classifier keeps of the rows it was fitted on."""
    found = [np.asarray(getattr(classifier, name, ())) for name in KEPT]
    return [kept for kept in found if kept.ndim == 2 and kept.dtype.kind == "f" and kept.shape[1] == count]


def parts_of(classifier: Any) -> Iterator[Any]:
    """A classifier, and every estimator that it is made of."""
    yield classifier
    held = list(vars(classifier).values()) if hasattr(classifier, "get_params") else []
    while held:
        one = held.pop()
        if isinstance(one, list | tuple):
            held.extend(one)
        elif hasattr(one, "get_params") and not isinstance(one, type):
            yield from parts_of(one)


def encoded_categories(part: Any, columns: Sequence[int] | None) -> Categories:
    """The categories of columns that encoders read as they come; those that are no numbers are left out.

    `columns` are those of the rows that a part of a classifier reads; None where a step before it made new ones.
    """
    found: Categories = {}
    if columns is None:
        return found
    if hasattr(part, "categories_") and hasattr(part, "handle_unknown"):
        for column, known in zip(columns, part.categories_, strict=True):
            if np.asarray(known).dtype.kind in "fiu" and np.isfinite(known).any():
                numbers = np.asarray(known, np.float32)
                found[column] = numbers[np.isfinite(numbers)], part.handle_unknown != "error"
    for one, read in _parts_with_columns(part, columns):
        found |= encoded_categories(one, read)
    return found


def _parts_with_columns(part: Any, columns: Sequence[int]) -> Iterator[tuple[Any, Sequence[int] | None]]:
    """The parts of a pipeline, a ColumnTransformer or a FeatureUnion, with the columns that each reads."""
    read: Sequence[int] | None = columns
    for _, one in getattr(part, "steps", ()):
        yield one, read
        # What fills in missing values leaves each column in its place; nothing else is known to.
        read = read if type(one).__name__ == "SimpleImputer" else None
    for _, one, places in getattr(part, "transformers_", ()):
        numbers = np.atleast_1d(places) if isinstance(places, list | np.ndarray | int) else np.zeros(0)
        # No "drop" or "passthrough"; the converter takes columns by their numbers alone.
        if not isinstance(one, str) and numbers.dtype.kind == "i":
            yield one, [columns[place] for place in numbers]
    for _, one in getattr(part, "transformer_list", ()):
        yield one, columns


def _kept_ranges(classifier: Any, count: int) -> list[Range]:
    return [(kept.min(axis=0), kept.max(axis=0)) for kept in kept_rows(classifier, count)]


def _places(ranges: list[Range], count: int) -> Range:
    """The middle and half the width, (f,), of the range that each column's values lie in."""
    low = np.min([np.full(count, np.inf), *(one for one, _ in ranges)], axis=0)
    high = np.max([np.full(count, -np.inf), *(one for _, one in ranges)], axis=0)
    centre, spread = np.zeros(count), np.ones(count)
    known = low <= high
    centre[known] = (low[known] + high[known]) / 2
    spread[known] = (high[known] - low[known]) / 2 + 0.01 * np.abs(centre[known])
    spread[spread == 0] = 1
    return centre, spread


def _readers(graph: onnx.GraphProto) -> Iterator[tuple[str, dict[str, Any]]]:
    """Operators that read the features themselves, with their attributes."""
    given = {graph.input[0].name}
    for node in graph.node:
        if node.input and node.input[0] in given:
            if node.op_type in ("Cast", "Identity", "Imputer"):
                given.add(node.output[0])
            yield node.op_type, attributes_of(node)


def _comparisons(known: Mapping[str, Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Column, value and mode of every comparison of a node of trees; float32, as ONNX Runtime compares."""
    modes = np.array(known["nodes_modes"])
    inner = modes != b"LEAF"
    columns, values = (np.array(known[name])[inner] for name in ("nodes_featureids", "nodes_values"))
    return columns, values.astype(np.float32), modes[inner]


def _ranges_in(graph: onnx.GraphProto, count: int) -> list[Range]:
    """Lowest and highest values, (f,), that nodes of a graph hold features against; infinite where they do not."""
    ranges = []
    for operator, known in _readers(graph):
        if operator == "Scaler":
            offset, scale = (np.broadcast_to(np.array(known[name]), count) for name in ("offset", "scale"))
            ranges.append((offset - 1 / scale, offset + 1 / scale))
        elif operator in TREES:
            columns, values, _ = _comparisons(known)
            # Trees tell missing values from all others by a comparison with infinity, or the largest number.
            usual = np.abs(values) < np.finfo(np.float32).max
            low, high = np.full(count, np.inf), np.full(count, -np.inf)
            np.minimum.at(low, columns[usual], values[usual])
            np.maximum.at(high, columns[usual], values[usual])
            ranges.append((low, high))
    return ranges


def _categories_in(graph: onnx.GraphProto) -> dict[int, npt.NDArray[np.float32]]:
    """Columns that trees hold against single values, and these values."""
    found: dict[int, npt.NDArray[np.float32]] = {}
    for operator, known in _readers(graph):
        if operator in TREES:
            columns, values, modes = _comparisons(known)
            for column in set(columns[modes == b"BRANCH_EQ"].tolist()):
                found[column] = np.unique([*found.get(column, ()), *values[columns == column]]).astype(np.float32)
    return found


def stand_ins(classifier: Any) -> list[float]:
    """Numbers that stand for missing values in some part of a classifier, as -999 does."""
    found = []
    for part in parts_of(classifier):
        given = (getattr(part, name, None) for name in ("missing", "missing_values"))
        found += [float(one) for one in given if isinstance(one, int | float) and np.isfinite(one)]
    return sorted(set(found))


def _columns_with_nan(ask: Callable[[Rows], Rows], row: Rows) -> npt.NDArray[np.bool_]:
    """The columns, (f,), where the original answers a row float32 (1, f) that lacks a value."""

    def answers(lacking: Any) -> bool:
        tried = row.copy()
        tried[:, lacking] = np.nan
        try:
            return bool(np.isfinite(ask(tried)).all())
        # The original may refuse with anything.
        except Exception:
            return False

    count = row.shape[1]
    if answers(slice(None)):
        return np.ones(count, bool)
    return np.array([answers(column) for column in range(count)])
