"""ONNX files with several inputs, and with rows whose length varies: names mapped, padding held to the answers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from export.__main__ import app
from export.runtimes import Question, answers_in_own_process
from export.tensor_rows import TensorRows, kinds_from_graph, lengths_of, made_up_rows
from orchestrator.errors import ExportError
from orchestrator.repository.check import check
from orchestrator.spec import Manifest, TensorSpec, manifest_from_path
from tests.onnx_models import model_of, node

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(50, 8)).astype(np.float32)
HEAD = RNG.normal(size=(8, 3)).astype(np.float32)
INT64 = TensorProto.INT64


def token_file(folder: Path, *, masked: bool = True, opset: int = 18) -> Path:
    """Scores of the mean vector of a row's tokens; without the mask's help padding counts as a token."""
    mask = ["mask"] if masked else ["ones"]
    nodes = [
        node("Gather", ["table", "tokens"], ["vectors"]),
        node("Cast", mask, ["numbers"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["numbers", "last"], ["column"]),
        node("Mul", ["vectors", "column"], ["kept"]),
        node("ReduceSum", ["kept", "axis"], ["total"], keepdims=0),
        node("ReduceSum", ["numbers", "axis"], ["count"], keepdims=1),
        node("Div", ["total", "count"], ["mean"]),
        node("MatMul", ["mean", "head"], ["scores"]),
    ]
    if not masked:
        nodes = [node("Equal", ["tokens", "tokens"], ["same"]), node("Or", ["same", "same"], ["ones"]), *nodes]
    weights = {"table": TABLE, "head": HEAD, "axis": np.array([1]), "last": np.array([2])}
    names = ("tokens", "mask") if masked else ("tokens",)
    model = model_of(
        nodes, {name: (INT64, ["n", "len"]) for name in names}, {"scores": ["n", 3]}, weights, opset=opset
    )
    path = folder / "tokens.onnx"
    onnx.save(model, path)
    return path


def pair_file(folder: Path, second: Any = ("n", 2)) -> Path:
    nodes = [node("Concat", ["left", "right"], ["both"], axis=1), node("MatMul", ["both", "w"], ["scores"])]
    weights = {"w": RNG.normal(size=(6, 3)).astype(np.float32)}
    path = folder / "pair.onnx"
    onnx.save(model_of(nodes, {"left": ["n", 4], "right": list(second)}, {"scores": ["n", 3]}, weights), path)
    return path


def exported(folder: Path, path: Path, *words: object) -> tuple[Manifest, onnxruntime.InferenceSession]:
    options = ("-o", str(folder / "r"), "--runtimes", "none", *map(str, words))
    done = CliRunner().invoke(app, ["member", f"m=onnx:{path}", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert check(folder / "r")
    session = onnxruntime.InferenceSession(folder / "r/m/1/model.onnx")
    return manifest_from_path(folder / "r/m/manifest.json"), session


@pytest.mark.parametrize("opset", [13, 18])
def test_a_file_with_a_length_becomes_a_member_under_the_names_that_are_given(tmp_path: Path, opset: int) -> None:
    names = ("--input", "tokens=input_ids", "--input", "mask=attention_mask")
    manifest, session = exported(tmp_path, token_file(tmp_path, opset=opset), *names, "--max-length", 40)
    assert [(one.name, one.dims) for one in manifest.inputs] == [("input_ids", (-1,)), ("attention_mask", (-1,))]
    assert manifest.original["changes"][-2:] == [
        "input tokens called input_ids", "input mask called attention_mask"
    ]  # fmt: skip
    assert manifest.length is not None
    assert (manifest.length.longest, manifest.length.macs_coefficients) == (40, (24, 0, 0))
    assert manifest.parity["padding"]["max_abs"] < 1e-5
    ids, mask = np.array([[3, 9, 0], [7, 0, 0]]), np.array([[1, 1, 0], [1, 0, 0]])
    expected = np.stack([TABLE[[3, 9]].mean(axis=0), TABLE[7]]) @ HEAD
    got = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_several_inputs_of_fixed_size_keep_their_names(tmp_path: Path) -> None:
    manifest, session = exported(tmp_path, pair_file(tmp_path))
    assert [(one.name, one.dtype, one.dims) for one in manifest.inputs] == [
        ("left", "FP32", (4,)), ("right", "FP32", (2,))
    ]  # fmt: skip
    assert (manifest.length, manifest.macs) == (None, 18)
    assert [one.name for one in session.get_inputs()] == ["left", "right"]


def test_names_may_be_exchanged(tmp_path: Path) -> None:
    manifest, session = exported(tmp_path, pair_file(tmp_path), "--input", "left=right", "--input", "right=left")
    assert [(one.name, one.dims) for one in manifest.inputs] == [("right", (4,)), ("left", (2,))]
    assert [(one.name, one.shape) for one in session.get_inputs()] == [
        ("right", ["batch", 4]),
        ("left", ["batch", 2]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "tokens=x"), "input tokens: got a row of any length, expected the most that it may be"),
        (("--max-length", "9", "--dims", "7"), "--dims: got it beside 2 inputs (tokens, mask)"),
        (("--max-length", "9", "--pad", "ids=0"), "--pad: got ids, expected some of tokens, mask"),
        (("--max-length", "9", "--input", "a=b"), "--input: got a, expected some of tokens, mask"),
    ],
)
def test_options_that_do_not_fit_are_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, token_file(tmp_path), *words)


def test_files_that_no_batch_can_hold_are_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path, pair_file(tmp_path, (5, 2)))
    assert "input right: got a batch axis fixed at 5, expected a free one" in said
    path = tmp_path / "two_lengths.onnx"
    nodes = [
        node("Concat", ["a", "b"], ["both"], axis=1),
        node("ReduceMean", ["both", "axes"], ["scores"], keepdims=0),
    ]
    takes = {"a": ["n", "l", "m", 3], "b": ["n", "l", "m", 3]}
    onnx.save(model_of(nodes, takes, {"scores": ["n", 3]}, {"axes": np.array([1, 2])}), path)
    said = refused(tmp_path, path, "--max-length", "9")
    assert "input a: got dims [-1, -1, 3] after the batch axis, -1 where free, expected one free axis" in said
    said = refused(tmp_path, pair_file(tmp_path), "--max-length", "9")
    assert "--max-length: got it with inputs left [4], right [2], expected none" in said


def test_a_model_that_padding_moves_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, token_file(tmp_path, masked=False), "--max-length", "40")
    assert "padding: got answers that move by up to" in said
    assert "give the padding that the model expects with --pad, or export a model that takes a mask" in said
    assert not (tmp_path / "r/m").exists()


def text_file(folder: Path, texts: int = 1) -> Path:
    """Scores of a word, or of several, and two numbers."""
    nodes = [
        node("LabelEncoder", ["colour"], ["number"], domain="ai.onnx.ml", keys_strings=["red", "blue"],
             values_floats=[1.0, 2.0], default_float=0.5),
        node("Concat", ["number", "x"], ["both"], axis=1),
        node("MatMul", ["both", "w"], ["scores"]),
    ]  # fmt: skip
    weights = {"w": np.arange(6 + 3 * texts, dtype=np.float32).reshape(-1, 3)}
    takes = {"colour": (TensorProto.STRING, ["n", texts]), "x": ["n", 2]}
    model = model_of(nodes, takes, {"scores": ["n", 3]}, weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    path = folder / "text.onnx"
    onnx.save(model, path)
    return path


def test_a_text_per_row_may_stand_beside_numbers(tmp_path: Path) -> None:
    manifest, session = exported(tmp_path, text_file(tmp_path), "--input", "colour=text")
    assert [(one.name, one.dtype, one.dims) for one in manifest.inputs] == [
        ("text", "STRING", (1,)), ("x", "FP32", (2,))
    ]  # fmt: skip
    assert (manifest.macs, manifest.length) == (9, None)
    text = np.array([["blue"], ["green"]], object)
    got = session.run(["logits"], {"text": text, "x": np.ones((2, 2), np.float32)})[0]
    assert got.tolist() == [[9, 13, 17], [9, 11.5, 14]]
    said = refused(tmp_path, text_file(tmp_path, 2))
    assert "input colour: got texts of dims [2] after the batch axis, -1 where free, expected [1]" in said


def test_made_up_texts_have_words_that_the_model_knows(tmp_path: Path) -> None:
    graph = onnx.load(text_file(tmp_path)).graph
    (kind,) = kinds_from_graph(graph, [TensorSpec(name="colour", dtype="STRING", dims=(1,))], {})
    words = {word for (text,) in made_up_rows([kind], 50).arrays["colour"] for word in text.split()}
    assert {"red", "blue", "word"} <= words


def refused(folder: Path, path: Path, *words: str) -> str:
    done = CliRunner().invoke(
        app, ["member", f"m=onnx:{path}", "-o", str(folder / "r"), "--runtimes", "none", *words]
    )
    assert isinstance(done.exception, ExportError), done.output
    return str(done.exception)


def test_other_runtimes_are_asked_with_all_tensors_at_the_batchs_own_length(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    specs = [TensorSpec(name=name, dtype="INT64", dims=(-1,)) for name in ("tokens", "mask")]
    kinds = kinds_from_graph(onnx.load(path).graph, specs, {})
    rows = made_up_rows(kinds, 9, longest=20)
    (said,) = answers_in_own_process([Question(model=path, rows=rows, batches={1: 9, 4: 9})])
    assert not isinstance(said, str), said
    session = onnxruntime.InferenceSession(path)
    for size in (1, 4):
        parts = [session.run(None, dict(rows[start : start + size].arrays))[0] for start in range(0, 9, size)]
        assert np.array_equal(said[size], np.concatenate(parts))


def test_rows_are_as_long_as_the_longest_of_them_and_grow_with_padding() -> None:
    ids = np.array([[4, 5, 6], [7, 9, 9], [8, 9, 9]])
    types = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    pad = {"ids": 9.0, "types": 0.0}
    lengths = lengths_of({"ids": ids, "types": types}, pad)
    assert lengths.tolist() == [3, 2, 1]
    rows = TensorRows(arrays={"ids": ids, "types": types, "x": np.arange(3)[:, None]}, lengths=lengths, pad=pad)
    assert rows[1:].arrays["ids"].tolist() == [[7, 9], [8, 9]]
    assert rows[2:].padded(3).arrays["ids"].tolist() == [[8, 9, 9]]
    assert rows[np.array([2, 0])].arrays["x"].tolist() == [[2], [0]]
