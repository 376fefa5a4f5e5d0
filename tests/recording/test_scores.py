"""Members with several outputs: which one holds the scores, and what records keep of how a member is asked."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path
from orchestrator.spec.answer import ANSWER_COLUMNS
from tests.fakes.kserve import CLASSES, DTYPES, FakeKServe, FakeModel, Slot, images
from tests.fakes.kserve_fronts import GrpcFront
from tests.recording.builders import SIDE, rows_of, write_member

HEAD, OTHER, MARGIN = Slot("head", "FP32", (CLASSES,)), Slot("other", "FP32", (CLASSES,)), Slot("m", "FP32", (1,))
TEXT, MAP = Slot("text", "INT64", (CLASSES,)), Slot("map", "FP32", (2, CLASSES))
FREE = Slot("free", "FP32", (-1,))
PROBABILITIES = Slot("probabilities", "FP32", (CLASSES,))


def model(*outputs: Slot, **changes: Any) -> FakeModel:
    """Its scores are those of the output's name, so that a recording tells which one was asked."""

    def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        return {one.name: scores(one, len(rows)) for one in outputs}

    inputs = (Slot("image", "FP32", images([0]).shape[1:]),)
    return FakeModel(**{"name": "m", "answer": answer, "inputs": inputs, "outputs": outputs, **changes})


