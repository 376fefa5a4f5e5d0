"""Tiny members that take text or numbers, so that a recording takes milliseconds."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from orchestrator.spec import Manifest, RowLength, TensorSpec
from orchestrator.spec.deriving import DerivingManifest, PaddedTensor
from orchestrator.spec.manifest import json_from_manifest
from tests.commands import printed_by
from tests.onnx_models import model_of

GOOD = ("good", "fine \N{GRINNING FACE}", 'a "b"\nc')
NAMES = ("bad", "good")
TOKENS = ("input_ids", "attention_mask")
Record = Callable[..., str]


def recorder(folder: Path, capsys: pytest.CaptureFixture[str]) -> Record:
    """Runs the command over members in the folder; gives what it printed, to stderr where it failed."""

    def recorded(*words: object, code: int = 0) -> str:
        asked = ["record", *words, "--repository", folder, "-o", folder / "out.npz"]
        return printed_by(asked, capsys, code=code)

    return recorded


def _write(
    repository: Path, name: str, model: Any, inputs: tuple[TensorSpec, ...], macs: float,
    length: RowLength | None = None,
) -> None:  # fmt: skip
    data = model.SerializeToString()
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(data)
    manifest = Manifest(
        name=name, file="1/model.onnx", sha256=hashlib.sha256(data).hexdigest(), source="made up",
        precision="fp32", opset=18, output_kind="logits", parameters=1, macs=macs, inputs=inputs,
        output=TensorSpec(name="logits", dtype="FP32", dims=(2,)), macs_counter="by hand", labels=NAMES,
        length=length,
    )  # fmt: skip
    (folder / "manifest.json").write_text(json_from_manifest(manifest), encoding="utf-8")


def tokenizer_manifest(name: str, *, pad: float, **changes: Any) -> DerivingManifest:
    """Of a model that makes the token ids of a text."""
    tensors = tuple(PaddedTensor(name=one, dtype="INT64", dims=(-1,), pad=pad) for one in TOKENS)
    known = {
        "derives": "tokens",
        "file": "1/model.py",
        "sha256": hashlib.sha256(b"").hexdigest(),
        "source": "made up",
    }
    text = TensorSpec(name="text", dtype="STRING", dims=(1,))
    return DerivingManifest(**{"name": name, "inputs": (text,), "outputs": tensors, **known, **changes})


def write_text_member(repository: Path, name: str = "words", *, sure_of_others: float = 3.0) -> None:
    """Class 1 for the texts of `GOOD`, class 0 for all others."""
    attributes: dict[str, Any] = {"keys_strings": list(GOOD), "values_floats": [3.0] * len(GOOD)}
    attributes["default_float"] = -sure_of_others
    nodes = [
        helper.make_node("LabelEncoder", ["text"], ["score"], domain="ai.onnx.ml", **attributes),
        helper.make_node("Neg", ["score"], ["other"]),
        helper.make_node("Concat", ["other", "score"], ["logits"], axis=1),
    ]
    model = model_of(nodes, {"text": (TensorProto.STRING, ["n", 1])}, {"logits": ["n", 2]}, ir=8)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    _write(repository, name, model, (TensorSpec(name="text", dtype="STRING", dims=(1,)),), 10)


def write_pair_member(repository: Path, name: str = "pair") -> None:
    """Class 1 where the first of two texts is one of `GOOD` and the second is not."""
    encoders = [
        helper.make_node(
            "LabelEncoder", [tensor], [f"{tensor}_score"], domain="ai.onnx.ml", keys_strings=list(GOOD),
            values_floats=[3.0] * len(GOOD), default_float=0.0,
        )
        for tensor in ("text", "text_pair")
    ]  # fmt: skip
    nodes = [
        *encoders,
        helper.make_node("Sub", ["text_score", "text_pair_score"], ["score"]),
        helper.make_node("Neg", ["score"], ["other"]),
        helper.make_node("Concat", ["other", "score"], ["logits"], axis=1),
    ]
    takes = {tensor: (TensorProto.STRING, ["n", 1]) for tensor in ("text", "text_pair")}
    model = model_of(nodes, takes, {"logits": ["n", 2]}, ir=8)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    tensors = tuple(TensorSpec(name=tensor, dtype="STRING", dims=(1,)) for tensor in takes)
    _write(repository, name, model, tensors, 20)


def write_numbers_member(repository: Path, name: str = "table") -> None:
    """Class 1 where the first of three numbers is larger than the last; a missing one is 0."""
    weights = np.array([[-1, 1], [0, 0], [1, -1]], np.float32)
    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "features"], ["known"]),
        helper.make_node("MatMul", ["known", "weights"], ["logits"]),
    ]
    model = model_of(
        nodes, {"features": ["n", 3]}, {"logits": ["n", 2]}, {"weights": weights, "zero": np.float32(0)}, ir=8
    )
    _write(repository, name, model, (TensorSpec(name="features", dtype="FP32", dims=(3,)),), 6)


def write_tokens_member(
    repository: Path, name: str = "tokens", *, length: RowLength | None = None, only: int = 1
) -> None:
    """Class 1 where the token ids that the mask shows add up to more than 10, of rows of any length.

    With `only` above 1 it fails where rows have neither one token nor so many.
    """
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["product"]),
        helper.make_node("Add", ["product", "places"], ["shown"]),
        helper.make_node("ReduceSum", ["shown", "axis"], ["sum"], keepdims=1),
        helper.make_node("Cast", ["sum"], ["score"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["score", "ten"], ["more"]),
        helper.make_node("Neg", ["more"], ["less"]),
        helper.make_node("Concat", ["less", "more"], ["logits"], axis=1),
    ]
    ids = (TensorProto.INT64, ["n", "length"])
    weights = {"axis": np.array([1]), "ten": np.float32(10), "places": np.zeros(only, np.int64)}
    model = model_of(nodes, {"input_ids": ids, "attention_mask": ids}, {"logits": ["n", 2]}, weights, ir=8)
    tensors = tuple(TensorSpec(name=one, dtype="INT64", dims=(-1,)) for one in TOKENS)
    _write(repository, name, model, tensors, 100, length=length)
