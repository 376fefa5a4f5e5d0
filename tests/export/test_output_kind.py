"""Logits or probabilities, found by `python -m export member`; and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from orchestrator.graphs.combining import GraphBuilder
from orchestrator.repository.check import check
from orchestrator.spec import manifest_from_path
from tests.export.test_member_command import said
from tests.onnx_models import model_of


def softmax(g: GraphBuilder, z: str) -> str:
    return g.op("Softmax", z, axis=1)


def mean_of_two(g: GraphBuilder, z: str) -> str:
    return g.op("Mean", softmax(g, z), softmax(g, g.op("Mul", z, g.constant(3))))


def in_half(g: GraphBuilder, z: str) -> str:
    return g.op("Cast", softmax(g, g.op("Cast", z, to=TensorProto.FLOAT16)), to=TensorProto.FLOAT)


def pair(g: GraphBuilder, z: str) -> str:
    p = g.op("Sigmoid", g.op("Slice", z, *(g.constant([one], np.int64) for one in (0, 1, 1))))
    return g.op("Concat", g.op("Sub", g.constant(1), p), p, axis=1)


def mixed(g: GraphBuilder, z: str) -> str:
    return g.op("MatMul", softmax(g, z), g.constant([[1, 0], [1, 0], [0, 1], [0.5, 0.5], [0, 1]]))


def near_a_half(g: GraphBuilder, z: str) -> str:
    two = g.op("MatMul", z, g.constant(np.eye(5, 2) * 0.0005))
    return g.op("Add", two, g.constant([0.5, 0.5]))


def prior(g: GraphBuilder, z: str) -> str:
    return g.op("Add", g.op("Mul", z, g.constant(0)), g.constant([0.1, 0.2, 0.3, 0.2, 0.2]))


def half_tanh(g: GraphBuilder, z: str) -> str:
    return g.op("Mul", g.op("Add", g.op("Tanh", z), g.constant(1)), g.constant(0.5))


HEADS: dict[str, tuple[Callable[[GraphBuilder, str], str], int]] = {
    "logits": (lambda g, z: z, 5),
    "log_softmax": (lambda g, z: g.op("LogSoftmax", z, axis=1), 5),
    "zeros": (lambda g, z: g.op("Mul", z, g.constant(0)), 5),
    "near_a_half": (near_a_half, 2),
    "prior": (prior, 5),
    "clipped": (lambda g, z: g.op("Clip", z, g.constant(0), g.constant(1)), 5),
    "softmax": (softmax, 5),
    "mean_of_two": (mean_of_two, 5),
    "mixed": (mixed, 2),
    "in_half": (in_half, 5),
    "pair": (pair, 2),
    "pair_of_sigmoids": (lambda g, z: g.op("Sigmoid", g.op("MatMul", z, g.constant(np.eye(5, 1) * [[1, -1]]))), 2),
    "sigmoid": (lambda g, z: g.op("Sigmoid", z), 5),
    "half_tanh": (half_tanh, 5),
    "percent": (lambda g, z: g.op("Mul", softmax(g, z), g.constant(100)), 5),
    "negative_log": (lambda g, z: g.op("Neg", g.op("LogSoftmax", z, axis=1)), 5),
    "negative_log_by_hand": (lambda g, z: g.op("Neg", g.op("Log", softmax(g, z))), 5),
    "twice_less_one": (lambda g, z: g.op("Sub", g.op("Mul", softmax(g, z), g.constant(2)), g.constant(1)), 5),
    "one_less": (lambda g, z: g.op("Sub", softmax(g, z), g.constant(1)), 5),
    "centred": (lambda g, z: g.op("Sub", z, g.op("ReduceMean", z, g.constant([1], np.int64), keepdims=1)), 5),
    "one_column": (lambda g, z: g.op("Sigmoid", g.op("MatMul", z, g.constant(np.eye(5, 1)))), 1),
}


def file_of(name: str, folder: Path) -> Path:
    """A layer and the head of that name, as somebody's ONNX file."""
    make, classes = HEADS[name]
    g = GraphBuilder()
    weights = np.random.default_rng(0).normal(size=(6, 5))
    output = make(g, g.op("MatMul", "x", g.constant(weights)))
    path = folder / f"{name}.onnx"
    onnx.save(model_of(g.nodes, {"x": ["n", 6]}, {output: ["n", classes]}, g.constants, ir=8), path)
    return path


