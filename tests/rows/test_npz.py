"""Archives from elsewhere: whatever is wrong with one is one line, and what is not ours is left alone."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.records import records_from_path

GOOD = {"ids": np.arange(3), "outputs/m": np.zeros((3, 2), np.float32), "cost/m": np.float64(1)}


def archive(path: Path, **entries: bytes) -> Path:
    """Good records, with other bytes for some of their entries."""
    np.savez(path, **GOOD)
    with zipfile.ZipFile(path) as before:
        kept = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w") as after:
        for name, data in (kept | entries).items():
            after.writestr(name, data)
    return path


def npy(header: str) -> bytes:
    """An array file with a header of its own and next to no data."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 8


def shaped(shape: str) -> bytes:
    return npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n")


BROKEN = {
    "more than memory": {"outputs/m.npy": shaped("(1000000000000000, 5)")},
    "more than a number": {"outputs/m.npy": shaped("(1000000000000000000000000000000, 5)")},
    "no header": {"outputs/m.npy": npy("((((\n")},
    "half a header": {"ids.npy": npy("{'descr'")},
    "no array": {"outputs/small": b"hello", "cost/small": b"1"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_entries_that_are_no_arrays_are_one_line(tmp_path: Path, case: str) -> None:
    path = archive(tmp_path / "r.npz", **BROKEN[case])
    with pytest.raises(DataError, match="numpy cannot read") as caught:
        records_from_path(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encrypted_archive_is_one_line(tmp_path: Path) -> None:
    path = archive(tmp_path / "r.npz")
    data = bytearray(path.read_bytes())
    # The lowest flag of an entry says that it is encrypted; it stands before and in the table of contents.
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        records_from_path(path)


def test_arrays_that_are_not_ours_are_not_unpacked(tmp_path: Path) -> None:
    path, size = tmp_path / "r.npz", 1 << 26
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros(1, np.uint8))
    header = buffer.getvalue()[:-1].replace(b"(1,)", f"({size},)".encode())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("weights.npy", header + bytes(size))
        for name, array in GOOD.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            file.writestr(f"{name}.npy", buffer.getvalue())
    tracemalloc.start()
    assert records_from_path(path).rows == 3
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 8
