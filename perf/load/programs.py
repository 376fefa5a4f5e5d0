"""perf_analyzer and the embedded tritonserver as programs that start like NVIDIA's own, from any shell or tool.

Both need variables set before they start. A script of a few lines sets them and then becomes the program, so that
whoever started it also ends it.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.files import write_file
from orchestrator.serving.embedded import BACKENDS, environment_from, make_backend_directory
from orchestrator.serving.machine import ServingMachine, check_machine
from orchestrator.serving.options import ServeOptions
from perf.load.analyzer_binary import AnalyzerBinary, cache_base

# The stand-in for ONNX Runtime completes configurations from model files and is not told where they lie.
_FIND_REPOSITORY = """\
before=
for word; do
  case "$before" in --model-repository|--model-store) COMMITTEE_MODEL_REPOSITORY=$word ;; esac
  case "$word" in --model-repository=*|--model-store=*) COMMITTEE_MODEL_REPOSITORY=${word#*=} ;; esac
  before=$word
done
export COMMITTEE_MODEL_REPOSITORY
"""


def analyzer_program(found: AnalyzerBinary) -> Path:
    """A path that runs perf_analyzer; the program itself where it needs no help."""
    if found.libraries is None:
        return found.path
    folder = found.libraries.with_name(found.libraries.name.replace("lib-", "bin-"))
    folder.mkdir(parents=True, exist_ok=True)
    text = _script([found.path], variables={"LD_LIBRARY_PATH": [found.libraries]})
    return _written(folder / "perf_analyzer", text)


def server_program(machine: ServingMachine, environment: Mapping[str, str] | None = None) -> Path:
    """A path that runs the embedded tritonserver with its backends, and takes Triton's own options.

    Unlike `committee serve` it leaves the repository API open, as tools that load and unload models need it. Any
    endpoint it opens is bound to 127.0.0.1 unless an option says otherwise.

    Args:
        machine: to run on.
        environment: of this process, for where the cache is; None looks.

    Raises:
        PlatformError, ServingError: the server cannot run here.
    """
    check_machine(machine)
    assert machine.wheel is not None, "check_machine looked for it"
    base = cache_base(os.environ if environment is None else environment)
    folder = base / f"tritonserver-{_key(machine)}"
    libraries = environment_from(machine, {}, repository=base, hide_gpus=False)["LD_LIBRARY_PATH"]
    # Of two equal options Triton takes the later one.
    options = ServeOptions(repository=base)
    words = [
        machine.wheel / "tritonserver" / "bin" / "tritonserver",
        f"--backend-directory={_backends(machine, folder)}",
        *(f"--{endpoint}-address={options.host}" for endpoint in ("http", "grpc", "metrics")),
        f"--backend-config=python,shm-default-byte-size={options.shm_bytes}",
        f"--backend-config=python,shm-growth-byte-size={options.shm_bytes}",
        f"--backend-config=python,thread-pool-size={options.bls_threads}",
    ]
    variables: dict[str, Sequence[object]] = {
        "LD_LIBRARY_PATH": libraries.split(os.pathsep),
        "PATH": [Path(sys.executable).parent],
    }
    return _written(folder / "tritonserver", _script(words, variables=variables, first=_FIND_REPOSITORY))


def _backends(machine: ServingMachine, folder: Path) -> Path:
    """The backend directory, made once: a server that runs has its files open."""
    backends = folder / "backends"
    if not backends.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="backends.", dir=folder))
        try:
            make_backend_directory(machine, building / "made")
            (building / "made").rename(backends)
        except OSError:
            # Another process was first.
            if not backends.is_dir():
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return backends


def _key(machine: ServingMachine) -> str:
    """Everything the program is made of, in short."""
    digest = hashlib.sha256(f"{machine.wheel} {machine.stub} {sys.executable}".encode())
    for path in sorted(BACKENDS.glob("*/model.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _script(words: Sequence[object], *, variables: Mapping[str, Sequence[object]], first: str = "") -> str:
    lines = [
        f"export {name}={shlex.quote(os.pathsep.join(map(str, folders)))}${{{name}:+:${name}}}"
        for name, folders in variables.items()
    ]
    command = " ".join(shlex.quote(str(word)) for word in words)
    return "\n".join(["#!/bin/sh", *lines, f'{first}exec {command} "$@"', ""])


def _written(path: Path, text: str) -> Path:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_file(path, text, mode=0o755)
    return path
