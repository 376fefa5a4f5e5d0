"""docs/load-testing.md: its commands run as they stand, against the committed digits cascade."""

import csv
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.rows.digits import digits_split
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import cascade_from_path
from perf.load.inputs import write_input_data

ROOT = Path(__file__).parents[1]


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


PAGE = (ROOT / "docs/load-testing.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines() if line]


def said_by(command: str, *, address: str, rows: Path, code: int = 0) -> str:
    """What a command of the page prints; only addresses and the file's place are changed."""
    text = command.replace("127.0.0.1:8001", address).replace("build/rows.json", str(rows))
    words = shlex.split(text)
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@pytest.mark.triton
@pytest.mark.timeout(240)
def test_perf_analyzer_measures_the_cascade_and_each_of_its_members(tmp_path: Path) -> None:
    serve, inputs, analyzer = COMMANDS[:3]
    assert serve.split()[:2] == ["committee", "serve"]
    options = ServeOptions(repository=ROOT / "model_repository", http_port=0, grpc_port=0, metrics_port=0)
    rows = tmp_path / "rows.json"
    with EmbeddedServer(options) as server:
        written = said_by(inputs, address=server.grpc_address, rows=rows)
        assert re.search(r"15\.\d % of them hard|14\.\d % of them hard", written)
        steps = len(json.loads(rows.read_text())["data"])
        assert all(steps % divisor for divisor in range(2, steps))
        measured = said_by(analyzer, address=server.grpc_address, rows=rows)
        said_by(inputs.replace("--hard 0.15", "--hard 0"), address=server.grpc_address, rows=rows)
        never_asked = said_by(analyzer, address=server.grpc_address, rows=rows, code=99)
    assert "failed to find the requested model version" in never_asked
    assert "failed to find the requested model version" in " ".join(PAGE.split())
    assert "Throughput:" in measured
    for member in ("digits_small", "digits_medium", "digits_large"):
        # It prints the requests that each member answered in the window.
        part = measured.split(member, 1)[1]
        assert int(re.search(r"Inference count: (\d+)", part)[1]) > 0


def test_model_analyzers_settings_fit_the_committed_cascade() -> None:
    settings = (ROOT / "perf/model_analyzer.yaml").read_text(encoding="utf-8")
    spec = cascade_from_path(ROOT / "model_repository/digits_cascade/1/cascade.json")
    members = ",".join(member.name for member in spec.members)
    assert f"bls_composing_models: {members}" in settings
    # A smaller limit than the plan's makes Triton refuse the runtime's calls.
    for bound in ("min", "max"):
        found = re.search(rf"run_config_search_{bound}_model_batch_size: (\d+)", settings)
        assert {int(found[1])} == {member.max_batch_size for member in spec.members}


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(900)
def test_model_analyzer_profiles_the_cascade_with_its_members(tmp_path: Path) -> None:
    program = shutil.which("model-analyzer")
    if program is None:
        pytest.skip("no model-analyzer on PATH (docs/load-testing.md installs it into an environment of its own)")
    write_input_data(tmp_path / "rows.json", {"image": digits_split("test").images[:541]})
    ports = [find_port() for _ in range(3)]
    settings = (ROOT / "perf/model_analyzer.yaml").read_text(encoding="utf-8")
    changed = {
        "build/rows.json": str(tmp_path / "rows.json"),
        "build/model_analyzer": str(tmp_path),
        **{
            f"127.0.0.1:{known}": f"127.0.0.1:{port}"
            for known, port in zip((8000, 8001, 8002), ports, strict=True)
        },
        "run_config_search_max_instance_count: 2": "run_config_search_max_instance_count: 1",
        "run_config_search_max_concurrency: 16": "run_config_search_max_concurrency: 2",
    }
    for old, new in changed.items():
        assert old in settings
        settings = settings.replace(old, new)
    # The endpoints say where to ask, the flags where to listen.
    settings += "triton_server_flags:\n" + "".join(
        f"  {name}-port: {port}\n" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)
    )
    (tmp_path / "settings.yaml").write_text(settings, encoding="utf-8")
    command = COMMANDS[-1]
    assert command.startswith("build/model-analyzer/bin/model-analyzer profile -f perf/model_analyzer.yaml")
    words = [program, "profile", "-f", str(tmp_path / "settings.yaml")]
    for option, name in re.findall(r'(--[a-z-]+) "\$\(python -m perf (\w+)\)"', command):
        words += [
            option,
            subprocess.check_output([sys.executable, "-m", "perf", name], cwd=ROOT, text=True).strip(),
        ]
    assert len(words) == 8
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for member in ("digits_small", "digits_medium", "digits_large"):
        assert f"Creating model config: {member}_config_default" in done.stdout + done.stderr
    table = (tmp_path / "results/metrics-model-inference.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(table.strip().splitlines()))
    assert {line["Model Config Path"] for line in lines} > {"digits_cascade_config_default"}
    assert all(float(line["Throughput (infer/sec)"]) > 10 for line in lines)