def scores(slot: Slot, rows: int) -> np.ndarray:
    seed = int(hashlib.sha256(slot.name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng(seed)
    dtype = {"FP32": np.float32, "INT64": np.int64}[slot.dtype]
    return np.repeat(rng.normal(0, 9, (1, *slot.dims)), rows, axis=0).astype(dtype)


def record(tmp_path: Path, one: FakeModel, *words: str, costs: tuple[str, ...] = ("--cost", "m=1")) -> int:
    np.savez(tmp_path / "rows.npz", images=images(range(30)))
    with GrpcFront(FakeKServe([one])) as front:
        command = ["record", "m", "--url", front.address, "--data", str(tmp_path / "rows.npz")]
        place = ["-o", str(tmp_path / "out.npz"), "--repository", str(tmp_path / "models")]
        return run([*command, *place, *costs, *words])


@pytest.mark.parametrize(
    ("outputs", "words", "taken"),
    [
        ((HEAD, MARGIN), (), HEAD),
        ((HEAD, OTHER), ("--output-tensor", "m=other"), OTHER),
        ((HEAD, OTHER, MARGIN, TEXT, MAP), ("--output-tensor", "m=head"), HEAD),
        ((HEAD, PROBABILITIES), ("--output-tensor", "m=head"), HEAD),
    ],
)
def test_the_output_that_is_named_or_the_only_one_that_can_be_is_recorded(
    tmp_path: Path, outputs: tuple[Slot, ...], words: tuple[str, ...], taken: Slot
) -> None:
    assert record(tmp_path, model(*outputs), *words) == 0
    records = records_from_path(tmp_path / "out.npz")
    np.testing.assert_array_equal(records.outputs["m"], scores(taken, 30))
    assert records.meta["members"]["m"]["output"] == taken.name


@pytest.mark.parametrize(
    ("outputs", "words", "said"),
    [
        ((HEAD, OTHER), (), "name the one with the scores: --output-tensor m=TENSOR"),
        ((HEAD, OTHER), ("--output-tensor", "m=x"), "got outputs head FP32"),
        ((HEAD, PROBABILITIES), (), "name the one with the scores: --output-tensor m=TENSOR"),
        ((HEAD, TEXT), ("--output-tensor", "m=text"), "expected a floating-point one of [n, classes]"),
        ((HEAD, MAP), ("--output-tensor", "m=map"), "expected a floating-point one of [n, classes]"),
        (
            (HEAD, MARGIN),
            ("--output-tensor", "m=m"),
            f"--output-tensor m=m: got outputs head FP32[-1, {CLASSES}], m ",
        ),
        ((HEAD, FREE), ("--output-tensor", "m=free"), "--output-tensor m=free: got outputs head FP32"),
        ((HEAD, OTHER), ("--output-tensor", "k=head"), "--output-tensor: got k, not recorded, expected one of m"),
        ((HEAD, OTHER), ("--output-tensor", "head"), "expected NAME=TENSOR"),
        ((HEAD, OTHER), ("--output-tensor", "m=head", "--output-tensor", "m=other"), "each once"),
    ],
)
def test_an_output_that_cannot_be_it_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outputs: tuple[Slot, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert record(tmp_path, model(*outputs), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_an_answer_with_all_its_columns_has_its_scores_in_the_probabilities(tmp_path: Path) -> None:
    columns = [Slot(name, one.triton_dtype, (one.width(CLASSES),)) for name, one in ANSWER_COLUMNS.items()]

    def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        given = {one.name: np.zeros((len(rows), *one.dims), DTYPES[one.dtype]) for one in columns}
        sure = np.eye(CLASSES, dtype=np.float32)[np.arange(len(rows)) % CLASSES]
        return {**given, HEAD.name: scores(HEAD, len(rows)), "probabilities": sure}

    assert record(tmp_path, model(*columns, HEAD, answer=answer)) == 0
    assert records_from_path(tmp_path / "out.npz").meta["members"]["m"]["output"] == "probabilities"


def test_records_keep_how_a_member_without_a_manifest_is_asked(tmp_path: Path) -> None:
    groups = [{"count": 2, "kind": "KIND_CPU"}]
    free = (Slot("image", "FP32", (-1, *images([0]).shape[2:])), Slot("seed", "INT64", (1,)))
    settings = {"instance_group": groups, "input": [{"name": "image"}, {"name": "seed", "optional": True}]}
    assert record(tmp_path, model(HEAD, inputs=free, settings=settings, max_batch_size=8)) == 0
    about = records_from_path(tmp_path / "out.npz").meta["members"]["m"]
    assert about["input"] == {"name": "image", "dtype": "FP32", "dims": list(images([0]).shape[1:])}
    assert (about["output"], about["max_batch_size"], about["instances"]) == ("head", 8, 2)


def test_the_error_names_the_option_for_every_member_without_a_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(tmp_path, model(HEAD), costs=()) == 2
    assert "say it with --cost m=..., or name the repository" in capsys.readouterr().err


def test_an_exported_member_keeps_the_output_of_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, data = tmp_path / "models", tmp_path / "rows.npz"
    write_member(repository, "m")
    np.savez(data, images=rows_of(8), labels=np.arange(8) % 3)
    words = ["record", "m", "--data", str(data), "-o", str(tmp_path / "o.npz"), "--repository", str(repository)]
    assert run([*words, "--output-tensor", "m=logits"]) == 0
    assert run([*words, "--output-tensor", "m=head"]) == 2
    assert "--output-tensor m=head: got logits in its manifest.json" in capsys.readouterr().err
    # Served with a head more, it is still the manifest's that is asked.
    outputs = (Slot("logits", "FP32", (3,)), Slot("head", "FP32", (3,)))
    served = model(*outputs, inputs=(Slot("image", "UINT8", (3, SIDE, SIDE)),))
    with GrpcFront(FakeKServe([served])) as front:
        assert run([*words, "--url", front.address, "--restart"]) == 0
    np.testing.assert_array_equal(records_from_path(tmp_path / "o.npz").outputs["m"], scores(outputs[0], 8))


def test_a_model_that_only_a_server_can_ask_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    words = ["record", "m", "--data", "digits:plan", "-o", str(tmp_path / "o.npz")]
    assert run([*words, "--repository", str(tmp_path / "models")]) == 2
    error = capsys.readouterr().err
    assert "ask it where it is served, with --url and --cost m=..., or export it" in error
    assert error.count("\n") == 1
