"""Leading stages in the cascade's own process give the answers of their Triton models, or leave them to those."""

import dataclasses
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from orchestrator.bls.in_process import InProcessMember
from orchestrator.files import sha256_of_path
from orchestrator.spec import CascadeSpec, InputSpec, Limits
from tests.bls.fixtures import (
    EASY,
    HARD,
    K,
    ask_all,
    asking,
    eventually,
    large,
    loaded,
    small,
    two_stages,
)
from tests.bls.kinds import DERIVING, KINDS, Kind, derive
from tests.fakes.triton import FakeTriton, Request
from tests.onnx_models import model_of

COLUMNS = ("probabilities", "label", "confidence", "exit_stage", "cost", "status")
# A row that begins with this is refused: it names a row of a table that has two.
OUT_OF_TABLE = np.array([5, 0, 0, 0, 9, 0], np.float32)


def put_member(folder: Path, name: str, first: int) -> str:
    """A member that answers with k columns of its input; the hash of its file. Refuses rows as `OUT_OF_TABLE`."""
    picks = np.zeros((2 * K, K), np.float32)
    picks[first : first + K] = np.eye(K)
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one"], ["first"]),
        helper.make_node("Equal", ["first", "five"], ["is_five"]),
        helper.make_node("Cast", ["is_five"], ["number"], to=7),
        helper.make_node("Mul", ["number", "nine"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("MatMul", ["x", "picks"], ["said"]),
        helper.make_node("Add", ["said", "nothing"], ["logits"]),
    ]
    weights = {
        "picks": picks, "table": np.zeros(2, np.float32), "five": np.float32([5]), "nine": np.int64([9]),
        "zero": np.int64([0, 0]), "one": np.int64([2**31, 1]),
    }  # fmt: skip
    path = folder / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model_of(nodes, {"x": ["n", 2 * K]}, {"logits": ["n", K]}, weights).SerializeToString())
    return sha256_of_path(path)


def plan(tmp_path: Path, stages: int, **changes: Any) -> CascadeSpec:
    """Two stages whose members are files in the repository; so many are to run in process."""
    hashes = {
        name: put_member(tmp_path / "repository", name, first) for name, first in (("small", 0), ("large", K))
    }
    spec = two_stages(in_process=stages, **changes)
    return spec.with_members(lambda one: dataclasses.replace(one, version=1, sha256=hashes[one.name]))


def server() -> FakeTriton:
    return FakeTriton({"small": small, "large": large})


def counted(model: Any, fake: FakeTriton, name: str, **labels: str) -> float:
    model._flusher.flush()
    wanted = set(labels.items())
    return sum(one.value for (found, of), one in fake.metrics.items() if found == name and wanted <= set(of))


def calls(fake: FakeTriton, name: str) -> int:
    """Rows in batches of more than one: the watch asks about one row now and then."""
    return sum(rows for asked, rows in fake.asked if asked == name and rows > 1)


def columns(responses: list[Any]) -> list[np.ndarray]:
    return [response.column(name) for response in responses for name in COLUMNS]


@pytest.mark.parametrize("stages", [1, 2])
def test_answers_are_those_of_the_called_members(tmp_path: Path, stages: int) -> None:
    parts = [np.random.default_rng(seed).normal(0, 3, (seed, 2 * K)).astype(np.float32) for seed in range(3, 11)]
    found, fakes = [], []
    for count in (0, stages):
        fakes.append(server())
        with loaded(tmp_path, fakes[-1], plan(tmp_path, count)) as model:
            found.append(columns(ask_all(model, [Request({"x": rows}) for rows in parts])))
            runs = counted(model, fakes[-1], "committee_in_process_runs_total")
            rows = counted(model, fakes[-1], "committee_in_process_rows_total", member="small")
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (calls(fakes[1], "small"), calls(fakes[1], "large") > 0) == (0, stages == 1)
    assert calls(fakes[0], "small") == rows == sum(map(len, parts))
    assert runs >= len(parts) / 8


