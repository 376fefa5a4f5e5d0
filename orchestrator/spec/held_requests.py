"""How many requests a cascade's process has yet to answer, kept where it can be read when that process is dead.

Triton answers for a Python model that dies inside `execute`. Requests that the model kept for later are answered
by nobody, so who repairs a dead process must know whether there were any. Each process keeps its number in a file
of eight bytes, named with its process id.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path

from orchestrator.files import open_own

# Environment variable with what the names of the files begin with, folder included; unset where nobody asks.
HELD_REQUESTS = "COMMITTEE_HELD_REQUESTS"
_BYTES = 8


def held_requests(prefix: str, pid: int) -> int | None:
    """The number that a process kept; None where it kept none."""
    try:
        with open_own(Path(f"{prefix}{pid}")) as file:
            return int.from_bytes(file.read(_BYTES), "little")
    except OSError:
        return None


def number_of_held_requests() -> memoryview:
    """One writable int64, in the file where somebody asks for it, else in this process alone."""
    prefix = os.environ.get(HELD_REQUESTS)
    if prefix is None:
        return memoryview(bytearray(_BYTES)).cast("q")
    path = Path(f"{prefix}{os.getpid()}")
    # A new file: through a link that somebody else put there, any file of this user's would be overwritten.
    with suppress(PermissionError, FileExistsError):
        path.unlink(missing_ok=True)
        with path.open("x+b") as file:
            file.write(bytes(_BYTES))
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("q")
    return memoryview(bytearray(_BYTES)).cast("q")
