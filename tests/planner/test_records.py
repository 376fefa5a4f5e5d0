from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.records import Records, records_from_path, write_records

GOOD = {
    "ids": np.arange(3),
    "labels": np.array([0, 1, 1]),
    "outputs": {"m": np.zeros((3, 2), np.float32)},
    "cost": {"m": 2.0},
    "meta": {"data": "x"},
}


def test_records_read_back_as_written_with_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    write_records(Records(**GOOD), path)
    back = records_from_path(path)
    assert np.array_equal(back.outputs["m"], GOOD["outputs"]["m"])
    assert (back.cost, back.meta, back.rows, back.classes) == ({"m": 2.0}, {"data": "x"}, 3, 2)
    with np.load(path) as stored:
        assert set(stored.files) == {"ids", "labels", "outputs/m", "cost/m", "meta"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": {}}, "no member outputs"),
        ({"outputs": {"m": np.zeros((3, 2)), "n": np.zeros((2, 2))}, "cost": {"m": 1, "n": 1}}, "one \\(rows"),
        ({"ids": np.array([0, 1, 1])}, "more than once"),
        ({"ids": np.arange(2)}, "2 ids"),
        ({"labels": np.array([0, 1, 2])}, "labels from 0 to 2"),
        ({"labels": np.array([-1, 1, 1])}, "labels from -1"),
        ({"cost": {}}, "no cost of m"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(change: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Records(**{**GOOD, **change})


def test_missing_truncated_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        records_from_path(tmp_path / "none.npz")
    write_records(Records(**GOOD), tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="numpy cannot read"):
        records_from_path(tmp_path / "cut.npz")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(1))
    with pytest.raises(DataError, match="no ids"):
        records_from_path(tmp_path / "foreign.npz")
