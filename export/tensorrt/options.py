"""What an engine is asked to be, and what the installed TensorRT makes of its precision."""

from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ExportError
from orchestrator.spec.manifest import PRECISIONS
from orchestrator.spec.validation import Faults

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
        faults.integer("min_rows", self.min_rows, low=1)
        faults.integer("opt_rows", self.opt_rows, low=1)
        faults.integer("max_rows", self.max_rows, low=1)
        if not faults.found:
            above = f"got {self.opt_rows}, expected at least the `min_rows` of {self.min_rows}"
            faults.check("opt_rows", self.opt_rows >= self.min_rows, above)
            above = f"got {self.max_rows}, expected at least the `opt_rows` of {self.opt_rows}"
            faults.check("max_rows", self.max_rows >= self.opt_rows, above)
        if self.precision is not None:
            faults.one_of("precision", self.precision, PRECISIONS)
        if self.workspace_mib is not None:
            faults.integer("workspace_mib", self.workspace_mib, low=1)
        faults.close()

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to compare: the profile's own, and sizes between them that no kernel was tuned for."""
        sizes = {self.min_rows, 2, 7, self.opt_rows, 33, self.max_rows}
        return tuple(size for size in sorted(sizes) if self.min_rows <= size <= self.max_rows)


@dataclass(frozen=True, kw_only=True)
class EnginePrecision:
    """How a precision is reached.

    Args:
        precision: of the engine.
        strongly_typed: the ONNX file's own types are the law; else TensorRT may choose among `flags`.
        flags: names of tensorrt.BuilderFlag to set.
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
