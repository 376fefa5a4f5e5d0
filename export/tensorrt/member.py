"""An ONNX member as a TensorRT engine: the same file, built for this GPU, proven against ONNX Runtime, written.

Rules of this file: whatever needs neither TensorRT nor a GPU is checked before either is looked for; nothing but
the timing cache is written before the engine is proven; plan first, manifest after it.
"""

import dataclasses
import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from export.members import check_made_by, is_current, manifest_in, onnx_manifest, output_kind_option, write_member
from export.output import rename_classes
from export.parity import MIN_ROWS, Parity, agreed, answers_of, session_of, varied_rows
from export.tensorrt.engine import (
    BuiltEngine,
    Engine,
    EngineOptions,
    EnginePrecision,
    EngineTensor,
    build_engine,
    engine_precision,
    precision_of,
)
from export.tensorrt.machine import TensorrtHost, tensorrt_host
from orchestrator.errors import ExportError
from orchestrator.pbtxt import CONFIG
from orchestrator.repository.files import disk_errors, may_replace, write_all
from orchestrator.spec import Manifest, TensorSpec
from orchestrator.spec.request import INPUT_DTYPES

COMMAND = "tensorrt"
PLAN_FILE = "1/model.plan"
# Defaults of docker-compose.yml: the folder it mounts and the user it runs as.
MOUNTED = Path("model_repository")
USER = ("1000", "1000")
_OUTPUT = "/output"


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What an export did: the engine's model, built or up to date, and notes for its user, one line each."""

    folder: Path
    built: bool
    manifest: Manifest
    notes: tuple[str, ...] = ()


def export_engine(
    member: str,
    repository: Path,
    *,
    options: EngineOptions,
    output: Path | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    find_machine: Callable[..., TensorrtHost] = tensorrt_host,
) -> EngineResult:
    """Builds, proves and writes the engine of an ONNX member, by default as `<member>_trt` beside it.

    `force` builds again what is up to date, and writes over any model of that name. `find_machine` gives TensorRT
    and the GPU, or says what is missing.

    Raises:
        ExportError: the member cannot become this engine, or this machine cannot build it.
        RepositoryError: a repository cannot be read or written.
        SpecError: the member's manifest is wrong.
    """
    output, name = output or repository, name or f"{member}_trt"
    source = onnx_manifest(repository, member)
    precision_of(member, source.precision, options.precision)
    check_made_by(COMMAND, output, name, force=force)
    if (output / name).resolve() == (repository / member).resolve():
        # `force` would replace the ONNX member by its own engine.
        raise ExportError(f"engine of {name}", got="the member's own name", fix="choose another `name`")
    fix = compose_command(member, options, repository=repository, output=output, name=name)
    machine = find_machine(f"engine of {member}", fix=f"build it inside the serving image: {fix}")
    route = engine_precision(machine.trt, member, source.precision, options)
    deciding = _deciding(source, options, route, machine)
    folder, path = output / name, repository / member / source.file
    if not force and is_current(folder, deciding):
        rename_classes(output, name, source.labels)
        return EngineResult(folder=folder, built=False, manifest=manifest_in(output, name))
    progress(f"{name}: building for {machine.gpu.name}")
    # A timing cache for all engines, in a hidden file, since Triton looks at folders only.
    capability = machine.gpu.compute_capability.replace(".", "")
    cache = output / f".tensorrt-timing-{machine.trt.__version__}-sm{capability}.cache"
    with disk_errors(f"timing cache {cache}"):
        stored = cache.read_bytes() if cache.is_file() else b""
    built = build_engine(machine.trt, path, source, options=options, route=route, timing_cache=stored)
    write_all(output, {cache.name: built.timing_cache})
    progress(f"{name}: comparing with ONNX Runtime")
    with Engine(machine, built.data, subject=member, host_code=options.version_compatible) as engine:
        parity = _parity(engine, path, source, options=options, route=route, progress=progress)
    manifest = dataclasses.replace(
        _manifest(source, built, options, route, machine, cache.name),
        name=name,
        parity=parity.as_json(),
        options=deciding,
    )
    write_member(output, built.data, manifest)
    return EngineResult(folder=folder, built=True, manifest=manifest, notes=_notes(folder, options))


def compose_command(
    member: str, options: EngineOptions, *, repository: Path, output: Path, name: str, user: str | None = None
) -> str:
    """The command that builds the same engine inside the serving image.

    `user` is the "<uid>:<gid>" that owns the repository, by default this process's.
    """
    uid, _, gid = (user or f"{os.getuid()}:{os.getgid()}").partition(":")
    # A folder that Docker makes for a mount belongs to root.
    first = f"mkdir -p {shlex.quote(str(output))} && " if output != repository and not output.is_dir() else ""
    words = [] if (uid, gid) == USER else [f"COMMITTEE_UID={uid}", f"COMMITTEE_GID={gid}"]
    words += [] if repository == MOUNTED else [f"COMMITTEE_MODELS={shlex.quote(str(repository.absolute()))}"]
    words += ["docker", "compose", "run", "--rm"]
    words += [] if output == repository else ["-v", shlex.quote(f"{output.absolute()}:{_OUTPUT}")]
    words += ["engines", member, "--min", str(options.min_rows), "--opt", str(options.opt_rows)]
    words += ["--max", str(options.max_rows)]
    words += ["--precision", options.precision] if options.precision else []
    words += ["--tf32"] * options.tf32 + ["--version-compatible"] * options.version_compatible
    words += ["--workspace-mib", str(options.workspace_mib)] if options.workspace_mib else []
    words += [] if output == repository else ["--output", _OUTPUT]
    words += [] if name == f"{member}_trt" else ["--name", name]
    return first + " ".join(words)


