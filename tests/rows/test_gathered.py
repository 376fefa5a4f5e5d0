"""Small blocks are put together, whatever their rows are."""

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.errors import DataError
from orchestrator.rows.blocks import RefusedRow, RowBlock, gathered
from orchestrator.spec.rows import stacked


def test_rows_ids_carried_columns_and_refusals_keep_their_order() -> None:
    parts = [
        RowBlock(
            ids=np.array([first, first + 1]),
            rows={"a": np.full((2, 3), first), "text": np.array([b"x", b"y"], object)[:, None]},
            refused=(RefusedRow(id=100 + first, reason="bad"),),
            kept={"numpy": np.array(["u", "v" * first]), "arrow": pa.array([first, None])},
        )
        for first in (0, 2, 4)
    ]
    empty = RowBlock(ids=np.zeros(0, np.int64), rows=np.zeros((0,)), refused=(RefusedRow(id=9, reason="worse"),))
    first, second = gathered([parts[0], empty, parts[1], parts[2]], 8)
    assert first.ids.tolist() == [0, 1, 2, 3]
    assert first.rows["a"][:, 0].tolist() == [0, 0, 2, 2]
    assert first.rows["text"].tolist() == [[b"x"], [b"y"]] * 2
    assert [one.id for one in first.refused] == [100, 9, 102]
    assert first.kept["numpy"].tolist() == ["u", "", "u", "vv"]
    assert first.kept["arrow"].to_pylist() == [0, None, 2, None]
    assert second is parts[2]


def test_rows_of_different_lengths_stay_as_they_are() -> None:
    rows = [np.arange(length) for length in (2, 2, 5, 3)]
    parts = [RowBlock(ids=np.arange(2), rows=stacked(rows[at : at + 2])) for at in (0, 2)]
    (whole,) = gathered(parts, 100)
    assert [row.tolist() for row in whole.rows] == [row.tolist() for row in rows]


def test_what_was_read_before_a_fault_comes_before_it() -> None:
    def blocks():
        yield RowBlock(ids=np.arange(3), rows=np.zeros((3, 1)))
        raise DataError("file", got="damage")

    found = gathered(blocks(), 100)
    assert len(next(found).ids) == 3
    with pytest.raises(DataError, match="damage"):
        next(found)
