"""The command line where a write fails in the middle, as on a full disk."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A limit on the size of files fails a write in the middle, too, and needs no disk of its own.
_LIMITED = """
import resource, sys
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from orchestrator.__main__ import run
sys.exit(run(sys.argv[2:]))
"""


def assert_told_of_full_disk(words: Sequence[object], *, most_bytes: int, written: Path) -> None:
    """Runs the command with that limit; it names what it wrote, or what lies in it, in one line."""
    command = [sys.executable, "-c", _LIMITED, str(most_bytes), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: no space left on {written}"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