def _deciding(
    source: Manifest, options: EngineOptions, route: EnginePrecision, machine: TensorrtHost
) -> dict[str, Any]:
    """Everything that decides the engine."""
    return {
        "command": COMMAND,
        "member": source.name,
        "sha256": source.sha256,
        "data_files": dict(source.data_files),
        **output_kind_option(source),
        **dataclasses.asdict(options),
        "precision": route.precision,
        "tensorrt": str(machine.trt.__version__),
        "device": machine.gpu.name,
        "compute_capability": machine.gpu.compute_capability,
    }


def _manifest(
    source: Manifest,
    built: BuiltEngine,
    options: EngineOptions,
    route: EnginePrecision,
    machine: TensorrtHost,
    cache: str,
) -> Manifest:
    version = str(machine.trt.__version__)
    return dataclasses.replace(
        source,
        file=PLAN_FILE,
        sha256=hashlib.sha256(built.data).hexdigest(),
        source=f"member {source.name} from {source.source}",
        precision=route.precision,
        opset=None,
        max_batch_size=options.max_rows,
        engine={
            "member": source.name,
            "profile": {"min": options.min_rows, "opt": options.opt_rows, "max": options.max_rows},
            "tensorrt": version,
            "compute_capability": machine.gpu.compute_capability,
            "device": machine.gpu.name,
            "cuda": machine.gpu.cuda_version,
            "strongly_typed": route.strongly_typed,
            "flags": list(route.flags),
            "build_s": round(built.build_s, 1),
            "timing_cache": cache,
            "timing_cache_used": built.cache_used,
        },
        data_files={},
        processor_flags=(),
        runtimes={},
        versions={"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "tensorrt": version},
    )


def _notes(folder: Path, options: EngineOptions) -> tuple[str, ...]:
    notes = []
    if not may_replace(folder / CONFIG):
        notes.append(f"{CONFIG} was edited by hand and is kept; `committee check` says whether it still fits")
    if options.min_rows > 1:
        notes.append(
            f"Triton fails requests of fewer than {options.min_rows} rows, and a cascade sends any number: "
            "use `min_rows` 1 for it"
        )
    if options.version_compatible:
        notes.append("serve it with --backend-config=tensorrt,version-compatible=true")
    return tuple(notes)


# Largest difference allowed, as a share of the largest output (of 1 where outputs are smaller). fp32: both sum in
# float32, in another order. fp16, TF32: 10 bits of mantissa, errors add up over layers. int8: both round to the
# same levels, but a value at the edge of one may fall on either side.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "int8": 1e-1}
_CHUNK = 16


def _parity(
    engine: Engine,
    path: Path,
    manifest: Manifest,
    *,
    options: EngineOptions,
    route: EnginePrecision,
    progress: Callable[[str], None],
) -> Parity:
    """Compares an engine with the ONNX file it was built from, in ONNX Runtime on the CPU."""
    what = f"parity of the engine of {manifest.name}"
    faults = _faults_of_ports("input", engine.inputs, manifest.input)
    faults += _faults_of_ports("output", engine.outputs, manifest.output)
    if faults:
        raise ExportError(what, got="; ".join(faults), expected="the tensors of the ONNX member")
    rows = varied_rows(manifest.input, MIN_ROWS)
    progress("asking ONNX Runtime")
    session = session_of(path, f"ONNX file of {manifest.name}")
    expected = np.asarray(answers_of(session, rows, batch=_CHUNK), np.float32)
    kind = "tf32" if route.precision == "fp32" and options.tf32 else route.precision

    def ask(batch: int) -> npt.NDArray[np.float32]:
        """The scores of all rows, in batches of exactly this size; rows are repeated to fill the last one."""
        count = -(-len(rows) // batch) * batch
        filled, names = rows[np.arange(count) % len(rows)], (manifest.input.name, manifest.output.name)
        parts = [engine.ask(filled[start : start + batch], *names).copy() for start in range(0, count, batch)]
        return np.asarray(np.concatenate(parts)[: len(rows)], np.float32)

    return agreed(
        ask,
        expected,
        batches=options.batches,
        allowed=TOLERANCE[kind] * max(1.0, float(np.abs(expected).max())),
        what=what,
        progress=lambda text: progress(f"comparing with ONNX Runtime, {text}"),
    )


def _faults_of_ports(side: str, ports: dict[str, EngineTensor], spec: TensorSpec) -> list[str]:
    if set(ports) != {spec.name}:
        return [f"{side}s {', '.join(ports) or 'none'} for {spec.name}"]
    port = ports[spec.name]
    faults = []
    if port.dims != (-1, *spec.dims):
        faults.append(f"{side} {spec.name}: dims {list(port.dims)} for {[-1, *spec.dims]}")
    if port.dtype != INPUT_DTYPES.get(spec.dtype, spec.dtype):
        faults.append(f"{side} {spec.name}: {port.dtype} for {spec.dtype}")
    return faults
