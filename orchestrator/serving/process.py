"""The embedded server as an object: start, wait, stop; and the child process it runs in.

Everything it leaves behind, its folder and shared memory, has a prefix of its own and is removed when it stops.
"""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.errors import PortInUseError, ServingError
from orchestrator.probe import STUB, mark, mark_of, wait_until_drained
from orchestrator.serving.child import Child
from orchestrator.serving.control import (
    ModelEntry,
    RepositoryControl,
    check_models,
    drain,
    scan_repository,
)
from orchestrator.serving.machine import (
    SHM,
    ServingMachine,
    allow_open_files,
    check_machine,
    command_from,
    environment_from,
    failure_reasons,
    loaded_models,
    machine_here,
    make_backend_directory,
    make_work_folder,
    nothing_in_flight,
    shell_safe_repository,
)
from orchestrator.serving.options import MIB, Ports, ServeOptions, bracketed, choose_ports, local_host
from orchestrator.serving.shared_memory import SharedMemoryClaim, remove_ownerless
from orchestrator.serving.stubs import DeadStubs, Stub, end_orphans, stubs_of
from orchestrator.spec.held_requests import HELD_REQUESTS

_POLL_S = 0.05
# Time for Triton to end once nothing is in flight; after it, Triton waits for idle connections only.
_EXIT_S = 2.0
# Time for the last answers of drained models to leave Triton.
_SENT_S = 0.5
# Exit statuses of Triton 24.10 when it starts many Python models at once and fails over a lock (`lock_exception`).
_CRASHES = (-signal.SIGABRT, -signal.SIGSEGV)
_ATTEMPTS = 2
# Time for Triton to collect a Python model's process that has ended, or to say why the model does not load.
_COLLECT_S = 2.0
# What a request to a server may raise that is not ready, or hangs.
_NO_ANSWER = (OSError, http.client.HTTPException, ServingError)


class _LostProcessError(ServingError):
    """A Python model's process died while Triton started, which never gets ready then."""


