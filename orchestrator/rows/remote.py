"""Rows that lie elsewhere: whatever fsspec reads, such as s3:// or https://, copied here before it is read."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.errors import DataError
from orchestrator.files import disk_error_from


def is_remote(data: str) -> bool:
    """Whether a name is a URL."""
    return "://" in data


@contextlib.contextmanager
def local_copy(data: str) -> Iterator[str]:
    """The name of the data on this machine; of a URL that of a copy, which is gone when the block ends.

    A copy has the time of the original's last change, so that a job that goes on knows it again.

    Raises:
        DataError: there is nothing, or it cannot be read.
        DiskError: there is no room for the copy.
        ModuleNotFoundError: fsspec, or what it needs for that kind of URL, is not installed.
    """
    if not is_remote(data):
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="committee-") as folder:
        try:
            place = _copied(data, Path(folder))
        except (DataError, ImportError):
            raise
        # Every kind of file system has exceptions of its own.
        except Exception as error:
            if isinstance(error, OSError) and (full := disk_error_from(error, folder)) is not None:
                raise full from error
            raise DataError(data, got=f"data that cannot be read ({type(error).__name__}: {error})") from error
        yield f"{place}"


def _copied(data: str, folder: Path) -> Path:
    # fsspec is optional.
    import fsspec

    system, root = fsspec.core.url_to_fs(data)
    is_file = not has_magic(root) and system.isfile(root)
    names: list[str] = [root] if is_file else system.glob(root) if has_magic(root) else system.find(root)
    names = sorted(name for name in names if is_file or system.isfile(name))
    if not names:
        raise DataError(data, got="no such file", expected="at least one")
    steps = PurePosixPath(root).parts
    plain = next((at for at, step in enumerate(steps) if has_magic(step)), len(steps) - is_file)
    for name in names:
        copy = folder.joinpath(*PurePosixPath(name).parts[plain:])
        copy.parent.mkdir(parents=True, exist_ok=True)
        system.get_file(name, f"{copy}")
        changed_ns = _changed_ns(system, name)
        os.utime(copy, ns=(changed_ns, changed_ns))
    return folder.joinpath(*PurePosixPath(names[0]).parts[plain:]) if is_file else folder


def _changed_ns(system: Any, name: str) -> int:
    """A time that stands for the state of a file: file systems do not all know when it was changed."""
    return int(hashlib.sha256(str(system.ukey(name)).encode()).hexdigest()[:15], 16)
