"""The embedded server on disk: its backend directory, environment, command line, and what its log says."""

import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from orchestrator.serving.addresses import Ports, bracketed, evhtp_host
from orchestrator.serving.machine import ServingMachine
from orchestrator.serving.options import ServeOptions

BACKENDS = Path(__file__).parent / "backends"
# The repository API can make the server run any Python file, which a load request may carry. So the server asks
# for a header whose value only this process and its child know. Users of the same machine can read it in the
# process list: Triton takes it on the command line only.
CONTROL_HEADER = "committee-control"
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


def make_work_folder() -> Path:
    """A new temporary folder whose path a shell takes as one word (see `shell_safe_repository`)."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="committee-serve-", dir="/tmp" if _UNSAFE.search(parent) else parent))


def make_backend_directory(machine: ServingMachine, folder: Path) -> Path:
    """Fills a folder with one sub-folder per backend and returns it.

    3 MB are copied for every server, so that no cache has to be kept in step with the wheel and no two servers
    compete for one. Links would not do: Triton refuses a library outside its backend's folder.
    """
    assert machine.wheel is not None, "check_machine comes first"
    assert machine.stub is not None, "check_machine comes first"
    python = folder / "python"
    python.mkdir(parents=True)
    source = machine.wheel / "tritonserver" / "backends" / "python"
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
    assert machine.wheel is not None, "check_machine comes first"
    environment = dict(base)
    libraries = [machine.wheel.parent / "nvidia_pytriton.libs", machine.libpython, base.get("LD_LIBRARY_PATH")]
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
    refused loading and unloading, as in mode "none".
    """
    assert machine.wheel is not None, "check_machine comes first"
    python = {
        "shm-default-byte-size": options.shm_bytes,
        "shm-growth-byte-size": options.shm_bytes,
        "thread-pool-size": options.bls_threads,
        "shm-region-prefix-name": shm_prefix,
    }
    return [
        str(machine.wheel / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        *([] if options.config_name is None else [f"--model-config-name={options.config_name}"]),
        f"--http-restricted-api=model-repository:{CONTROL_HEADER}={control_key}",
        f"--grpc-restricted-protocol=model-repository:{CONTROL_HEADER}={control_key}",
        f"--http-address={evhtp_host(options.host)}",
        f"--http-port={ports.http}",
        f"--grpc-address={bracketed(options.host)}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={evhtp_host(options.host)}",
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


def failure_reasons(path: Path | None) -> list[str]:
    """Why the server did not start, one text per model at fault; empty where the log does not say."""
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
    """Whether a reason from the log is another process on one of the ports."""
    return "already in use" in reason


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
