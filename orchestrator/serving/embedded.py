"""The embedded server on disk: its backend directory, environment, command line, and what its log says."""

from __future__ import annotations

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
# The repository API can make the server run any Python file (a load may carry one), so it asks for a header
# whose value is known to this process and its child. Users of the same machine can read it in the process
# list; there is no other way to hand it over.
CONTROL_HEADER = "committee-control"
_UNSAFE = re.compile(r"[^A-Za-z0-9_@%+=:,./-]")  # what a shell may read as more than a letter
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


def make_work_folder() -> Path:
    """A new temporary folder whose path a shell takes as one word (see `shell_safe_repository`)."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="committee-serve-", dir="/tmp" if _UNSAFE.search(parent) else parent))


def make_backend_directory(machine: ServingMachine, folder: Path) -> Path:
    """Fills a folder with one sub-folder per backend and returns it.

    Copies of 3 MB, made anew for every server: nothing to keep in step with the wheel and no cache that two
    servers could race for. Links would not do, Triton refuses a library that lies outside its backend's folder.
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
    """A path to the repository that a shell takes as one word, by way of a link in the folder if need be.

    The python backend starts each model's process through a shell and quotes nothing: with a space in the path
    the process ends with "stol" and the server waits for it for ever.
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
    # The stub takes its prefix, and with it site-packages, from the first python3 on PATH.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)])
    for name in ("PYTHONHOME", "PYTHONSTARTUP"):
        environment.pop(name, None)
    # Prints of models reach the log when they happen, not when a buffer fills.
    environment["PYTHONUNBUFFERED"] = "1"
    # The stand-in for ONNX Runtime completes configurations from the model file, and is not told where that is.
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

    Model control is "explicit" with every model loaded at start, because stopping needs it (see drain.py);
    for everybody else it looks like "none": loading and unloading are refused.
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
    """The last lines of a log that a person may want to see; empty when there is no log."""
    kept = [line for line in _lines(path) if not _CHATTER.match(line) and not _HARMLESS.search(line)]
    return kept[-lines:]


def loaded_models(path: Path | None) -> set[str]:
    """Names of the models that have loaded so far."""
    return {name for line in _lines(path) for name in _LOADED.findall(line)}


def failure_reasons(path: Path | None) -> list[str]:
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
