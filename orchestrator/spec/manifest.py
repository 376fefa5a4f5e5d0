"""What the export writes down of every member, `<member>/manifest.json`: reading and writing it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.errors import RepositoryError, SpecError, repeated, shown
from orchestrator.spec.documents import json_from_text, text_from_json, text_of_file
from orchestrator.spec.output_kind import OUTPUT_KINDS
from orchestrator.spec.request import INPUT_DTYPES, Preprocess
from orchestrator.spec.validation import (
    MOST_COUNTED,
    MOST_PX,
    MOST_ROWS,
    MOST_SIZE,
    VALUES,
    Faults,
    array_of,
    built,
    is_finite,
    object_of,
)

MANIFEST = "manifest.json"  # in the folder of an exported member
MANIFEST_FORMAT = 1
DERIVES = "derives"  # a key that only manifests of models that derive tensors have; see `spec/deriving.py`
_MOST_OPSET = 1000
PRECISIONS = ("fp32", "fp16", "int8")
_PROOF = 'an object with "max_abs" (a finite number of at least 0), "not_proven" or "fault" (texts)'


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as a file states it, right or wrong; in a damaged file the name may be empty."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Tensor):
    """A model tensor: its name, Triton dtype, and the shape of one row without the batch axis."""

    def __post_init__(self) -> None:
        faults = Faults(f"tensor {self.name}")
        faults.text("name", self.name)
        faults.text("dtype", self.dtype)
        for size in self.dims:
            # -1 is Triton's word for a size that may vary.
            faults.integer("dims", size, low=-1, high=MOST_SIZE)
        faults.close()


_Number = TypeVar("_Number", float, npt.NDArray[np.float64])


@dataclass(frozen=True, kw_only=True)
class RowLength:
    """What is known of a member whose rows vary in length."""

    longest: int  # most positions, tokens say, of a row
    pad: dict[str, float]  # tensor whose length varies -> what fills up the shorter rows of a batch
    macs_at: int  # the length that the manifest's `macs` are those of
    # c0, c1, c2: a row of length n costs c0 + c1 n + c2 n^2 multiply-accumulates
    macs_coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        faults = Faults("length")
        faults.integer("longest", self.longest, low=1, high=MOST_SIZE)
        faults.integer("macs_at", self.macs_at, low=1, high=MOST_SIZE)
        good = isinstance(self.pad, dict) and bool(self.pad) and all(map(is_finite, self.pad.values()))
        faults.check("pad", good, f"got {shown(self.pad)}, expected a number per tensor whose length varies")
        good = len(self.macs_coefficients) == 3 and all(map(is_finite, self.macs_coefficients))
        faults.check("macs_coefficients", good, f"got {shown(self.macs_coefficients)}, expected three numbers")
        faults.close()

    def macs(self, length: _Number) -> _Number:
        """Multiply-accumulates of a row of that length, or of rows of these, float64 (n,)."""
        constant, linear, square = self.macs_coefficients
        return constant + linear * length + square * length**2


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an exported member."""

    name: str  # Triton model name
    file: str  # model file relative to the member's folder, e.g. "1/model.onnx".
    sha256: str  # of that file
    source: str  # where the model came from, in words with which a person can fetch it again
    precision: str  # one of PRECISIONS
    opset: int | None  # ONNX opset; None for other formats
    inputs: tuple[TensorSpec, ...]  # its tensors, a dim of -1 being a length that varies from row to row
    output: TensorSpec  # the scores, one per class
    output_kind: str  # "logits" or "probabilities"
    parameters: int  # number of trained parameters
    macs: float  # multiply-accumulates per row
    macs_counter: str  # which counter gave `macs`
    labels: tuple[str, ...] | None = None  # class names in the order of the scores, if known
    max_batch_size: int = 64  # largest batch that was compared with the framework
    random_weights: bool = False  # True when the weights were never trained; its accuracy means nothing
    preprocess: Preprocess | None = None  # how a client makes a row of an image file
    # results of the comparison with the framework: rows, batches, max_abs, max_rel and more
    parity: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)  # how it was trained, if it was trained here
    versions: dict[str, str] = field(default_factory=dict)  # package -> version, of the packages that made it
    # side of the square that the network itself gets, where the graph resizes; else None
    resolution_px: int | None = None
    # multiply-accumulates per row of the resizing inside the graph; not part of `macs`
    preprocess_macs: float = 0.0
    # what the graph does to an image before the network, and how close that is to the model's own image
    # processor
    in_graph: dict[str, Any] = field(default_factory=dict)
    # how far a member of lower precision agrees with its fp32 original: rows, same_top1 and more
    agreement: dict[str, Any] = field(default_factory=dict)
    # facts about a TensorRT engine: profile, TensorRT version, compute capability and more
    engine: dict[str, Any] = field(default_factory=dict)
    # everything that decides the file, so that a second export with equal options has nothing to do
    options: dict[str, Any] = field(default_factory=dict)
    # files beside the model file that hold weights, path in the member's folder -> sha256
    data_files: dict[str, str] = field(default_factory=dict)
    # processor features by Linux's names; a processor with one of them gives the answers that were compared.
    # Empty where every processor does.
    processor_flags: tuple[str, ...] = ()
    # version of ONNX Runtime -> {"max_abs": ...} where the graph was proven with it, {"not_proven": why}
    # where it could not be tried, {"fault": ...} where it answers otherwise
    runtimes: dict[str, Any] = field(default_factory=dict)
    # facts about the ONNX file a member was made from: its version, opsets, tensor names, changes
    original: dict[str, Any] = field(default_factory=dict)
    length: RowLength | None = None  # where some dim of an input is -1
    # names of the columns that its numbers are, in order, where it was fitted on named ones
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = Faults(f"manifest {self.name}")
        faults.name("name", self.name)
        faults.text("file", self.file)
        for key in (one.name for one in dataclasses.fields(self) if str(one.type).startswith("dict")):
            value = getattr(self, key)
            faults.check(key, isinstance(value, dict), f"got {shown(value)}, expected an object")
        beside = self.data_files if isinstance(self.data_files, dict) else {}
        for key, path in (("file", self.file), *(("data_files", path) for path in beside)):
            outside = isinstance(path, str) and (path.startswith("/") or "\0" in path or ".." in Path(path).parts)
            faults.check(key, not outside, f"got {shown(path)}, expected a path inside the member's folder")
        faults.check("inputs", len(self.inputs) > 0, "got none, expected at least one tensor")
        twice = ", ".join(repeated(tensor.name for tensor in self.inputs))
        faults.check("inputs", not twice, f"got {twice} more than once, expected different names")
        faults.one_of("precision", self.precision, PRECISIONS)
        faults.one_of("output_kind", self.output_kind, OUTPUT_KINDS)
        faults.integer("parameters", self.parameters, low=0, high=MOST_COUNTED)
        for key in ("macs", "preprocess_macs"):
            faults.cost(key, getattr(self, key))
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        for key, most in (("opset", _MOST_OPSET), ("resolution_px", MOST_PX)):
            if getattr(self, key) is not None:
                faults.integer(key, getattr(self, key), low=1, high=most)
        faults.sha256("sha256", self.sha256)
        faults.class_names("labels", self.labels or ())
        self._check_texts(faults)
        for version, proof in self.runtimes.items() if isinstance(self.runtimes, dict) else ():
            faults.check(f"runtimes.{version}", _is_proof(proof), f"got {shown(proof)}, expected {_PROOF}")
        faults.close()

    def _check_texts(self, faults: Faults) -> None:
        for key, texts in (("columns", self.columns), ("processor_flags", self.processor_flags)):
            for index, text in enumerate(texts):
                faults.text(f"{key}[{index}]", text)

    @property
    def takes_one_dense_tensor(self) -> bool:
        """Whether there is an `input`: one tensor of numbers and fixed size."""
        first = self.inputs[0]
        return len(self.inputs) == 1 and first.dtype in INPUT_DTYPES and -1 not in first.dims

    @property
    def input(self) -> TensorSpec:
        """The only input of a member that takes one tensor of numbers and fixed size.

        Raises:
            RepositoryError: the member takes several tensors, text, or rows whose length varies.
        """
        if self.takes_one_dense_tensor:
            return self.inputs[0]
        got = ", ".join(f"{one.name} {one.dtype} {list(one.dims)}" for one in self.inputs)
        raise RepositoryError(
            f"inputs of member {self.name}", got=got, expected="one tensor of numbers with fixed dims for this"
        )


