"""The machine a run was made on, as results name it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from orchestrator.spec.processor import core_count

ROOT = Path(__file__).parents[2]
_MEASURED = ("orchestrator", "perf/routes", "perf/load")


@dataclass(frozen=True, kw_only=True)
class BenchMachine:
    """Where and with what a run was made.

    Args:
        cpu: name of the processor and how many there are.
        cores: this process may use.
        memory_gib: in all.
        platform: kernel and C library.
        python, triton, onnxruntime, perf_analyzer: versions.
        commit: of the checkout, with a mark when files differ from it; empty outside of one.
        priority: of the run, which its server has too; 0 is the usual one, and less changes how batches form.
        cores_in_use: by other work when the run began, which makes figures worthless.
    """

    cpu: str
    cores: int
    memory_gib: float
    platform: str
    python: str
    triton: str
    onnxruntime: str
    perf_analyzer: str
    commit: str
    cores_in_use: float
    priority: int = 0

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        return asdict(self)

    @property
    def is_busy(self) -> bool:
        """Whether something else was running."""
        return self.cores_in_use > 0.125 * self.cores

    @property
    def words(self) -> str:
        """One sentence."""
        return (
            f"{self.cpu} (cores used: {self.cores}), {self.memory_gib:.0f} GiB, {self.platform}, "
            f"Python {self.python}, Triton {self.triton}, onnxruntime {self.onnxruntime}, "
            f"perf_analyzer {self.perf_analyzer}"
            + (f", commit {self.commit}" if self.commit else "")
            + (f", priority {self.priority} (nice)" if self.priority else "")
        )


def bench_machine(*, triton: str, perf_analyzer: str, cores_in_use: float) -> BenchMachine:
    """The machine this runs on.

    Args:
        triton: version the server gives.
        perf_analyzer: version of the program.
        cores_in_use: taken before the run began.
    """
    return BenchMachine(
        cpu=cpu_name(),
        cores=core_count(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        platform=platform.platform(),
        python=platform.python_version(),
        triton=triton,
        # Its distribution may be called onnxruntime-gpu.
        onnxruntime=onnxruntime.__version__,
        perf_analyzer=perf_analyzer,
        commit=commit_here(),
        cores_in_use=cores_in_use,
        priority=os.getpriority(os.PRIO_PROCESS, 0),
    )


def code_hash(root: Path = ROOT) -> str:
    """Of the runtime and of the baselines, so that one run never mixes two versions of what it measures."""
    digest = hashlib.sha256()
    for folder in _MEASURED:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cores_in_use_now(seconds: float = 2.0) -> float:
    """Processors that anything on this machine keeps busy while nothing of ours runs.

    Looked at for a moment: a load average still holds what ended a minute ago.

    Args:
        seconds: how long to look.
    """
    before, start_s = _busy_s(), time.monotonic()
    time.sleep(seconds)
    return max(0.0, (_busy_s() - before) / (time.monotonic() - start_s))


def _busy_s() -> float:
    """Seconds all processors together have spent on anything but waiting, since the machine started."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    ticks = [int(word) for word in line.split()[1:]]
    # user nice system idle iowait irq softirq steal; what guests use is in user already.
    return (sum(ticks[:8]) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def commit_here() -> str:
    """Of the checkout, with a mark when files differ from it; empty outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine_here() -> dict[str, str]:
    """The machine in a few words, for results."""
    return {"platform": platform.platform(), "cpu": cpu_name(), "python": platform.python_version()}


def cpu_name() -> str:
    """The processor's own name, as often as there are of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def write_results(document: dict[str, Any], path: Path) -> None:
    """Writes a document as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
