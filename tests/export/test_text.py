"""Text classifiers become members: tensors of tokens, any length, padding that changes nothing."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from export.__main__ import app
from export.from_torch import spread_scores
from export.parity import member_rows
from export.sources import ExportOptions
from export.sources.hf_text import TextLogits, longest_row, text_inputs
from export.tensor_rows import TensorRows, made_up_rows
from orchestrator.errors import ExportError
from orchestrator.repository.check import check
from orchestrator.repository.configs import member_config
from orchestrator.spec import Manifest, RowLength, manifest_from_path
from tests.export.text_models import CONFIGS, POSITIONS, VOCABULARY, save_text_classifier, text_classifier

RUNTIMES = ("--runtimes", "none")


def command(*words: object, code: int = 0) -> str:
    """What `python -m export` prints, or its one line of error."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.output


def exported(folder: Path, model_type: str, *words: object) -> tuple[Manifest, onnxruntime.InferenceSession]:
    source = save_text_classifier(folder / "source", model_type)
    command("member", f"text={source}", "-o", folder / "repository", *RUNTIMES, *words)
    manifest = manifest_from_path(folder / "repository/text/manifest.json")
    return manifest, onnxruntime.InferenceSession(folder / "repository/text/1/model.onnx")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported BERT, source and repository."""
    folder = tmp_path_factory.mktemp("bert")
    exported(folder, "bert")
    return folder


def tokens(length: int, *, width: int, pad: int, seed: int) -> dict[str, np.ndarray]:
    """A row of so many tokens, padded to a width, as a tokeniser gives it."""
    ids = np.random.default_rng(seed).integers(5, VOCABULARY, (1, length))
    rest = [(0, 0), (0, width - length)]
    return {
        "input_ids": np.pad(ids, rest, constant_values=pad),
        "attention_mask": np.pad(np.ones_like(ids), rest),
        "token_type_ids": np.pad((np.arange(length)[None] > length // 2).astype(np.int64), rest),
    }


def assert_answers_alike(model_type: str, manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    """In batches of several sizes and lengths the member says what the framework says of each row alone."""
    model, pad = text_classifier(model_type), CONFIGS[model_type]["pad_token_id"]
    names = [one.name for one in manifest.inputs]
    # A member that refused what it is warmed up with would not be loaded.
    for run in member_config(manifest, device="gpu").model_warmup:
        session.run(["logits"], {name: np.zeros((run.batch_size, *run.inputs[name].dims), int) for name in names})
    for lengths, width in (((1,), 1), ((5, 1, 9), 9), ((3, 17), 40), (tuple(range(1, 34)), 60)):
        rows = [tokens(n, width=width, pad=pad, seed=n) for n in lengths]
        feed = {name: np.concatenate([row[name] for row in rows]) for name in names}
        got = session.run(["logits"], feed)[0]
        for scores, n in zip(got, lengths, strict=True):
            alone = {name: torch.from_numpy(tokens(n, width=n, pad=pad, seed=n)[name]) for name in names}
            with torch.inference_mode():
                np.testing.assert_allclose(scores, model(**alone).logits[0].numpy(), atol=1e-4)


def test_bert_becomes_a_member(bert: Path) -> None:
    repository = bert / "repository"
    manifest = manifest_from_path(repository / "text/manifest.json")
    assert [(one.name, one.dtype, one.dims) for one in manifest.inputs] == [
        ("input_ids", "INT64", (-1,)), ("attention_mask", "INT64", (-1,)), ("token_type_ids", "INT64", (-1,))
    ]  # fmt: skip
    assert manifest.labels == ("bad", "fair", "good")
    # Two layers of 4 h^2 + 2 h f a token, attention of 2 h L^2 in each, and pooler and head once.
    layers = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert manifest.length == RowLength(
        longest=POSITIONS,
        pad={"input_ids": 0, "attention_mask": 0, "token_type_ids": 0},
        macs_at=POSITIONS,
        macs_coefficients=(32 * 32 + 32 * 3, layers, 2 * 2 * 32),
    )
    assert manifest.macs == manifest.length.macs(POSITIONS)
    assert manifest.parity["longest"]["length"] == POSITIONS
    assert manifest.parity["padding"]["max_abs"] < 1e-5
    assert check(repository)
    assert_answers_alike("bert", manifest, onnxruntime.InferenceSession(repository / "text/1/model.onnx"))
    shown = " ".join(command("show", "text", "--repository", repository).split())
    assert f"at length 64; 1,120 + {layers:,} n + 128 n^2 at length n" in shown
    assert "up to 64, padded with input_ids 0, attention_mask 0, token_type_ids 0" in shown


def test_a_second_export_of_the_same_has_nothing_to_do(bert: Path) -> None:
    words = ("member", f"text=hf:{bert / 'source'}", "-o", bert / "repository", *RUNTIMES)
    assert "up to date" in command(*words)


# Each is a trace of its own by the exporter, of 10 s to 30 s.
@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in CONFIGS if name != "bert"])
def test_other_families_become_members(model_type: str, tmp_path: Path) -> None:
    manifest, session = exported(tmp_path, model_type)
    assert [one.name for one in manifest.inputs] == ["input_ids", "attention_mask"]
    assert manifest.parity["padding"]["max_abs"] < 1e-5
    assert_answers_alike(model_type, manifest, session)


@pytest.mark.parametrize(
    ("model_type", "pad", "longest"),
    [("distilbert", 0, 64), ("roberta", 1, 62), ("deberta-v2", 0, 64), ("modernbert", 3, 64)],
)
def test_padding_and_longest_row_come_from_the_config(model_type: str, pad: int, longest: int) -> None:
    model, options = text_classifier(model_type), ExportOptions()
    ids, mask = text_inputs(model, options, subject="m")
    assert (ids.spec.name, ids.pad, ids.below) == ("input_ids", pad, VOCABULARY)
    assert (mask.spec.name, mask.pad, mask.is_mask) == ("attention_mask", 0, True)
    assert longest_row(model, options, subject="m") == longest
    assert longest_row(model, dataclasses.replace(options, max_length=20), subject="m") == 20
    with pytest.raises(ExportError, match=f"`max_length`: got 65, expected at most {longest}, its positions"):
        longest_row(model, dataclasses.replace(options, max_length=65), subject="m")


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({"problem_type": "regression"}, (), "got problem_type regression"),
        ({"problem_type": "multi_label_classification"}, (), "got problem_type multi_label_classification"),
        ({"id2label": {0: "only"}}, (), "got 1 class"),
        ({}, ("--pad", "ids=1"), "--pad: got ids, expected input_ids or attention_mask or token_type_ids"),
        ({}, ("--input", "ids=x"), "--input: got ids, expected some of input_ids, attention_mask, token_type_ids"),
        ({}, ("--input", "input_ids=attention_mask"), "expected different names in the member"),
        ({}, ("--max-length", "65"), "--max-length: got 65, expected at most 64, its positions"),
        ({}, ("--resolution", "32"), "--resolution: got it for a model that takes tensors of tokens"),
    ],
)
def test_what_cannot_be_a_member_is_one_line(
    settings: dict[str, object], words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    source = save_text_classifier(tmp_path / "source", "bert", **settings)
    done = CliRunner().invoke(app, ["member", source, "-o", str(tmp_path / "r"), *RUNTIMES, *words])
    assert message in str(done.exception)
    assert not (tmp_path / "r").exists()


def test_fp16_and_int8_are_made_from_it(bert: Path, tmp_path: Path) -> None:
    repository = bert / "repository"
    rows = [tokens(n, width=30, pad=0, seed=n) for n in range(1, 30) for _ in range(4)]
    calibrate = tmp_path / "rows.npz"
    np.savez(calibrate, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    for to in ("fp16", "int8"):
        words = ("--repository", repository, "--output", tmp_path / "out", "--calibrate", calibrate)
        command("precision", "text", "--to", to, *words)
        manifest = manifest_from_path(tmp_path / f"out/text_{to}/manifest.json")
        original = manifest_from_path(repository / "text/manifest.json")
        assert (manifest.inputs, manifest.length) == (original.inputs, original.length)
        assert manifest.agreement["same_top1"] > 0.9
        assert check(tmp_path / "out")
    np.savez(calibrate, input_ids=rows[0]["input_ids"])
    done = CliRunner().invoke(app, ["precision", "text", "--to", "int8", *map(str, words), "--force"])
    assert "got no array attention_mask, expected int64 ['n', -1]" in str(done.exception)


def test_rows_are_made_up_from_the_graph_where_the_source_is_gone(bert: Path) -> None:
    manifest = manifest_from_path(bert / "repository/text/manifest.json")
    graph = onnx.load(bert / "repository/text/1/model.onnx").graph
    rows = member_rows(manifest, lambda: graph, 300, seed=1)
    assert isinstance(rows, TensorRows)
    ids, types = rows.arrays["input_ids"], rows.arrays["token_type_ids"]
    assert (ids.min(), ids.max() < VOCABULARY, ids.max() > VOCABULARY // 2, types.max()) == (0, True, True, 1)
    assert sorted(set(rows.lengths.tolist()))[:2] == [1, 2]
    assert np.array_equal(rows.arrays["attention_mask"].sum(axis=1), rows.lengths)


def test_random_weights_are_spread_over_the_classes_as_those_of_images_are() -> None:
    model = text_classifier("distilbert")
    kinds = text_inputs(model, ExportOptions(), subject="m")
    rows = made_up_rows(kinds, 20, longest=POSITIONS)
    network = TextLogits(model, tuple(kind.spec.name for kind in kinds))
    quantiles = spread_scores(network, *rows.arrays.values())
    assert quantiles["q50"] == pytest.approx(0.5, abs=0.01)
    assert quantiles["q05"] < quantiles["q95"]
