from pathlib import Path

import numpy as np
import pytest

from export.parity import rows_from_path, varied_rows
from orchestrator.errors import DataError
from orchestrator.spec import TensorSpec


def test_rows_of_a_file_must_fit(tmp_path: Path) -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 4, 4))
    rows = varied_rows(tensor, 5)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", images=rows, labels=np.zeros(5))
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npy", tensor), rows)
    np.testing.assert_array_equal(rows_from_path(tmp_path / "a.npz", tensor), rows)
    np.save(tmp_path / "b.npy", rows.astype(np.float32))
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    for name, says in (("b.npy", "float32"), ("c.npy", "cannot read"), ("d.npy", "no such file")):
        with pytest.raises(DataError, match=says):
            rows_from_path(tmp_path / name, tensor)


def test_varied_rows_differ_from_each_other_and_stay_the_same_for_a_seed() -> None:
    tensor = TensorSpec(name="image", dtype="UINT8", dims=(3, 24, 24))
    rows = varied_rows(tensor, 16)
    assert len({row.tobytes() for row in rows}) == 16
    assert np.ptp(rows.mean(axis=(1, 2, 3))) > 40
    np.testing.assert_array_equal(rows, varied_rows(tensor, 16))
