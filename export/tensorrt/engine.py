"""What an engine is asked to be, its build (parse, one profile, flags, timing cache), and how it is asked.

Every TensorRT object is handed in or made from the module that is; TensorRT says what went wrong through its
logger and returns None or False, so the logger is kept and its errors become ours.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from export.tensorrt.machine import TensorrtHost
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, TensorSpec
from orchestrator.spec.manifest import PRECISIONS
from orchestrator.spec.validation import MOST_ROWS, MOST_SIZE, Faults

# Strongly typed networks come with TensorRT 10 in the form used here, and so do the tensor-by-name calls.
OLDEST_MAJOR = 10


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """One optimisation profile and what else decides an engine.

    Args:
        min_rows: fewest rows of a request; Triton fails smaller ones, so anything but 1 is for fixed batches.
        opt_rows: the batch the kernels are chosen for.
        max_rows: most rows; becomes the served max_batch_size.
        precision: "fp32", "fp16" or "int8"; None keeps the member's own.
        tf32: let fp32 products be rounded to 10 bits of mantissa on GPUs that gain by it.
        version_compatible: an engine that later TensorRT releases of the same major version load too.
        workspace_mib: most scratch memory of one layer; None leaves TensorRT all the GPU has.
    """

    min_rows: int = 1
    opt_rows: int = 16
    max_rows: int = 64
    precision: str | None = None
    tf32: bool = False
    version_compatible: bool = False
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        faults = Faults("TensorRT options", of_arguments=True)
        for field in ("min_rows", "opt_rows", "max_rows"):
            faults.integer(field, getattr(self, field), low=1, high=MOST_ROWS)
        for lower, upper in (("min_rows", "opt_rows"), ("opt_rows", "max_rows")) if not faults.found else ():
            least, value = getattr(self, lower), getattr(self, upper)
            faults.check(upper, value >= least, f"got {value}, expected at least the `{lower}` of {least}")
        if self.precision is not None:
            faults.one_of("precision", self.precision, PRECISIONS)
        if self.workspace_mib is not None:
            faults.integer("workspace_mib", self.workspace_mib, low=1, high=MOST_SIZE)
        faults.close()

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to compare: the profile's own, and sizes between them that no kernel was tuned for."""
        sizes = {self.min_rows, 2, 7, self.opt_rows, 33, self.max_rows}
        return tuple(size for size in sorted(sizes) if self.min_rows <= size <= self.max_rows)


@dataclass(frozen=True, kw_only=True)
class EnginePrecision:
    """How a precision is reached, with names of tensorrt.BuilderFlag to set.

    `strongly_typed`: the ONNX file's own types are the law; else TensorRT may choose among the flags.
    """

    precision: str
    strongly_typed: bool
    flags: tuple[str, ...]


def precision_of(member: str, own: str, asked: str | None) -> str:
    """The precision an engine will have, or why it cannot; needs neither TensorRT nor a GPU.

    Raises:
        ExportError: the member's file cannot give that precision.
    """
    if asked is None or asked == own or (own, asked) == ("fp32", "fp16"):
        return asked or own
    fix = f"export the {asked} member of the same source first (python -m export member ... --precision {asked})"
    raise ExportError(
        f"engine of {member} in {asked}",
        got=f"an {own} ONNX member" if own == "int8" else f"a {own} ONNX member",
        expected=f"an {asked} one" if asked == "int8" else f"one in {asked}",
        fix=f"{fix} and name that",
    )