def _is_proof(value: object) -> bool:
    """Whether a value has the form of a result with one version of ONNX Runtime."""
    if not isinstance(value, dict):
        return False
    found = [isinstance(value[key], str) and bool(value[key]) for key in ("not_proven", "fault") if key in value]
    if "max_abs" in value:
        found.append(is_finite(value["max_abs"]) and value["max_abs"] >= 0)
    return bool(found) and all(found)


def one_order(manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    """The columns that models were fitted on, in order; none where no manifest names any.

    Raises:
        SpecError: two name them in different orders, or other ones.
    """
    known = {name: manifest.columns for name, manifest in manifests.items() if manifest.columns}
    first = next(iter(known), "")
    for name, columns in known.items():
        if columns != known[first]:
            got = f"columns {','.join(columns)} of {name}, {','.join(known[first])} of {first}"
            message = f"got {got}, expected one order for all"
            raise SpecError("members", {"columns": message}, fix="fit them on the same columns")
    return known.get(first, ())


def manifest_from_path(path: Path) -> Manifest:
    """The manifest a file holds.

    Raises:
        SpecError: with every fault found, keyed by field.
    """
    value = json_from_text(text_of_file(path, str(path)), str(path))
    if isinstance(value, dict) and DERIVES in value:
        message = (
            f"got {shown(value[DERIVES])}: a model that derives tensors, expected a member, which gives scores"
        )
        raise SpecError(str(path), {DERIVES: message})
    if not isinstance(value, dict) or value.pop("format", None) != MANIFEST_FORMAT:
        message = f"expected an object with format {MANIFEST_FORMAT}"
        raise SpecError(str(path), {"format": message}, fix="export the member again")
    if "input" in value and "inputs" not in value:
        # Members that were exported when every member had one input.
        value["inputs"] = [value.pop("input")]
    tensor = object_of(TensorSpec, dims=VALUES)
    length = object_of(RowLength, macs_coefficients=VALUES)
    convert = {"inputs": array_of(tensor), "output": tensor, "preprocess": object_of(Preprocess)}
    return built(
        Manifest,
        value,
        str(path),
        {**convert, "labels": VALUES, "processor_flags": VALUES, "columns": VALUES, "length": length},
    )


def json_from_manifest(manifest: Manifest) -> str:
    """The text of manifest.json; equal manifests give equal bytes."""
    value = dataclasses.asdict(manifest)
    if not manifest.columns:
        del value["columns"]
    return text_from_json({"format": MANIFEST_FORMAT, **value})
