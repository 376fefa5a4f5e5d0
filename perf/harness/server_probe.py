"""What a window cost the server: processor time, memory, and rows and calls per member."""

import contextlib
import os
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as triton

from orchestrator.client.error_mapping import FOREIGN, error_from
from orchestrator.serving.machine import SHM
from orchestrator.serving.stubs import stub_from_command


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """One process of a server, its shared memory and the Triton model it runs, None for the server itself."""

    pid: int
    model: str | None
    shm: str | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What processes hold: private and file pages of each, and pages of their shared memory that exist."""

    resident_bytes: int
    shm_bytes: int

    @property
    def total_bytes(self) -> int:
        """Resident and shared together."""
        return self.resident_bytes + self.shm_bytes


def server_processes(pid: int) -> list[ServerProcess]:
    """The server and every Python model's process: all that share the session the server leads."""
    found = []
    for one in sorted(psutil.pids()):
        with contextlib.suppress(OSError):  # it is gone
            if os.getsid(one) == pid:
                found.append(_process(one))
    return found


def cpu_s(processes: Collection[ServerProcess]) -> float:
    """Processor seconds they have used so far, in user and kernel mode; nothing for those that are gone."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(process.pid).cpu_times()
            total += used.user + used.system
    return total


def memory_of(processes: Collection[ServerProcess], models: Collection[str] | None = None) -> Memory:
    """What the server and the processes of some models hold now; None counts those of all models."""
    chosen = [one for one in processes if models is None or one.model is None or one.model in models]
    return Memory(
        resident_bytes=sum(_resident_bytes(one.pid) for one in chosen),
        shm_bytes=sum(512 * _blocks(SHM / name) for name in {one.shm for one in chosen} if name),
    )


class PeakMemory:
    """Watches the memory of a server while a block runs; `models` as `memory_of` has them."""

    def __init__(
        self,
        processes: Collection[ServerProcess],
        models: Collection[str] | None = None,
        *,
        interval_s: float = 0.5,
    ) -> None:
        self._processes, self._models, self._interval_s = processes, models, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.peak = Memory(resident_bytes=0, shm_bytes=0)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._look()

    def _look(self) -> None:
        now = memory_of(self._processes, self._models)
        if now.total_bytes > self.peak.total_bytes:
            self.peak = now


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What Triton counted for one model so far: rows answered, their requests, and the batches they came in."""

    rows: int = 0
    requests: int = 0
    calls: int = 0

    def since(self, then: "Counts") -> "Counts":
        """What was counted since an earlier reading."""
        return Counts(
            rows=self.rows - then.rows, requests=self.requests - then.requests, calls=self.calls - then.calls
        )


class Statistics:
    """Triton's statistics, read over gRPC from host:port."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = triton.InferenceServerClient(address)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def counts(self) -> dict[str, Counts]:
        """Rows and calls so far, by model.

        Raises:
            ClientError: the server does not answer.
        """
        found = self._asked(lambda: self._client.get_inference_statistics(as_json=True))["model_stats"]
        return {
            str(one["name"]): Counts(
                rows=int(one.get("inference_count", 0)),
                requests=int(one.get("inference_stats", {}).get("success", {}).get("count", 0)),
                calls=int(one.get("execution_count", 0)),
            )
            for one in found
        }

    def models_behind(self, model: str) -> tuple[str, ...]:
        """A model and, of a native ensemble, its steps.

        Raises:
            ClientError: the server does not answer or does not have it.
        """
        config = self._asked(lambda: self._client.get_model_config(model, as_json=True))["config"]
        steps = config.get("ensemble_scheduling", {}).get("step", [])
        return (model, *(str(step["model_name"]) for step in steps))

    def _asked(self, call: Any) -> Any:
        try:
            return call()
        except FOREIGN as error:
            raise error_from(error, what=f"server {self._address}") from error


def counted_between(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> dict[str, Counts]:
    """What was counted between two readings, of the models that were asked."""
    found = {name: now.since(before.get(name, Counts())) for name, now in after.items()}
    return {name: one for name, one in found.items() if one.rows > 0}


def unconnected_sockets(process: ServerProcess) -> int:
    """Sockets of a process whose connections have ended and that it has not closed.

    Raises:
        OSError, psutil.Error: the process is gone, or belongs to somebody else.
    """
    sockets = 0
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            sockets += str(descriptor.readlink()).startswith("socket:")
    return max(0, sockets - len(psutil.Process(process.pid).net_connections("all")))


def _process(pid: int) -> ServerProcess:
    words: list[str] = []
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
    stub = stub_from_command(pid, words)
    if stub is None:
        return ServerProcess(pid=pid, model=None, shm=None)
    return ServerProcess(pid=pid, model=stub.model, shm=stub.shm)


def _resident_bytes(pid: int) -> int:
    """Resident pages less the shared ones (shared memory), which would count once per process."""
    # psutil counts resident pages with the shared ones, or reads every mapping of the process.
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    wanted = ("RssAnon:", "RssFile:")
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(wanted))


def _blocks(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_blocks
    return 0
