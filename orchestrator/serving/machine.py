"""The embedded server on a machine: what it needs there, how it is put together, and what its log says.

`machine_here` looks at the machine; the checks only compare, so that tests can describe any machine.
"""

import importlib.util
import math
import os
import platform
import re
import resource
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.errors import PlatformError, ServingError
from orchestrator.serving.options import MIB, Ports, ServeOptions, bracketed, evhtp_host, numeric_host

GLIBC_FLOOR = (2, 35)
SHM_FLOOR_BYTES = 64 * MIB  # what docker gives a container; with less, hardly any model runs
# Triton has 66 files open before the first client connects, and one more per model; it crashes (SIGSEGV) where it
# may not have them. The rest is for clients.
OPEN_FILES_FLOOR = 256
OPEN_FILES_RAISED = 65_536  # what a limit below it becomes, where the system lets us
SHM = Path("/dev/shm")
WORK_FOLDER = "committee-serve-"  # what the names of work folders begin with
_COMPOSE = "serve the same repository with `docker compose up`"
_LIBRARY_FOLDERS = ("/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
BACKENDS = Path(__file__).parent / "backends"
# The repository API can make the server run any Python file, which a load request may carry. So the server asks
# for a header whose value only this process and its child know. Users of the same machine can read it in the
# process list: Triton takes it on the command line only.
CONTROL_HEADER = "committee-control"
# That API, and those by which anybody could silence the log or fill the disk with it.
_CONTROL_APIS = "model-repository,logging,trace"
_UNSAFE = re.compile(r"[^A-Za-z0-9_@%+=:,./-]")  # characters that may have a meaning to a shell
# Triton logs these on every machine without a GPU, and they are never the reason of a failure.
_HARMLESS = re.compile(r"cuda|nvml|dcgm|pinned", re.IGNORECASE)
# Information (I1124 ...), tables, blank lines, and errors that `failure_reasons` says better. What is left are
# warnings, errors, and what models print, such as Python's "Failed to initialize" with its frames.
_CHATTER = re.compile(r"^(I\d{4} (?!.*Failed)|E\d{4} .*failed to load '|error: creating server|[|+]|\s*$)")
_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)")
_POLLED = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)")
_ERROR = re.compile(r'^E\d{4} \S+ +\d+ \S+\] *"?(?P<reason>.*)$')
_LOADED = re.compile(r"successfully loaded '([^']+)'")
# Triton's error code, which stands before the message itself.
_PREFIX = re.compile(r"^(Internal|Invalid argument|Unavailable|Not found|Unsupported|Unknown): ")


@dataclass(frozen=True, kw_only=True)
class ServingMachine:
    """The properties of a machine that the embedded server depends on."""

    system: str  # as `platform` names it, e.g. "Linux"
    architecture: str  # the same, e.g. "x86_64"
    glibc: tuple[int, int] | None  # (major, minor) of the C library; None for others (musl, macOS)
    python: tuple[int, int]  # (major, minor) of the interpreter that models run in
    numpy_version: str  # of the numpy that models import
    wheel: Path | None  # folder of the `pytriton` package; None where it is not installed
    libpython: Path | None  # folder of that interpreter's shared library; None where it has none
    shm_free_bytes: int | None  # free shared memory; None without /dev/shm
    open_files: int  # that a process may have at most, once it has raised its limit

    @property
    def server(self) -> Path:
        """The wheel's folder of the server; `check_machine` comes first."""
        assert self.wheel is not None, "check_machine comes first"
        return self.wheel / "tritonserver"

    @property
    def stub(self) -> Path | None:
        """Program that Triton starts for every Python model, built for this interpreter; None without one."""
        path = self.server / "python_backend_stubs" / _dotted(self.python) / "triton_python_backend_stub"
        return path if path.is_file() else None


def machine_here() -> ServingMachine:
    """The machine this runs on."""
    python = sys.version_info[:2]
    libc, libc_version = platform.libc_ver()
    # The wheel is looked up without an import, which would load pyzmq and gevent and take a second.
    spec = importlib.util.find_spec("pytriton")
    places = map(Path, (spec.submodule_search_locations or ()) if spec else ())
    # The interpreter's own folders come first: a library of another patch release would load, but compiled modules
    # were not built for it.
    own = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    return ServingMachine(
        system=platform.system(),
        architecture=platform.machine(),
        glibc=_numbers(libc_version)[:2] if libc == "glibc" else None,  # type: ignore[arg-type]
        python=python,
        numpy_version=np.__version__,
        wheel=next((path for path in places if (path / "tritonserver" / "bin" / "tritonserver").is_file()), None),
        libpython=libpython_folder(python, [*filter(None, own), *_LIBRARY_FOLDERS]),
        shm_free_bytes=shutil.disk_usage(SHM).free if SHM.is_dir() else None,
        open_files=_most_open_files(),
    )