def engine_precision(trt: Any, member: str, own: str, options: EngineOptions) -> EnginePrecision:
    """How the installed TensorRT reaches the precision asked for.

    A member that was exported in the precision is built as it is. fp16 of an fp32 member leaves the choice of
    types to TensorRT, which releases since 11 no longer make.

    Raises:
        ExportError: it cannot, or TensorRT is too old.
    """
    version = str(trt.__version__)
    if int(version.partition(".")[0]) < OLDEST_MAJOR:
        raise ExportError("tensorrt", got=f"version {version}", expected=f"{OLDEST_MAJOR} or later")
    precision = precision_of(member, own, options.precision)
    flags = ["TF32"] * options.tf32 + ["VERSION_COMPATIBLE"] * options.version_compatible
    if precision == own:
        return EnginePrecision(precision=precision, strongly_typed=True, flags=tuple(flags))
    if not hasattr(trt.BuilderFlag, "FP16"):
        raise ExportError(
            f"engine of {member} in fp16",
            got=f"TensorRT {version}, which takes the types of the ONNX file",
            expected="an fp16 ONNX member",
            fix="export it first (python -m export member ... --precision fp16) and name that",
        )
    return EnginePrecision(precision=precision, strongly_typed=False, flags=("FP16", *flags))


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialised engine, what was measured while building it, for the next build, and whether such was used."""

    data: bytes
    timing_cache: bytes
    build_s: float
    cache_used: bool


def logger_of(trt: Any) -> Any:
    """A TensorRT logger that keeps errors instead of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base exists only once the module is here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)

    return Log()


