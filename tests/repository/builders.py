"""Tiny models and specs for the repository's tests."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from orchestrator.repository.checked import render_checked
from orchestrator.repository.files import Rendering
from orchestrator.repository.render import render_member
from orchestrator.spec import CascadeSpec, InputSpec, Limits, Manifest, Member, Stage, TensorSpec
from orchestrator.spec.manifest import json_from_manifest
from tests.onnx_models import model_of

CLASSES = 3
DIMS = (4,)
MAX_BATCH = 8
PIXELS = TensorSpec(name="pixels", dtype="FP32", dims=DIMS)  # an input of another name than the cascade's
# What a model of tokens takes: as many of both as a row has.
TOKENS = tuple(TensorSpec(name=name, dtype="INT64", dims=(-1,)) for name in ("input_ids", "attention_mask"))


def token_model(seed: int, *, classes: int = CLASSES) -> onnx.ModelProto:
    """logits = the mean of (id x mask), times a weight per class."""
    weights = np.random.default_rng(seed).normal(size=(1, classes)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axis"], ["mean"], keepdims=1),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    takes = {one.name: (onnx.TensorProto.INT64, ["n", "length"]) for one in TOKENS}
    return model_of(nodes, takes, {"logits": ["n", classes]}, {"w": weights, "axis": np.array([1], np.int64)})


def linear_model(seed: int, *, classes: int = CLASSES, batch: str | int = "n", **names: str) -> onnx.ModelProto:
    """logits = x @ w, weights from the seed."""
    weights = np.random.default_rng(seed).normal(size=(DIMS[0], classes)).astype(np.float32)
    x, logits = names.get("input", "x"), names.get("output", "logits")
    product = helper.make_node("MatMul", [x, "w"], [logits])
    return model_of([product], {x: [batch, *DIMS]}, {logits: [batch, classes]}, {"w": weights})


def manifest_of(name: str, sha256: str, **changes: Any) -> Manifest:
    manifest = Manifest(
        name=name,
        file="1/model.onnx",
        sha256=sha256,
        source="a test",
        precision="fp32",
        opset=18,
        inputs=(TensorSpec(name="x", dtype="FP32", dims=DIMS),),
        output=TensorSpec(name="logits", dtype="FP32", dims=(CLASSES,)),
        output_kind="logits",
        parameters=12,
        macs=12.0,
        macs_counter="by hand",
        max_batch_size=MAX_BATCH,
    )
    return dataclasses.replace(manifest, **changes)


def add_member(
    repository: Path, name: str, *, seed: int = 0, model: onnx.ModelProto | None = None, **changes: Any
) -> Member:
    """A member on disk with manifest and config, and how a plan names it."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    data = (model or linear_model(seed)).SerializeToString()
    (folder / "1" / "model.onnx").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    manifest = manifest_of(name, digest, **changes)
    (folder / "manifest.json").write_text(json_from_manifest(manifest))
    render_member(folder)
    return Member(name=name, output="logits", cost=12.0, max_batch_size=MAX_BATCH, sha256=digest)


def spec_of(*members: Member, name: str = "cascade", **changes: Any) -> CascadeSpec:
    """One stage per member."""
    stages = tuple(
        Stage(members=(member,), threshold=None if index == len(members) - 1 else 0.75)
        for index, member in enumerate(members)
    )
    spec = CascadeSpec(
        name=name,
        inputs=(InputSpec(name="x", dtype="FP32", dims=DIMS),),
        classes=CLASSES,
        labels=("ant", "bee", "cow"),
        stages=stages,
        limits=Limits(max_batch_size=32),
    )
    return dataclasses.replace(spec, **changes)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def render_output(repository: Path, output: Path, **plans: Any) -> Rendering:
    """Renders into a folder of its own what has no faults."""
    done, report = render_checked(repository, output=output, **{"cascades": [], **plans})
    assert report, report.faults
    return done