def test_without_onnxruntime_the_models_are_called_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fake = server()
    with loaded(tmp_path, fake, plan(tmp_path, 2)) as model:
        (response,) = ask_all(model, [asking(EASY, HARD)])
        assert counted(model, fake, "committee_in_process") == 0
    assert response.column("exit_stage")[:, 0].tolist() == [0, 1]
    for name in ("small", "large"):
        text = f"committee: {name} is called, not run in process: onnxruntime is not installed"
        assert text in fake.log
    assert calls(fake, "small") == 2


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        ({"sha256": None}, {}, "its file is not compared with a hash in the plan"),
        ({}, {"verify_hashes": "no"}, "its file is not compared with a hash in the plan"),
        ({"output": "scores"}, {}, "no output scores of numbers"),
        ({"inputs": {"y": "x"}}, {}, "it reads x, the plan gives it y"),
    ],
)
def test_what_cannot_be_run_here_is_called(
    tmp_path: Path, change: dict[str, Any], config: dict[str, str], said: str
) -> None:
    spec = plan(tmp_path, 1)
    spec = spec.with_members(lambda one: dataclasses.replace(one, **change if one.name == "small" else {}))
    fake = server()
    parameters = {"parameters": {name: {"string_value": value} for name, value in config.items()}}
    with loaded(tmp_path, fake, spec, parameters):
        assert f"committee: small is called, not run in process: {said}" in fake.log


def test_a_file_that_is_no_model_is_left_to_triton(tmp_path: Path) -> None:
    spec, fake = plan(tmp_path, 1), server()
    path = tmp_path / "repository" / "small" / "1" / "model.onnx"
    path.write_bytes(b"no model")
    digest = sha256_of_path(path)
    spec = spec.with_members(lambda one: dataclasses.replace(one, sha256=digest) if one.name == "small" else one)
    with loaded(tmp_path, fake, spec) as model:
        assert ask_all(model, [asking(EASY)])[0].column("exit_stage").tolist() == [[0]]
    assert [line for line in fake.log if "small is called, not run in process: " in line and "\n" not in line]


def test_a_row_that_a_run_refuses_fails_alone(tmp_path: Path) -> None:
    fake = server()
    with loaded(tmp_path, fake, plan(tmp_path, 1)) as model:
        ask_all(model, [asking(EASY)])
        good, bad, other = ask_all(model, [asking(EASY), asking(OUT_OF_TABLE), asking(HARD)])
        assert [one.column("exit_stage").tolist() for one in (good, other)] == [[[0]], [[1]]]
        error = bad.error()
        assert error is not None
        assert "stage 0 member small" in error.message()
        assert error.code() == fake.TritonError.INVALID_ARG


def test_a_run_that_takes_too_long_is_given_up_and_the_model_called_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, run, fake = threading.Event(), InProcessMember.run, server()

    def slow(self: InProcessMember, tensors: Any) -> Any:
        if self.name == "large":
            gate.wait(30)
        return run(self, tensors)

    monkeypatch.setattr(InProcessMember, "run", slow)
    limits = Limits(max_batch_size=64, max_deferred_rows=16, member_timeout_ms=150)
    with loaded(tmp_path, fake, plan(tmp_path, 2, limits=limits)) as model:
        (response,) = ask_all(model, [asking(HARD)])
        assert "no answer within 150 ms" in response.error().message()
        gate.set()
        eventually(lambda: counted(model, fake, "committee_in_process", member="large") == 0)
        assert ask_all(model, [asking(HARD)])[0].column("exit_stage").tolist() == [[1]]
    assert [line for line in fake.log if "large is called from now on" in line]


def test_a_first_member_that_is_called_after_all_and_hangs_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    gate = threading.Event()

    def hanging(rows: np.ndarray) -> np.ndarray:
        if len(rows) > 1:  # not what the watch asks
            gate.wait(10)
        return small(rows)

    fake = FakeTriton({"small": hanging, "large": large})
    limits = Limits(max_batch_size=64, max_deferred_rows=16, member_timeout_ms=150)
    with loaded(tmp_path, fake, plan(tmp_path, 1, limits=limits)) as model:
        (response,) = ask_all(model, [asking(EASY, EASY)])
        gate.set()
        error = response.error()
        assert error is not None
        assert "no answer within 150 ms" in error.message()