def made(what: str, log: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns; an error with TensorRT's own words where that is nothing.

    Raises:
        ExportError: TensorRT returned nothing, or its bindings refused.
    """
    try:
        result = make()
    # pybind11 turns a factory's null into a TypeError, a failed check into a RuntimeError or ValueError.
    except (TypeError, RuntimeError, ValueError) as error:
        raise ExportError(what, got=_said(log, str(error))) from error
    if result is None:
        raise ExportError(what, got=_said(log, "nothing"))
    return result


def build_engine(
    trt: Any, path: Path, source: Manifest, *, options: EngineOptions, route: EnginePrecision, timing_cache: bytes
) -> BuiltEngine:
    """Builds the engine of an ONNX member from its file; weights in files beside it are found from there.

    `timing_cache` is that of an earlier build on this GPU with this TensorRT, or empty.

    Raises:
        ExportError: the file cannot be parsed (every operator at fault is named) or built.
    """
    subject, input_spec = source.name, source.input
    log = logger_of(trt)
    builder = made(f"TensorRT's builder for {subject}", log, lambda: trt.Builder(log))
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if route.strongly_typed else 0
    network = made(f"network of {subject}", log, lambda: builder.create_network(flags))
    # Kept until the engine is built, since the parser owns the network's weights.
    parser = made(f"parser of {subject}", log, lambda: trt.OnnxParser(network, log))
    if not parser.parse_from_file(str(path)):
        raise _parse_error(parser, log, subject)
    _require_batch_axis(network, input_spec, subject)
    config = builder.create_builder_config()
    # On by default in TensorRT. Off here: it can move logits by 1e-3 and resized pixels by whole levels.
    config.clear_flag(trt.BuilderFlag.TF32)
    for flag in route.flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _add_profile(builder, config, input_spec, options, log=log, subject=subject)
    cache, used = _cache(config, timing_cache)
    start = time.monotonic()
    built = made(f"engine of {subject}", log, lambda: builder.build_serialized_network(network, config))
    return BuiltEngine(
        data=bytes(memoryview(built)),
        timing_cache=bytes(memoryview(cache.serialize())),
        build_s=time.monotonic() - start,
        cache_used=used,
    )


def _parse_error(parser: Any, log: Any, subject: str) -> ExportError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    places = [" ".join(filter(None, (error.node_operator(), error.node_name()))) for error in errors]
    found = [f"{place or 'model'}: {error.desc()}" for place, error in zip(places, errors, strict=True)]
    return ExportError(
        f"ONNX file of {subject}",
        got="; ".join(found) or _said(log, "a file its parser refuses"),
        expected="operators TensorRT has",
        fix="export it with others, or serve the ONNX member itself",
    )


def _require_batch_axis(network: Any, input_spec: TensorSpec, subject: str) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    shapes = {str(tensor.name): tuple(tensor.shape) for tensor in tensors}
    if shapes != {input_spec.name: (-1, *input_spec.dims)}:
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
        raise ExportError(
            f"inputs of {subject}", got=got, expected=f"{input_spec.name} {[-1, *input_spec.dims]}",
            fix="export the member again with a free batch axis",
        )  # fmt: skip


def _add_profile(
    builder: Any, config: Any, input_spec: TensorSpec, options: EngineOptions, *, log: Any, subject: str
) -> None:
    profile = builder.create_optimization_profile()
    sizes = (options.min_rows, options.opt_rows, options.max_rows)
    shapes = [(size, *input_spec.dims) for size in sizes]
    what = f"profile {'/'.join(map(str, sizes))} of {subject}"
    made(what, log, lambda: profile.set_shape(input_spec.name, *shapes) or True)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(what, got=_said(log, "a profile TensorRT refuses"))


def _cache(config: Any, stored: bytes) -> tuple[Any, bool]:
    """The timing cache of a build: the stored one, or an empty one where that is damaged or of another GPU."""
    cache = None
    try:
        cache = config.create_timing_cache(stored)
    except (TypeError, RuntimeError, ValueError):
        stored = b""
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, bool(stored)
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache, False


def _said(log: Any, otherwise: str) -> str:
    # One fault is often logged by several layers of TensorRT.
    return "; ".join(dict.fromkeys(log.errors)) or otherwise


class EngineTensor(NamedTuple):
    """An input or output: numpy dtype, and dims with -1 for the batch."""

    dtype: str
    dims: tuple[int, ...]


class Engine:
    """A serialised engine ready to be asked; a context manager, since GPU memory is given back at the end.

    `host_code` says that it carries code of its own, as version-compatible ones do.

    Raises:
        ExportError: TensorRT does not take it: cut short, of another version, or of another GPU.
    """

    def __init__(self, machine: TensorrtHost, data: bytes, *, subject: str, host_code: bool = False) -> None:
        trt, self._gpu, self._subject = machine.trt, machine.gpu, subject
        self._log = logger_of(trt)
        what = f"engine of {subject}"
        self._runtime = made(f"TensorRT's runtime for {subject}", self._log, lambda: trt.Runtime(self._log))
        self._runtime.engine_host_code_allowed = host_code
        self._engine = made(what, self._log, lambda: self._runtime.deserialize_cuda_engine(data))
        self._context = made(what, self._log, lambda: self._engine.create_execution_context())
        self.inputs: dict[str, EngineTensor] = {}
        self.outputs: dict[str, EngineTensor] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
            port = EngineTensor(dtype=dtype, dims=tuple(self._engine.get_tensor_shape(name)))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = port
        self._memory: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address, _ in self._memory.values():
            self._gpu.free(address)
        self._memory.clear()

    def ask(self, rows: npt.NDArray[Any], input_name: str, output_name: str) -> npt.NDArray[Any]:
        """An output of one batch of rows (n, *dims) in the input's dtype, n within the profile.

        Raises:
            ExportError: TensorRT refuses the batch or fails.
        """
        what = f"{len(rows)} rows for the engine of {self._subject}"
        made(what, self._log, lambda: self._context.set_input_shape(input_name, tuple(rows.shape)) or None)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self.outputs}
        arrays = {name: np.empty(shape, self.outputs[name].dtype) for name, shape in shapes.items()}
        for name, array in {**arrays, input_name: rows}.items():
            self._context.set_tensor_address(name, self._room(name, array.nbytes))
        self._gpu.upload(self._memory[input_name][0], rows)
        made(what, self._log, lambda: self._context.execute_async_v3(self._gpu.stream) or None)
        self._gpu.download(self._memory[output_name][0], arrays[output_name])
        return arrays[output_name]

    def _room(self, name: str, size_bytes: int) -> int:
        address, size = self._memory.get(name, (0, -1))
        if size < size_bytes:
            if name in self._memory:
                self._gpu.free(self._memory.pop(name)[0])
            address = self._gpu.allocate(size_bytes)
            self._memory[name] = (address, size_bytes)
        return address
