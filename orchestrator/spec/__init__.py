"""Descriptions read from disk: the cascade (cascade.json) and the member manifest."""

from orchestrator.spec.cascade import (
    COMBINES,
    FORMAT,
    SCORES,
    CascadeSpec,
    Fit,
    FusedPrefix,
    Gear,
    Gears,
    Limits,
    Member,
    Stage,
    cascade_from_json,
    cascade_from_path,
    json_from_cascade,
)
from orchestrator.spec.manifest import Manifest, RowLength, TensorSpec, manifest_from_path
from orchestrator.spec.request import InputSpec, Preprocess

__all__ = [
    "COMBINES", "FORMAT", "SCORES", "CascadeSpec", "Fit", "FusedPrefix", "Gear", "Gears", "InputSpec", "Limits",
    "Manifest", "Member", "Preprocess", "RowLength", "Stage", "TensorSpec", "cascade_from_json",
    "cascade_from_path", "json_from_cascade", "manifest_from_path",
]  # fmt: skip