def _most_open_files() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def allow_open_files() -> None:
    """Raises this process's limit of open files, and its children's, where it is below what a server needs."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < OPEN_FILES_FLOOR:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_most_open_files(), OPEN_FILES_RAISED), most))


def check_machine(machine: ServingMachine, *, shm_needed_bytes: int = 0) -> None:
    """Refuses a machine that the embedded server cannot run on.

    Args:
        machine: the machine.
        shm_needed_bytes: shared memory that the models begin with, at least `SHM_FLOOR_BYTES`.

    Raises:
        PlatformError: the server can never run there.
        ServingError: something is missing that can be installed or freed.
    """
    what = "embedded Triton"
    here = f"{machine.system} on {machine.architecture}"
    if machine.system != "Linux" or machine.architecture not in ("x86_64", "AMD64"):
        raise PlatformError(what, got=here, expected="Linux on x86_64", fix=_COMPOSE)
    if machine.glibc is None or machine.glibc < GLIBC_FLOOR:
        got = "a C library other than glibc" if machine.glibc is None else f"glibc {_dotted(machine.glibc)}"
        expected = f"glibc {_dotted(GLIBC_FLOOR)} or newer"
        raise PlatformError(what, got=got, expected=expected, fix=_COMPOSE)
    if machine.wheel is None:
        got, fix = "no nvidia-pytriton in this environment", "pip install 'committee[serve]'"
        raise ServingError(what, got=got, expected="nvidia-pytriton 0.7.0", fix=fix)
    if int(machine.numpy_version.split(".")[0]) >= 2:
        # With numpy 2 this release's stub makes every tensor zero bytes long, and all requests would fail with an
        # "input byte size mismatch", which does not tell the cause.
        got = f"numpy {machine.numpy_version}"
        raise ServingError(what, got=got, expected="numpy below 2", fix="pip install 'numpy<2'")
    if machine.open_files < OPEN_FILES_FLOOR:
        got, fix = (
            f"at most {machine.open_files} open files",
            "raise the limit: ulimit -n, or LimitNOFILE of a service",
        )
        raise ServingError(what, got=got, expected=f"at least {OPEN_FILES_FLOOR}", fix=fix)
    _check_interpreter(machine, what)
    free, needed_bytes = machine.shm_free_bytes, max(shm_needed_bytes, SHM_FLOOR_BYTES)
    if free is None or free < needed_bytes:
        got = f"no {SHM}" if free is None else f"{free // MIB} MiB free in {SHM}"
        fix = "remove files left there, or in a container give it more with --shm-size=1g"
        raise ServingError(what, got=got, expected=f"at least {needed_bytes // MIB} MiB", fix=fix)


def _check_interpreter(machine: ServingMachine, what: str) -> None:
    version = _dotted(machine.python)
    if machine.stub is None:
        known = sorted((path.name for path in (machine.server / "python_backend_stubs").glob("*")), key=_numbers)
        expected = f"one of {', '.join(known)}" if known else "a stub for it in the wheel"
        raise PlatformError(what, got=f"Python {version}", expected=expected, fix="use one of those")
    if machine.libpython is None:
        got = f"no libpython{version}.so.1.0"
        fix = f"on Debian or Ubuntu apt-get install libpython{version}, elsewhere build it with --enable-shared"
        raise ServingError(what, got=got, expected="the interpreter's shared library", fix=fix)


def libpython_folder(python: tuple[int, int], folders: Iterable[str | Path]) -> Path | None:
    """The first folder with that Python's shared library, under the name that the stub looks for."""
    name = f"libpython{_dotted(python)}.so.1.0"
    return next((Path(folder) for folder in folders if (Path(folder) / name).is_file()), None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def make_work_folder() -> Path:
    """A new temporary folder whose path a shell takes as one word (see `shell_safe_repository`)."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=WORK_FOLDER, dir="/tmp" if _UNSAFE.search(parent) else parent))


def make_backend_directory(machine: ServingMachine, folder: Path) -> Path:
    """Fills a folder with one sub-folder per backend and returns it.

    3 MB are copied for every server, so that no cache has to be kept in step with the wheel and no two servers
    compete for one. Links would not do: Triton refuses a library outside its backend's folder.
    """
    assert machine.stub is not None, "check_machine comes first"
    python = folder / "python"
    python.mkdir(parents=True)
    source = machine.server / "backends" / "python"
    for path in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", machine.stub):
        shutil.copy(path, python)
    for source in sorted(BACKENDS.glob("*/*.py")):
        (folder / source.parent.name).mkdir(exist_ok=True)
        shutil.copy(source, folder / source.parent.name)
    return folder


def shell_safe_repository(repository: Path, folder: Path) -> Path:
    """A path to the repository that a shell takes as one word: its own, or that of a link in the given folder.

    The python backend starts each model's process through a shell without quoting. With a space in the path, that
    process ends with "stol" and the server waits for it for ever.
    """
    path = repository.resolve()
    if not _UNSAFE.search(str(path)):
        return path
    link = folder / "repository"
    link.symlink_to(path, target_is_directory=True)
    return link


def environment_from(
    machine: ServingMachine, base: Mapping[str, str], *, repository: Path, hide_gpus: bool
) -> dict[str, str]:
    """The server's environment variables."""
    environment = dict(base)
    libraries = [
        machine.server.parents[1] / "nvidia_pytriton.libs",
        machine.libpython,
        base.get("LD_LIBRARY_PATH"),
    ]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(str(folder) for folder in libraries if folder)
    # The stub derives its prefix, and with it site-packages, from the first python3 on PATH.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)])
    for name in ("PYTHONHOME", "PYTHONSTARTUP"):
        environment.pop(name, None)
    # What models print then reaches the log at once, not when a buffer is full.
    environment["PYTHONUNBUFFERED"] = "1"
    # Our backend for ONNX Runtime completes configurations from the model file, whose place Triton does not tell.
    environment["COMMITTEE_MODEL_REPOSITORY"] = str(repository)
    if hide_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    return environment


def command_from(
    machine: ServingMachine,
    options: ServeOptions,
    *,
    repository: Path,
    ports: Ports,
    backends: Path,
    control_key: str,
    shm_prefix: str,
) -> list[str]:
    """The server's command line.

    Model control is "explicit" with every model loaded at start, which stopping needs (see control.py). Others are
    refused loading and unloading, as in mode "none", and settings of the log and of traces.
    """
    python = {
        "shm-default-byte-size": options.shm_bytes,
        "shm-growth-byte-size": options.shm_bytes,
        "thread-pool-size": options.bls_threads,
        "shm-region-prefix-name": shm_prefix,
    }
    # Triton takes addresses: of a name, HTTP and metrics make the address of the whole network.
    host = numeric_host(options.host)
    return [
        str(machine.server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        # Ready means that the server answers: otherwise a load that is refused or under way makes it not ready,
        # and on 24.10 only a good load of that very version ends this. Models say for themselves if they are.
        "--strict-readiness=false",
        *([] if options.config_name is None else [f"--model-config-name={options.config_name}"]),
        f"--http-restricted-api={_CONTROL_APIS}:{CONTROL_HEADER}={control_key}",
        f"--grpc-restricted-protocol={_CONTROL_APIS}:{CONTROL_HEADER}={control_key}",
        f"--http-address={evhtp_host(numeric_host(options.host_of('http')))}",
        f"--http-port={ports.http}",
        f"--grpc-address={bracketed(host)}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={evhtp_host(host)}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={math.ceil(options.stop_timeout_s)}",
        f"--log-verbose={options.log_verbose}",
        *(f"--backend-config=python,{key}={value}" for key, value in python.items()),
    ]


def log_tail(path: Path | None, lines: int) -> list[str]:
    """The last lines of a log, without those that say nothing to a person; empty where there is no log."""
    kept = [line for line in _lines(path) if not _CHATTER.match(line) and not _HARMLESS.search(line)]
    return kept[-lines:]


def loaded_models(path: Path | None) -> set[str]:
    """Names of the models that have loaded so far."""
    return {name for line in _lines(path) for name in _LOADED.findall(line)}


def nothing_in_flight(path: Path | None) -> bool:
    """Whether a server that was told to end says that all requests are answered."""
    return any("All models are stopped" in line for line in _lines(path))


def failure_reasons(path: Path | None) -> list[str]:
    """Why the server did not start, one text per model at fault; empty where the log does not say."""
    found: dict[str, str] = {}
    for pattern in (_POLLED, _FAILED):
        for match in filter(None, map(pattern.search, _lines(path))):
            name = match["model"]
            found.setdefault(name, f"model {name}: {_cleaned(match['reason'], name)}")
    if found:
        return list(found.values())
    errors = [match["reason"] for match in map(_ERROR.match, _lines(path)) if match]
    return list(dict.fromkeys(_cleaned(error) for error in errors if not _HARMLESS.search(error)))


def _cleaned(reason: str, model: str = "") -> str:
    # The log writes the line ends of a message as \n; the traceback from "At:" on can be read there.
    text = reason.split("\\n\\nAt:")[0].replace("\\n", " ").strip().strip('"').strip()
    text = _PREFIX.sub("", text)
    return text.removeprefix("TritonModelException: ").removeprefix(f"{model}: ")


def _lines(path: Path | None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path else []
    except OSError:
        return []
