"""What Triton's log says, for people who would rather not read it."""

from __future__ import annotations

import re
from pathlib import Path

# Every machine without a GPU prints these, and they are never the reason.
_HARMLESS = re.compile(r"cuda|nvml|dcgm|pinned", re.IGNORECASE)
# Information (I1124 ...), tables, blank lines and what `reasons` tells better; what is left are warnings, errors
# and what models print, Python's "Failed to initialize" with its frames among it.
_CHATTER = re.compile(r"^(I\d{4} (?!.*Failed)|E\d{4} .*failed to load '|error: creating server|[|+]|\s*$)")
_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)")
_POLLED = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)")
_ERROR = re.compile(r'^E\d{4} \S+ +\d+ \S+\] *"?(?P<reason>.*)$')
_LOADED = re.compile(r"successfully loaded '([^']+)'")
# Triton's code and Python's exception stand before the sentence a person wants.
_PREFIX = re.compile(r"^(Internal|Invalid argument|Unavailable|Not found|Unsupported|Unknown): ")


def tail(path: Path | None, lines: int) -> list[str]:
    """The last lines of a log that a person may want to see; empty when there is no log."""
    kept = [line for line in _lines(path) if not _CHATTER.match(line) and not _HARMLESS.search(line)]
    return kept[-lines:]


def loaded_models(path: Path | None) -> set[str]:
    """Names of the models that have loaded so far."""
    return {name for line in _lines(path) for name in _LOADED.findall(line)}


def reasons(path: Path | None) -> list[str]:
    """Why the server did not start, one text per model at fault; empty when the log does not say."""
    found: dict[str, str] = {}
    for pattern in (_POLLED, _FAILED):
        for line in _lines(path):
            match = pattern.search(line)
            if match:
                found.setdefault(
                    match["model"], f"model {match['model']}: {_cleaned(match['reason'], match['model'])}"
                )
    if found:
        return list(found.values())
    errors = [match["reason"] for line in _lines(path) for match in [_ERROR.match(line)] if match]
    return list(dict.fromkeys(_cleaned(error) for error in errors if not _HARMLESS.search(error)))


def is_port_in_use(reason: str) -> bool:
    """True when that reason is another process on one of the ports."""
    return "already in use" in reason


def _cleaned(reason: str, model: str = "") -> str:
    # The log writes line ends of a message as \n; from "At:" on follows where in the code, which is in the log.
    text = reason.split("\\n\\nAt:")[0].replace("\\n", " ").strip().strip('"').strip()
    text = _PREFIX.sub("", text)
    return text.removeprefix("TritonModelException: ").removeprefix(f"{model}: ")


def _lines(path: Path | None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError:
        return []