def test_a_plan_without_it_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fake = server()
    with loaded(tmp_path, fake, plan(tmp_path, 0)) as model:
        ask_all(model, [asking(EASY)])
        assert counted(model, fake, "committee_in_process_runs_total") == 0
    assert not [line for line in fake.log if "in process" in line]


def text_plan(tmp_path: Path) -> CascadeSpec:
    """A first member that is sure of one word, as a file; the second is asked about every other text."""
    encode = helper.make_node(
        "LabelEncoder", ["text"], ["number"], domain="ai.onnx.ml", keys_strings=["leicht ü"], values_floats=[9.0],
        default_float=0.1,
    )  # fmt: skip
    weights = {"w": np.float32([[1, 0, 0]])}
    product = helper.make_node("Mul", ["number", "w"], ["logits"])
    model = model_of([encode, product], {"text": (8, ["n", 1])}, {"logits": ["n", K]}, weights)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    path = tmp_path / "repository" / "small" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    spec = two_stages(in_process=1, inputs=(InputSpec(name="text", dtype="STRING", dims=(1,)),))
    digest = sha256_of_path(path)
    return spec.with_members(
        lambda one: dataclasses.replace(one, version=1, sha256=digest) if one.name == "small" else one
    )


@pytest.mark.parametrize("kind", KINDS[2:], ids=lambda kind: kind.name.replace(" ", "_"))
def test_lengths_that_vary_and_derived_tensors_reach_a_member_as_when_it_is_called(
    tmp_path: Path, kind: Kind
) -> None:
    spec = kind.plan(two_stages(in_process=2), 2 * K)
    for name, first in (("small", 0), ("large", K)):
        cut = helper.make_node("Slice", ["input_ids", "first", "last", "axis"], ["logits"])
        weights = {"first": np.int64([first]), "last": np.int64([first + K]), "axis": np.int64([1])}
        takes = {"input_ids": ["n", "length"], "mask": (7, ["n", "length"])}
        path = tmp_path / "repository" / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(model_of([cut], takes, {"logits": ["n", K]}, weights).SerializeToString())
        digest = sha256_of_path(path)
        spec = spec.with_members(
            lambda one, name=name, digest=digest: (
                dataclasses.replace(one, version=1, sha256=digest) if one.name == name else one
            )
        )
    rows = np.random.default_rng(0).normal(0, 3, (40, 2 * K)).astype(np.float32)
    found = []
    for stages in (0, 2):
        members = {
            name: lambda given, first=first: kind.rows(given, 2 * K)[:, first : first + K]
            for name, first in (("small", 0), ("large", K))
        }
        fake = FakeTriton({**members, DERIVING: derive}, input_name=None)
        requests = [Request(kind.tensors(rows[at : at + 1])) for at in range(len(rows))]
        with loaded(tmp_path, fake, dataclasses.replace(spec, in_process=stages)) as model:
            found.append(columns(ask_all(model, requests)))
            here = counted(model, fake, "committee_in_process_rows_total", member="small")
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    # Where the first member reads the text itself, its file has other tensors, and it is called.
    assert here == (0 if kind.name == "derived later" else len(rows))


def test_texts_reach_a_member_as_they_came_and_what_is_no_utf_8_fails_alone(tmp_path: Path) -> None:
    large_says = {"large": lambda given: np.eye(K)[[1] * len(given["text"])]}
    fake = FakeTriton({"small": lambda _: 1 / 0, **large_says}, input_name=None)

    def text(*rows: bytes) -> Request:
        return Request({"text": np.array([[row] for row in rows], object)})

    with loaded(tmp_path, fake, text_plan(tmp_path)) as model:
        (first,) = ask_all(model, [text("leicht ü".encode())])
        assert first.column("exit_stage").tolist() == [[0]]
        good, bad = ask_all(model, [text("leicht ü".encode(), b"schwer"), text(b"\xff")])
        assert good.column("exit_stage")[:, 0].tolist() == [0, 1]
        error = bad.error()
        assert error is not None
        assert error.code() == fake.TritonError.INVALID_ARG
