"""What the export writes down of a model that derives tensors, such as a tokenizer: reading and writing it.

The file is the same as a member's, manifest.json in the model's folder; the key "derives" tells the two apart.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError, shown
from orchestrator.spec.documents import json_from_text, text_from_json, text_of_file
from orchestrator.spec.manifest import DERIVES, MANIFEST_FORMAT, TensorSpec
from orchestrator.spec.validation import MOST_ROWS, VALUES, Faults, array_of, built, is_finite, object_of

KINDS = ("tokens", "pictures")


@dataclass(frozen=True, kw_only=True)
class PaddedTensor(TensorSpec):
    """A tensor whose length may vary."""

    pad: float | None = None  # value that fills a shorter row up; None where every row has the same shape

    def __post_init__(self) -> None:
        super().__post_init__()
        faults = Faults(f"tensor {self.name}")
        faults.check("pad", self.pad is None or is_finite(self.pad), f"got {shown(self.pad)}, expected a number")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class DerivingManifest:
    """What is known of an exported model that derives tensors."""

    name: str  # Triton model name
    derives: str  # one of KINDS
    file: str  # model file relative to the folder; it holds the hashes of the others
    sha256: str  # of that file
    source: str  # what it was made from, in words with which a person can find it again
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[PaddedTensor, ...]
    max_batch_size: int = 64
    data_files: dict[str, str] = field(
        default_factory=dict
    )  # path in the folder -> sha256, as the model file has them
    packages: dict[str, str] = field(default_factory=dict)  # that the server needs besides numpy -> version
    options: dict[str, Any] = field(default_factory=dict)  # what it does with rows
    parity: dict[str, Any] = field(default_factory=dict)  # results of the comparison with the original

    def __post_init__(self) -> None:
        faults = Faults(f"manifest {self.name}")
        faults.name("name", self.name)
        faults.one_of(DERIVES, self.derives, KINDS)
        for key in ("file", "source"):
            faults.text(key, getattr(self, key))
        faults.sha256("sha256", self.sha256)
        faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        for key in ("inputs", "outputs"):
            faults.check(key, len(getattr(self, key)) > 0, "got none, expected at least one tensor")
        for key in ("data_files", "packages", "options", "parity"):
            value = getattr(self, key)
            faults.check(key, isinstance(value, dict), f"got {shown(value)}, expected an object")
        faults.close()

    @property
    def pads_left(self) -> bool:
        """Whether shorter rows are filled up in front, which no plan can take apart again."""
        return bool(self.options.get("padding_side") == "left")

    def as_derived(self, version: int = 1) -> dict[str, Any]:
        """The entry under `derived` of a cascade.json that uses the model for tensors of the same names."""
        known = [dataclasses.asdict(one) for one in self.outputs]
        outputs = [{key: value for key, value in one.items() if value is not None} for one in known]
        return {
            "model": self.name,
            "version": version,
            "sha256": self.sha256,
            "inputs": {one.name: one.name for one in self.inputs},
            "outputs": outputs,
            "max_batch_size": self.max_batch_size,
        }


def is_deriving(path: Path) -> bool:
    """Whether a manifest is of a model that derives tensors; SpecError where it cannot be read."""
    value = json_from_text(text_of_file(path, str(path)), str(path))
    return isinstance(value, dict) and DERIVES in value


def deriving_from_path(path: Path) -> DerivingManifest:
    """The manifest a file holds; SpecError with every fault found, keyed by field."""
    value = json_from_text(text_of_file(path, str(path)), str(path))
    if not isinstance(value, dict) or value.pop("format", None) != MANIFEST_FORMAT:
        message = f"expected an object with format {MANIFEST_FORMAT}"
        raise SpecError(str(path), {"format": message}, fix="export the model again")
    tensors = {
        "inputs": array_of(object_of(TensorSpec, dims=VALUES)),
        "outputs": array_of(object_of(PaddedTensor, dims=VALUES)),
    }
    return built(DerivingManifest, value, str(path), tensors)


def json_from_deriving(manifest: DerivingManifest) -> str:
    """The text of manifest.json; equal manifests give equal bytes."""
    return text_from_json({"format": MANIFEST_FORMAT, **dataclasses.asdict(manifest)})
