"""Descriptions read from disk: the cascade (cascade.json) and the member manifest."""

from orchestrator.spec.cascade import (
    COMBINES,
    SCORES,
    CascadeSpec,
    Fit,
    FusedPrefix,
    Gear,
    Gears,
    Limits,
    Member,
    Stage,
)
from orchestrator.spec.cascade_json import FORMAT, cascade_from_json, cascade_from_path, json_from_cascade
from orchestrator.spec.derived import Derived, DerivedTensor
from orchestrator.spec.manifest import Manifest, RowLength, TensorSpec, manifest_from_path
from orchestrator.spec.request import InputSpec, Preprocess, RowTensor

__all__ = [
    "COMBINES", "FORMAT", "SCORES", "CascadeSpec", "Derived", "DerivedTensor", "Fit", "FusedPrefix", "Gear",
    "Gears", "InputSpec", "Limits", "Manifest", "Member", "Preprocess", "RowLength", "RowTensor", "Stage",
    "TensorSpec", "cascade_from_json", "cascade_from_path", "json_from_cascade", "manifest_from_path",
]  # fmt: skip
