"""What a machine has for engines: the tensorrt package and a GPU. The only place that imports the package."""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.tensorrt.gpu import Gpu
from export.tensorrt.options import EngineOptions
from orchestrator.errors import ExportError

# The second is what NVIDIA's bindings alone are called: they load the TensorRT that is installed already.
PACKAGES = ("tensorrt", "tensorrt_bindings")
# What docker-compose.yml mounts, and runs as, where nothing else is said.
MOUNTED = Path("model_repository")
USER = ("1000", "1000")
_OUTPUT = "/output"


@dataclass(frozen=True)
class Machine:
    """The tensorrt module and the GPU it builds for."""

    trt: Any
    gpu: Any


def this_machine(
    subject: str, *, fix: str, load: Callable[[str], Any] = importlib.import_module, gpu: Callable[[], Any] = Gpu
) -> Machine:
    """The package and the GPU of this machine.

    Args:
        subject: what is being done.
        fix: what to do on a machine that lacks either.
        load: imports a module by name.
        gpu: opens the GPU.

    Raises:
        ExportError: one of them is missing.
    """
    expected = "the tensorrt package and an NVIDIA GPU"
    trt, faults = None, []
    for name in PACKAGES:
        try:
            trt = load(name)
            break
        # A package whose libraries are missing or of another version is as good as none.
        except (ImportError, OSError) as error:
            faults.append(_reason(name, error))
    if trt is None:
        raise ExportError(subject, got=faults[0], expected=expected, fix=fix)
    try:
        return Machine(trt, gpu())
    except ExportError as error:
        raise ExportError(subject, got=error.got, expected=expected, fix=fix) from error


def compose_command(
    member: str, options: EngineOptions, *, repository: Path, output: Path, name: str, user: str | None = None
) -> str:
    """The command that builds the same engine inside the serving image.

    Args:
        member: its name.
        options: of the engine.
        repository: that holds the member.
        output: that gets the engine.
        name: of the engine's model.
        user: "<uid>:<gid>" who owns the repository; None: this process's user.
    """
    uid, _, gid = (user or f"{os.getuid()}:{os.getgid()}").partition(":")
    # A folder that Docker makes for a mount belongs to root.
    first = f"mkdir -p {shlex.quote(str(output))} && " if output != repository and not output.is_dir() else ""
    words = [] if (uid, gid) == USER else [f"COMMITTEE_UID={uid}", f"COMMITTEE_GID={gid}"]
    words += [] if repository == MOUNTED else [f"COMMITTEE_MODELS={shlex.quote(str(repository.absolute()))}"]
    words += ["docker", "compose", "run", "--rm"]
    if output != repository:
        words += ["-v", shlex.quote(f"{output.absolute()}:{_OUTPUT}")]
    words += ["engines", member, "--min", str(options.min_rows), "--opt", str(options.opt_rows)]
    words += ["--max", str(options.max_rows)]
    words += ["--precision", options.precision] if options.precision else []
    words += ["--tf32"] * options.tf32 + ["--version-compatible"] * options.version_compatible
    words += ["--workspace-mib", str(options.workspace_mib)] if options.workspace_mib else []
    words += ["--output", _OUTPUT] if output != repository else []
    words += ["--name", name] if name != f"{member}_trt" else []
    return first + " ".join(words)


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"no package {name}"
    return f"a package {name} that does not load ({error})"
