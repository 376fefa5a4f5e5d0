"""Tiny members on disk and pictures for them, so that a recording takes milliseconds."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from orchestrator.spec import Manifest, Preprocess, TensorSpec
from orchestrator.spec.manifest import json_from_manifest
from tests.onnx_models import model_of

NAMES = ("cat", "dog", "owl")
SIDE = 4
PREPROCESS = Preprocess(mode="RGB", height_px=SIDE, width_px=SIDE)


def write_member(
    repository: Path,
    name: str,
    *,
    seed: int = 0,
    classes: int = 3,
    side: int = SIDE,
    fragile: bool = False,
    even: bool = False,
    **changes: Any,
) -> None:
    """A linear member of uint8 [3, side, side]; a fragile one gives NaN for black pictures.

    An even one answers about as often with one class as with another.
    """
    weights = np.random.default_rng(seed).normal(size=(3 * side * side, classes)).astype(np.float32)
    weights -= weights.mean(axis=0) if even else 0
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
    ]
    last = ("Div", ["raw", "raw"]) if fragile else ("Identity", ["raw"])
    nodes.append(helper.make_node(*last, ["logits"]))
    image = (TensorProto.UINT8, ["batch", 3, side, side])
    model = model_of(nodes, {"image": image}, {"logits": ["batch", classes]}, {"weights": weights}, ir=8)
    data = model.SerializeToString()
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(data)
    facts: dict[str, Any] = {
        "name": name, "file": "1/model.onnx", "sha256": hashlib.sha256(data).hexdigest(), "source": "made up",
        "precision": "fp32", "opset": 18, "output_kind": "logits", "parameters": weights.size,
        "macs": weights.size,
        "inputs": (TensorSpec(name="image", dtype="UINT8", dims=(3, side, side)),),
        "output": TensorSpec(name="logits", dtype="FP32", dims=(classes,)),
        "macs_counter": "by hand", "labels": NAMES if classes == 3 else None, "preprocess": PREPROCESS,
    }  # fmt: skip
    manifest = Manifest(**(facts | changes))
    (folder / "manifest.json").write_text(json_from_manifest(manifest), encoding="utf-8")
    onnx.checker.check_model(model)


def picture(seed: int) -> np.ndarray:
    """uint8 (side, side, 3), never black."""
    return np.random.default_rng(seed).integers(1, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, *, each: int = 4, names: tuple[str, ...] = NAMES) -> list[str]:
    """A class folder per name with `each` pictures; gives their ids in order."""
    ids = [f"{name}/{index:03d}.png" for name in names for index in range(each)]
    for seed, row_id in enumerate(ids):
        path = root / row_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(seed)))
    return ids


def rows_of(count: int) -> np.ndarray:
    """uint8 (n, 3, side, side) of the same pictures."""
    return np.stack([picture(seed).transpose(2, 0, 1) for seed in range(count)])