def exported(name: str, folder: Path, *words: str) -> tuple[int, str]:
    return said("member", f"onnx:{file_of(name, folder)}", "-o", str(folder / "r"), *words)


@pytest.mark.parametrize(
    ("name", "words", "kind"),
    [
        *((name, [], "probabilities") for name in ("softmax", "mean_of_two", "mixed", "in_half", "pair")),
        *((name, [], "logits") for name in ("logits", "log_softmax", "zeros", "near_a_half", "prior")),
        ("pair_of_sigmoids", [], "probabilities"),
        ("softmax", ["--probabilities"], "probabilities"),
        ("mean_of_two", ["--output-kind", "probabilities"], "probabilities"),
        ("logits", ["--output-kind", "logits"], "logits"),
        # Where the values do not tell, the user is believed.
        ("prior", ["--probabilities"], "probabilities"),
        ("near_a_half", ["--probabilities"], "probabilities"),
        ("clipped", ["--output-kind", "logits"], "logits"),
        ("centred", [], "logits"),
        ("twice_less_one", ["--output-kind", "logits"], "logits"),
    ],
)
def test_the_kind_is_found_and_a_flag_that_says_the_same_changes_nothing(
    name: str, words: list[str], kind: str, tmp_path: Path
) -> None:
    code, out = exported(name, tmp_path, *words)
    assert code == 0, out
    assert f"gives {kind}" in out
    assert manifest_from_path(tmp_path / "r" / name / "manifest.json").output_kind == kind
    assert not check(tmp_path / "r").faults


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("softmax", ["--output-kind", "logits"], "ends in Softmax, and values from"),
        ("mean_of_two", ["--output-kind", "logits"], "leave the option out, they are probabilities"),
        ("logits", ["--probabilities"], "leave the option out, they are logits"),
        ("sigmoid", [], "ends in Sigmoid"),
        ("sigmoid", ["--output-kind", "logits"], "classes must exclude each other"),
        ("half_tanh", [], "as sigmoids give"),
        ("clipped", [], "say --output-kind logits"),
        ("percent", [], "add up to 100, as percentages do"),
        ("negative_log", [], "without the last minus sign"),
        ("negative_log_by_hand", ["--output-kind", "logits"], "exp(-score) adds up to 1"),
        ("twice_less_one", [], "as shifted or scaled probabilities do"),
        ("twice_less_one", ["--probabilities"], "as shifted or scaled probabilities do"),
        ("one_less", [], "say --output-kind logits if they are"),
        ("one_column", [], "export two columns"),
        ("logits", ["--output-kind", "scores"], "auto or logits or probabilities"),
        ("logits", ["--probabilities", "--output-kind", "logits"], "one of them"),
    ],
)
def test_what_is_neither_or_not_what_a_flag_says_is_one_line_and_nothing_is_written(
    name: str, words: list[str], says: str, tmp_path: Path
) -> None:
    code, out = exported(name, tmp_path, *words)
    assert (code, out.count("\n")) == (2, 0)
    assert says in out
    assert not list((tmp_path / "r").glob("*/*"))


def test_members_that_an_older_export_took_for_logits_are_exported_again(tmp_path: Path) -> None:
    assert exported("softmax", tmp_path)[0] == 0
    path = tmp_path / "r/softmax/manifest.json"
    made = path.read_text()
    old = made.replace('"output_kind": "auto"', '"output_kind": "logits"')
    path.write_text(old.replace('"output_kind": "probabilities"', '"output_kind": "logits"'))
    assert any("ends in Softmax" in str(fault) for fault in check(tmp_path / "r").faults)
    assert "exported" in exported("softmax", tmp_path)[1]
    assert path.read_text() == made
