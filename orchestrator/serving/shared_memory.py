"""Shared memory of one server: names that are its own, and what dead ones have left behind.

Whoever has a server keeps a lock on a file in /dev/shm, and so does the server itself. The kernel lets go of it
when the last of them has ended, however that came, so a file that can be locked tells of memory that nobody uses.
That holds for containers which share /dev/shm, too, whose processes do not see each other.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from orchestrator.files import open_own
from orchestrator.probe import mark_of, namespace_of, start_of
from orchestrator.serving.machine import SHM, WORK_FOLDER

PREFIX = "committee_"  # of every name
_OWNER = "owner"


class SharedMemoryClaim:
    """A prefix for names in /dev/shm that no other server has; `folder` goes with it if nobody releases the claim.

    Attributes:
        prefix: what the names begin with.
        file_number: of the lock, to be inherited by processes that use the memory.
    """

    def __init__(self, folder: Path) -> None:
        self.prefix = f"{PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"
        self.file_number = os.open(self._owner, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        # Shared, so that it is the same for a cleaner whether this line has run: it asks for the lock alone.
        fcntl.flock(self.file_number, fcntl.LOCK_SH)
        os.write(self.file_number, os.fsencode(folder))

    def release(self) -> None:
        """Removes everything with the prefix; the processes that used it have ended."""
        if self.file_number >= 0:
            os.close(self.file_number)
            self.file_number = -1
        _remove(self.prefix)

    @property
    def _owner(self) -> Path:
        return SHM / f"{self.prefix}{_OWNER}"


def remove_ownerless() -> int:
    """Removes what servers of this user left behind whose processes have all ended; returns the bytes of it."""
    freed = 0
    for owner in SHM.glob(f"{PREFIX}*_{_OWNER}"):
        # Somebody else may be at it, and a file without its folder's name is a claim that is being made.
        with contextlib.suppress(OSError), open_own(owner) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder := os.fsdecode(file.read()):
                freed += _remove(owner.name.removesuffix(_OWNER))
                _remove_work_folder(Path(folder))
    _remove_marks()
    return freed


def _remove_marks() -> None:
    """Removes what told the cascades of servers to drain that have ended, where that can be seen from here."""
    for path in SHM.glob(mark_of("*").name):
        with contextlib.suppress(OSError, ValueError), open_own(path) as file:
            start, *_, namespace = file.read().decode().split()
            server = int(path.name.rpartition("_")[2].partition(".")[0])
            if namespace == namespace_of(os.getpid(), "pid") and not _runs_since(server, start):
                path.unlink()


def _runs_since(process: int, start: str) -> bool:
    try:
        return start_of(process) == start
    except OSError:
        return False


def _remove(prefix: str) -> int:
    freed = 0
    # The file with the lock goes last, so that a cleaner that is ended itself leaves the rest to the next.
    for path in sorted(SHM.glob(f"{prefix}*"), key=lambda path: path.name.endswith(_OWNER)):
        with contextlib.suppress(OSError):
            freed += 512 * path.lstat().st_blocks
            path.unlink()
    return freed


def _remove_work_folder(folder: Path) -> None:
    if folder.name.startswith(WORK_FOLDER) and folder.parent in (Path(tempfile.gettempdir()), Path("/tmp")):
        shutil.rmtree(folder, ignore_errors=True)
