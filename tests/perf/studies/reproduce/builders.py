"""Tiny members on made-up pictures, and records of members that do not exist: nothing is trained here."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, Stage, TensorSpec
from orchestrator.spec.manifest import json_from_manifest
from perf.studies.drawn import DrawnPart
from perf.studies.reproduce.parts import PlanPart, TestPart
from tests.onnx_models import model_of

CLASSES = 5
SIDE = 4
# Name -> its cost and how wrong its weights are.
MEMBERS = {
    "glyphs_b0_s0": (100, 0.75),
    "glyphs_b0_s1": (100, 0.75),
    "glyphs_b1_s0": (2000, 0.25),
    "glyphs_b1_s1": (2000, 0.25),
    "glyphs_self_low": (300, 0.5),
    "glyphs_self_high": (1000, 0.3),
}
PROTOTYPES = np.random.default_rng(7).uniform(60, 200, (CLASSES, SIDE * SIDE))
SIGMA = 45.0


def pictures(seed: int, rows: int, first: int) -> DrawnPart:
    """Noise around one prototype per class, much of it on some pictures."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, rows)
    noise = rng.normal(size=(rows, SIDE * SIDE)) * SIGMA * (0.3 + 1.6 * rng.random((rows, 1)))
    images = np.clip(np.rint(PROTOTYPES[labels] + noise), 0, 255).astype(np.uint8)
    ids = np.array([f"made:{number}" for number in range(first, first + rows)])
    return DrawnPart(ids=ids, images=images.reshape(rows, 1, SIDE, SIDE), labels=labels)


def draw(part: str, rows: int | None) -> DrawnPart:
    return pictures({"plan": 1, "test": 2}[part], rows or 600, {"plan": 0, "test": 10_000}[part])


def write_members(repository: Path, names: tuple[str, ...] = tuple(MEMBERS)) -> None:
    """Linear members: the best classifier for these pictures, with errors in its weights."""
    for number, name in enumerate(names):
        macs, wrong = MEMBERS[name]
        rng = np.random.default_rng(100 + number)
        weights = (PROTOTYPES - PROTOTYPES.mean(axis=0)) / SIGMA**2
        weights = weights + wrong * weights.std() * rng.normal(size=weights.shape)
        bias = -(PROTOTYPES**2 - PROTOTYPES.mean(axis=0) ** 2).sum(axis=1) / (2 * SIGMA**2)
        model = _linear(weights.astype(np.float32), bias.astype(np.float32))
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        (folder / "1/model.onnx").write_bytes(model)
        manifest = Manifest(
            name=name, file="1/model.onnx", sha256=hashlib.sha256(model).hexdigest(), source="made up",
            precision="fp32", opset=18, inputs=(TensorSpec(name="image", dtype="UINT8", dims=(1, SIDE, SIDE)),),
            output=TensorSpec(name="logits", dtype="FP32", dims=(CLASSES,)), output_kind="logits",
            parameters=weights.size, macs=macs, macs_counter="made up", preprocess_macs=10, resolution_px=SIDE,
        )  # fmt: skip
        (folder / "manifest.json").write_text(json_from_manifest(manifest))


def _linear(weights: Any, bias: Any) -> bytes:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    image = (TensorProto.UINT8, ["batch", 1, SIDE, SIDE])
    model = model_of(nodes, {"image": image}, {"logits": ["batch", CLASSES]}, {"w": weights, "b": bias})
    return bytes(model.SerializeToString())


def family_records(seed: int, rows: int, *, sizes: int = 3, classes: int = 8, first: int = 0) -> Records:
    """Members whose mistakes are partly shared: by hard rows, by rows all find alike, and by nothing but seed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    shared, easy = rng.normal(size=(rows, classes)), rng.exponential(1.2, rows)
    outputs, cost = {}, {}
    for size in range(sizes):
        of_size = rng.normal(size=(rows, classes))
        for number in range(2):
            z = 0.8 * shared + 0.5 * of_size + 0.6 * rng.normal(size=(rows, classes))
            z[np.arange(rows), labels] += 1.4 + 0.5 * size + 1.5 * easy
            name = f"glyphs_b{size}_s{number}"
            outputs[name], cost[name] = (1.5 * z).astype(np.float32), float(4**size)
    meta = {"members": {name: {"sha256": "0" * 64, "output_kind": "logits"} for name in outputs}}
    ids = np.arange(first, first + rows)
    return Records(ids=ids, labels=labels, outputs=outputs, cost=cost, meta=meta)


def base_of(records: Records) -> CascadeSpec:
    members = (Member(name=name, output="logits", cost=records.cost[name]) for name in records.outputs)
    return CascadeSpec(
        name="glyphs",
        inputs=(InputSpec(name="image", dtype="UINT8", dims=(1, SIDE, SIDE)),),
        classes=records.classes,
        stages=tuple(Stage(members=(member,)) for member in members),
    )


def plan_part(seed: int = 0, rows: int = 1500, **changes: Any) -> PlanPart:
    records = family_records(seed, rows, **changes)
    return PlanPart(records=records, base=base_of(records), data_sha256=f"{seed:064}")


def evaluation_part(seed: int = 1, rows: int = 1500, **changes: Any) -> TestPart:
    records = family_records(seed, rows, first=10_000, **changes)
    images = np.zeros((rows, 1, SIDE, SIDE), np.uint8)
    return TestPart(records=records, base=base_of(records), images=images, data_sha256=f"{seed:064}")
