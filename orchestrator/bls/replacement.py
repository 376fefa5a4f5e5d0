"""Whether a version of a cascade may take the place of one that serves: only once all its members are there.

While a server starts nothing is asked: it loads its models in any order, and on Triton 24.10 a question about a
model can end it then. It listens only after that, which shows in /proc in every control mode and with any ports.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.spec.planned_models import PlannedModel

# Members may be loading at the same time: by another load request, or with the cascade in one poll of the
# repository, after which Triton tries a cascade that was refused again only when its files change.
WAIT_S, POLLED_WAIT_S = 3.0, 60.0
_ASK_S = 0.1
_LISTENING = "0A"  # as /proc/net writes the state of a socket


def is_model_ready(pb_utils: Any, name: str, version: int | None) -> bool:
    """Whether the server would answer for a version of a model, None for any; raises while it starts or stops."""
    return bool(pb_utils.is_model_ready(name, "" if version is None else str(version)))


def missing_members(
    pb_utils: Any, cascade: str, members: Iterable[PlannedModel], *, server: int
) -> dict[str, str]:
    """Member -> what is not as planned in the server after a wait; empty where no version of the cascade serves.

    Args:
        pb_utils: the server's Python module.
        cascade: name of the cascade.
        members: of the version that is to be loaded.
        server: process id of the server.
    """
    if not is_listening(server) or not _is_ready(pb_utils, cascade, None):
        return {}
    until_s = time.monotonic() + (POLLED_WAIT_S if _polls(server) else WAIT_S)
    members = tuple(members)
    while True:
        said = {one.name: one.fault(lambda *model: _is_ready(pb_utils, *model)) for one in members}
        missing = {name: text for name, text in said.items() if text is not None}
        if not missing or time.monotonic() >= until_s:
            return missing
        time.sleep(_ASK_S)


def _is_ready(pb_utils: Any, name: str, version: int | None) -> bool:
    try:
        return is_model_ready(pb_utils, name, version)
    except Exception:  # it stops
        return False


def is_listening(process: int) -> bool:
    """Whether a process accepts TCP connections."""
    listening = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            lines = map(str.split, Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:])
            listening |= {f"socket:[{words[9]}]" for words in lines if words[3] == _LISTENING}
    with suppress(OSError):
        for path in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if str(path.readlink()) in listening:
                    return True
    return False


def _polls(server: int) -> bool:
    """Whether a server loads by itself whatever appears in its repository."""
    with suppress(OSError):
        words = Path(f"/proc/{server}/cmdline").read_text(errors="replace").replace("=", "\0")
        return "\0--model-control-mode\0poll\0" in words
    return False
