"""`.npz` archives written array by array, whole or not at all, the same bytes for the same arrays."""

import contextlib
import math
import os
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError
from orchestrator.files import disk_faults, replaced_file

Array = npt.NDArray[Any]
# What reading a broken archive raises; numpy lets exceptions of zipfile, zlib and tokenize through. RuntimeError
# means an encrypted archive; MemoryError and OverflowError a header with an impossible shape.
BROKEN = (
    ValueError, OSError, EOFError, KeyError, MemoryError, OverflowError, RuntimeError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# The oldest time a zip can hold. The real one would make two archives of the same arrays differ.
NO_TIME = (1980, 1, 1, 0, 0, 0)


class NpzWriter:
    """Adds arrays to an archive, large ones in parts; made by `npz_writer`."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path

    def add(self, name: str, array: npt.ArrayLike, *, packed: bool = True) -> None:
        """One array that is in memory."""
        whole = np.asarray(array)
        self.stream(name, whole.dtype, shape=whole.shape, parts=[whole], packed=packed)

    def stream(
        self,
        name: str,
        dtype: npt.DTypeLike,
        *,
        shape: tuple[int, ...],
        parts: Iterable[Array],
        packed: bool = False,
    ) -> None:
        """One array of a known dtype and shape, in parts along its first axis, which are cast to the dtype.

        Scores are not packed: they hardly shrink, and reading them back takes ten times as long.
        """
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=NO_TIME)
        entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        # It says which system the file attributes are of, and would otherwise depend on the machine.
        entry.create_system = 3
        entry.external_attr = 0o644 << 16
        form: Any = np.lib.format
        header = {"descr": form.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        # Named here, since several archives may be open at once.
        with disk_faults(self._path), self._archive.open(entry, "w", force_zip64=True) as file:
            form.write_array_header_1_0(file, header)
            for part in parts:
                file.write(_buffer_of(np.ascontiguousarray(part, dtype)) if part.size else b"")


def _buffer_of(array: Array) -> Any:
    """The bytes of a contiguous array, without a copy but for dates, which have no buffer."""
    return array.tobytes() if array.dtype.kind in "mM" else array.data


@contextlib.contextmanager
def npz_writer(path: Path) -> Iterator[NpzWriter]:
    """A writer whose archive appears at `path` when the block ends well, and nowhere when it does not.

    Raises DataError where the folder cannot be written to, DiskError where the disk is full.
    """
    try:
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as temporary, archive_writer(temporary, name=path) as writer:
            yield writer
    except OSError as error:
        raise DataError(f"{path}", got=f"a place that cannot be written to ({error.strerror})") from error


@contextlib.contextmanager
def archive_writer(path: Path, *, name: Path) -> Iterator[NpzWriter]:
    """A writer into the file itself, which is only as whole as the block got; errors call it by a name.

    Raises OSError where it cannot be written, DiskError where the disk is full.
    """
    with path.open("wb") as stream:
        archive = zipfile.ZipFile(stream, "w", allowZip64=True)
        try:
            yield NpzWriter(archive, name)
            archive.close()
        finally:
            # Of an archive that is thrown away zipfile would complain on stderr when it is collected, and it
            # would hide the error of a disk that is full behind one of its own.
            with contextlib.suppress(OSError, ValueError):
                archive.close()


@contextlib.contextmanager
def opened_npz(path: Path, *, what: str, fix: str | None = None) -> Iterator[Any]:
    """An archive of arrays, as numpy opens it; errors of reading in the block name it, too.

    Raises DataError where it is no archive, a truncated one, or one of Python objects.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        # numpy goes by what is in a file, not by its name; an array cannot be entered as an archive can.
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise DataError(what, got="a single array", expected="an archive", fix=fix or "name it .npy")
        with stored:
            yield stored
    except BROKEN as error:
        got = f"a file numpy cannot read ({error})"
        raise DataError(what, got=got, expected="a complete .npz", fix=fix) from error


def arrays_from_path(path: Path, *, what: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """Arrays of an archive, of the names wanted; the others may be of any size.

    Raises DataError where it is no archive, a truncated one, or one of Python objects.
    """
    with opened_npz(path, what=what, fix="record again") as stored:
        return {name: array_of(stored, name) for name in stored.files if wanted(name)}


def array_of(stored: Any, name: str) -> Array:
    """One array of an archive; ValueError where its header and the archive's list do not say the same size.

    A few packed bytes may stand for any number of zeros: more than this machine's memory is refused before it is
    unpacked.
    """
    if f"{name}.npy" not in stored.zip.namelist():
        raise ValueError(f"{name}: no array")
    size = stored.zip.getinfo(f"{name}.npy").file_size
    with stored.zip.open(f"{name}.npy") as file:
        shape, _, dtype = array_header(file)
        expected = file.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{name}: {size} bytes, expected {expected} by its header")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"{name}: {size} bytes when unpacked, expected at most this machine's memory of {memory}")
    array: Array = stored[name]
    return array


def shapes_from_path(path: Path, *, what: str, wanted: Callable[[str], bool]) -> dict[str, tuple[int, ...]]:
    """Shapes of an archive's arrays, by their headers alone; else as `arrays_from_path`."""
    shapes = {}
    with opened_npz(path, what=what, fix="record again") as stored:
        for name in filter(wanted, stored.files):
            with stored.zip.open(f"{name}.npy") as file:
                shapes[name], _, _ = array_header(file)
    return shapes


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape of a `.npy` array, whether it is in Fortran's order, and its dtype; leaves the file behind the header.

    Raises ValueError where it is no array, or one of Python objects.
    """
    form: Any = np.lib.format
    old = form.read_magic(file) == (1, 0)
    shape, in_fortran_order, dtype = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return shape, in_fortran_order, dtype


def extract_array(path: Path, name: str, to: Path) -> None:
    """Copies one array of an archive into a `.npy` file, block by block.

    Raises DataError where the archive is broken, OSError where the file cannot be written.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file, to.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    except OSError:
        raise
    except BROKEN as error:
        raise DataError(f"{path}", got=f"a file numpy cannot read ({error})", fix="record again") from error
