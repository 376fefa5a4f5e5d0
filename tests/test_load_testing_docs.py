"""docs/load-testing.md: its commands run as they stand, against the committed digits cascade."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/load-testing.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line]


def said_by(command: str, *, address: str, rows: Path) -> str:
    """What a command of the page prints; only addresses and the file's place are changed."""
    text = command.replace("127.0.0.1:8001", address).replace("build/rows.json", str(rows))
    words = shlex.split(text)
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.triton
def test_perf_analyzer_measures_the_cascade_and_each_of_its_members(tmp_path: Path) -> None:
    serve, inputs, analyzer = (command for command in COMMANDS if not command.startswith("pip"))
    assert serve.split()[:2] == ["committee", "serve"]
    options = ServeOptions(repository=ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0)
    rows = tmp_path / "rows.json"
    with EmbeddedServer(options) as server:
        written = said_by(inputs, address=server.grpc_address, rows=rows)
        assert re.search(r"15\.\d % of them hard|14\.\d % of them hard", written)
        steps = len(json.loads(rows.read_text())["data"])
        assert all(steps % divisor for divisor in range(2, steps))
        measured = said_by(analyzer, address=server.grpc_address, rows=rows)
    assert "Throughput:" in measured
    for member in ("digits_small", "digits_medium", "digits_large"):
        # It prints the requests that each member answered in the window.
        part = measured.split(member, 1)[1]
        assert int(re.search(r"Inference count: (\d+)", part)[1]) > 0
