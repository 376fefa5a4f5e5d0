"""The machine a study ran on, as results name it, and the one way its results are written."""

import functools
import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import psutil

from orchestrator.spec.processor import core_count

ROOT = Path(__file__).parents[2]
_MEASURED = ("orchestrator", "perf/routes", "perf/load")


@dataclass(frozen=True, kw_only=True)
class BenchMachine:
    """Where and with what a run was made.

    Args:
        cpu: processor model and how many logical processors there are.
        cores: this process may use.
        platform: kernel and C library.
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

    @property
    def is_busy(self) -> bool:
        """Whether other work took more than an eighth of the cores."""
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
    """The machine this runs on, with the versions that the server and perf_analyzer give of themselves."""
    return BenchMachine(
        cpu=cpu_name(),
        cores=core_count(),
        memory_gib=psutil.virtual_memory().total / 2**30,
        platform=platform.platform(),
        python=platform.python_version(),
        triton=triton,
        # Not by the name of the distribution, which may be onnxruntime-gpu.
        onnxruntime=onnxruntime.__version__,
        perf_analyzer=perf_analyzer,
        commit=commit_here(),
        cores_in_use=cores_in_use,
        priority=os.getpriority(os.PRIO_PROCESS, 0),
    )


def machine_here() -> dict[str, str]:
    """The machine in a few words, for results of studies that start no server."""
    return {"platform": platform.platform(), "cpu": cpu_name(), "python": platform.python_version()}


@functools.cache
def cpu_name() -> str:
    """CPU model and the number of logical processors."""
    import cpuinfo  # start-up time: it asks other programs, which takes a second

    return f"{cpuinfo.get_cpu_info().get('brand_raw', platform.processor())} x {psutil.cpu_count()}"


@dataclass(frozen=True, kw_only=True)
class NvidiaGpu:
    """An NVIDIA GPU: name, version of its driver, and its memory."""

    name: str
    driver: str
    memory_mib: int


def first_gpu() -> NvidiaGpu | None:
    """The GPU that CUDA calls device 0; None where the driver does not answer."""
    import pynvml  # optional: machines without a GPU need no driver library

    # NVML counts all GPUs, whatever the variable hides from CUDA.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
        try:
            if first.isdigit() or not first:
                handle = pynvml.nvmlDeviceGetHandleByIndex(int(first or 0))
            else:
                handle = pynvml.nvmlDeviceGetHandleByUUID(first)
            return NvidiaGpu(
                name=pynvml.nvmlDeviceGetName(handle),
                driver=pynvml.nvmlSystemGetDriverVersion(),
                memory_mib=pynvml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
            )
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def code_hash(root: Path = ROOT) -> str:
    """SHA-256 over the runtime and the baselines, so that one run never mixes two versions of what it measures."""
    digest = hashlib.sha256()
    for folder in _MEASURED:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cores_in_use_now(seconds: float = 2.0) -> float:
    """Processors that anything on this machine keeps busy while nothing of ours runs.

    Looked at for a moment, because a load average still holds what ended a minute ago.
    """
    return psutil.cpu_percent(seconds) / 100 * psutil.cpu_count()


def commit_here() -> str:
    """Commit of the checkout, with a mark when files differ from it; empty outside of one."""
    try:
        words = ["git", "describe", "--always", "--dirty"]
        return subprocess.check_output(words, cwd=ROOT, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_json(document: Any, path: Path) -> None:
    """Writes a document as JSON, indented by two, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