class EmbeddedServer:
    """A Triton process for one model repository; also a context manager that starts and stops it.

    Args:
        options: what to serve and where.
        progress: called with words about every step of starting and stopping.
        machine: to run on; None looks at this one.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        progress: Callable[[str], None] | None = None,
        machine: ServingMachine | None = None,
    ) -> None:
        self.options = options
        self.version = ""
        self._progress = progress or (lambda _: None)
        self._machine = machine
        self.log_path: Path | None = None  # before it was started
        self._models: tuple[ModelEntry, ...] = ()
        self._ports: Ports | None = None
        self._child: Child | None = None
        self._stubs: DeadStubs | None = None
        self._folder: Path | None = None
        self._control_key = secrets.token_hex(16)
        self._told_to_drain: list[str] = []
        self._claim: SharedMemoryClaim | None = None
        # Models that were loaded again -> their processes from before: what dead ones had keeps Triton from ever
        # unloading them. Those of the last load end when their requests are answered.
        self._reloaded: dict[str, set[int]] = {}

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def address(self, host: str, endpoint: str) -> str:
        """host:port of the endpoint "http", "grpc" or "metrics", with `host` as the name of this machine."""
        return f"{bracketed(host)}:{getattr(self._known_ports, endpoint)}"

    @property
    def http_address(self) -> str:
        """host:port of the HTTP endpoint, for this machine."""
        return self._local_address("http")

    @property
    def grpc_address(self) -> str:
        """host:port of the gRPC endpoint, for this machine."""
        return self._local_address("grpc")

    @property
    def metrics_address(self) -> str:
        """host:port of the Prometheus endpoint, for this machine."""
        return self._local_address("metrics")

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._running.pid

    @property
    def models(self) -> tuple[ModelEntry, ...]:
        """The models served, as they were when it started."""
        return self._models

    @property
    def held_prefix(self) -> str:
        """Path, but for the process id at its end, of the files where cascades say how many requests they hold."""
        assert self._claim is not None, "set when it starts"
        return str(SHM / f"{self._claim.prefix}held_")

    @property
    def stubs(self) -> DeadStubs:
        """What finds Python models' processes that have died since the server began to start."""
        assert self._stubs is not None, "set when it starts"
        return self._stubs

    @property
    def missing_file(self) -> Path | None:
        """A file of the server's own that Triton needs later on, where somebody has removed it."""
        assert self._folder is not None, "set when it starts"
        stub = self._folder / "backends" / "python" / STUB
        return None if stub.exists() else stub

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models served."""
        return tuple(model.name for model in self._models)

    @property
    def control(self) -> RepositoryControl:
        """The server's repository API, which is closed to others."""
        return RepositoryControl(host=self._local_host("http"), port=self._known_ports.http, key=self._control_key)

    def start(self) -> None:
        """Starts the server and returns when every model is ready.

        Raises:
            RepositoryError: the repository cannot be served as it lies on disk.
            PlatformError: this machine cannot run the server.
            PortInUseError: a port is taken.
            ServingError: the server ended or was not ready in time; the text has the reason and the log's path.
        """
        if self._child is not None:
            raise ServingError("embedded Triton was started already", fix="make another EmbeddedServer")
        end_orphans()
        if freed_bytes := remove_ownerless():
            self._progress(f"removed {freed_bytes / MIB:.0f} MiB of shared memory that dead servers had left")
        self._ports = choose_ports(self.options)
        self._start()

    def restart(self) -> None:
        """Ends the server at once, if it runs, and starts it again at the same addresses; a new log is begun.

        Raises:
            CommitteeError: as for `start`.
        """
        self._kill()
        self._clean(keep_log=True)
        if (kept := self.options.log_path) is not None and kept.exists():
            kept.replace(kept.with_name(f"{kept.name}.1"))
        self._start()

    def reload(self, name: str) -> None:
        """Unloads a model and loads it at once, which brings processes of Python models back that have died.

        Raises:
            ServingError: it does not load.
            OSError, HTTPException: the server does not answer.
        """
        old = {stub.pid for stub in stubs_of(self.pid) if stub.model == name}
        self._reloaded[name] = self._reloaded.get(name, set()) | old
        self.control.unload([name])
        self.control.load(name)

    def _start(self) -> None:
        machine = self._machine or machine_here()
        self._reloaded.clear()
        self._models = scan_repository(self.options.repository)
        # Two instances per model, the number Triton gives CPU models that state none.
        check_machine(machine, shm_needed_bytes=2 * len(self._models) * self.options.shm_bytes)
        check_models(self._models, self.options.repository)
        allow_open_files()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._child = self._spawn(machine)
                self._wait_until_ready(self._child)
                return
            except BaseException as error:
                # Ctrl-C comes here as well, and is never followed by another attempt.
                lost = isinstance(error, _LostProcessError)
                crashed = lost or (isinstance(error, ServingError) and self._status in _CRASHES)
                again = attempt < _ATTEMPTS and crashed
                self._kill()
                self._clean(keep_log=not again)
                if not again:
                    raise
                what = error.got if isinstance(error, _LostProcessError) else "Triton crashed while starting"
            self._progress(f"{what}; starting Triton once more" if lost else f"{what}; starting it once more")

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit status once the server has ended by itself, None when the time passes first."""
        self._running.wait(timeout_s)
        return self._running.status

    def stop(self) -> None:
        """Ends the server after the requests in flight are answered; does nothing if it has ended already."""
        if self._child is None or self._status is not None:
            self._kill()
            self._clean(keep_log=True)
            return
        deadline_s = time.monotonic() + self.options.stop_timeout_s
        drained = is_unloaded = False
        try:
            self._progress("answering requests in flight")
            # A server that does not answer cannot be drained; it gets SIGTERM next in any case.
            with contextlib.suppress(*_NO_ANSWER):
                # Nor does Triton answer where it never finishes a load.
                limit_s = _EXIT_S if self._reloaded else self.control.timeout_s
                drained = drain(
                    replace(self.control, timeout_s=limit_s),
                    self._models,
                    drain_cascades=partial(self._drain_cascades, deadline_s=deadline_s),
                    reloaded=self._reloaded,
                    is_busy=self._is_busy,
                    deadline_s=deadline_s,
                )
                is_unloaded = True
            self._progress("stopping Triton")
            if drained and self._told_to_drain:
                # SIGTERM would unload these cascades, and tell clients that still ask that there are none.
                self._child.wait(_SENT_S)
            else:
                drained = self._terminate(self._child, drained, is_unloaded=is_unloaded, deadline_s=deadline_s)
        finally:
            # Done even if a second Ctrl-C interrupts the wait.
            self._kill()
            self._clean(keep_log=not drained)

    def _terminate(self, child: Child, drained: bool, *, is_unloaded: bool, deadline_s: float) -> bool:
        """Sends SIGTERM and waits; returns whether all requests are known to be answered."""
        child.terminate()
        soon_s = time.monotonic() + _EXIT_S
        others = set(self.model_names).difference(self._told_to_drain)
        while not drained and time.monotonic() < deadline_s and not child.wait(_POLL_S):
            # Triton never says so of a model whose dead process had requests.
            if self._reloaded and time.monotonic() >= soon_s and not (is_unloaded and self._is_busy(others)):
                break
            drained = nothing_in_flight(self.log_path)
        child.wait(_EXIT_S)
        return drained

    def _is_busy(self, names: Collection[str]) -> bool:
        """Whether models that were told to unload still have processes of their last load."""
        living = (stub for stub in stubs_of(self.pid) if stub.model in names)
        return any(stub.pid not in self._reloaded.get(stub.model, ()) for stub in living)

    def kill(self, *, keep_log: bool = False) -> None:
        """Ends the server at once; requests in flight are lost."""
        self._kill()
        self._clean(keep_log=keep_log)

    def _drain_cascades(self, names: list[str], *, deadline_s: float) -> list[str]:
        try:
            mark([self.pid], [*self._told_to_drain, *names])
        except OSError:  # then they are unloaded, which drains them as well
            return names
        self._told_to_drain += names
        repository = self.options.repository
        url, servers = f"http://{self.http_address}", [self.pid]
        return wait_until_drained(url, repository, names, servers=servers, until_s=deadline_s)

    def _spawn(self, machine: ServingMachine) -> Child:
        self._folder = make_work_folder()
        self._claim = SharedMemoryClaim(self._folder)
        self.log_path = self.options.log_path or self._folder / "triton.log"
        repository = shell_safe_repository(self.options.repository, self._folder)
        command = command_from(
            machine,
            self.options,
            repository=repository,
            ports=self._known_ports,
            backends=make_backend_directory(machine, self._folder / "backends"),
            control_key=self._control_key,
            shm_prefix=self._claim.prefix,
        )
        hide_gpus = self.options.hide_gpus
        environment = environment_from(machine, os.environ, repository=repository, hide_gpus=hide_gpus)
        environment[HELD_REQUESTS] = self.held_prefix
        inherited = (self._claim.file_number,)
        try:
            return Child(command, environment=environment, log_path=self.log_path, inherited=inherited)
        except OSError as error:
            raise ServingError("embedded Triton does not start", got=error) from error

    def _wait_until_ready(self, child: Child) -> None:
        deadline_s = time.monotonic() + self.options.startup_timeout_s
        told = ""
        stubs = self._stubs = DeadStubs(child.pid)
        dead: list[tuple[Stub, str]] = []
        collected_by_s = deadline_s
        while dead or not self._is_ready():
            if found := stubs.look():
                collected_by_s = min(collected_by_s, time.monotonic() + _COLLECT_S)
                dead += found
            if time.monotonic() >= collected_by_s:
                self._check_ended(dead)
                dead, collected_by_s = [], deadline_s
            loaded = loaded_models(self.log_path)
            state = f"{len(loaded)} of {len(self._models)} models loaded"
            if state != told:
                self._progress(state)
                told = state
            if child.wait(_POLL_S):
                raise self._start_error(child)
            if time.monotonic() >= deadline_s:
                missing = sorted(set(self.model_names) - loaded)
                got = f"still loading {', '.join(missing)}" if missing else "all models loaded but no answer"
                what = f"embedded Triton was not ready after {self.options.startup_timeout_s:g} s"
                raise ServingError(what, got=got, fix=f"the whole log is {self.log_path}")
        stubs.note()
        # Another server may have answered on the HTTP port. Triton binds the metrics port last, and ends if one of
        # the three is taken.
        if child.wait(_POLL_S):
            raise self._start_error(child)

    def _check_ended(self, ended: list[tuple[Stub, str]]) -> None:
        """Raises an error for a process that Triton neither ended itself nor knows a reason for."""
        reasons = failure_reasons(self.log_path)
        for stub, how in ended:
            known = any(reason.startswith(f"model {stub.model}") for reason in reasons)
            if not known and (Path("/proc") / str(stub.pid)).exists():
                named = f"model {stub.model}" if stub.model else "a model"
                got = f"{named}: its process {stub.pid} ended with {how}"
                fix = f"the whole log is {self.log_path}"
                raise _LostProcessError("embedded Triton did not start", got=got, fix=fix)

    def _is_ready(self) -> bool:
        with contextlib.suppress(*_NO_ANSWER, ValueError, KeyError):
            self.version = self.control.server_version()
            return True
        return False

    def _start_error(self, child: Child) -> ServingError:
        found = failure_reasons(self.log_path)
        taken = next((text for text in found if "already in use" in text), None)
        if taken is not None:
            fix = "try again, or choose others with `http_port`, `grpc_port` and `metrics_port`"
            return PortInUseError("embedded Triton", got=taken, expected="free ports", fix=fix)
        got = "; ".join(found) or f"exit status {child.status}"
        return ServingError("embedded Triton did not start", got=got, fix=f"the whole log is {self.log_path}")

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            # Somebody else's file of that name says nothing, and stays.
            with contextlib.suppress(OSError):
                mark_of(self._child.pid).unlink()
        if self._claim is not None:
            self._claim.release()

    def _clean(self, *, keep_log: bool) -> None:
        """Removes the work folder, or all but the log in it."""
        if self._folder is not None:
            folder = self._folder / "backends" if keep_log and self.options.log_path is None else self._folder
            shutil.rmtree(folder, ignore_errors=True)

    def _local_host(self, endpoint: str) -> str:
        return local_host(self.options.host_of(endpoint))

    def _local_address(self, endpoint: str) -> str:
        return self.address(self._local_host(endpoint), endpoint)

    @property
    def _status(self) -> int | None:
        return None if self._child is None else self._child.status

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise ServingError("embedded Triton was not started")
        return self._child

    @property
    def _known_ports(self) -> Ports:
        if self._ports is None:
            raise ServingError("embedded Triton was not started")
        return self._ports
