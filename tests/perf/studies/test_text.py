import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra: make setup")
pytest.importorskip("skl2onnx", reason="a linear member needs the tabular extra: make setup")
# ruff: noqa: E402 - nothing below can be imported without them

from export.parity import session_of
from orchestrator.errors import ExportError
from perf.studies.text.linear import Linear, logits_of_pipeline, onnx_from_pipeline
from perf.studies.text.members import export_text
from perf.studies.text.pairs import trained_pairs
from perf.studies.text.served import IN_PROCESS, compared, times_with_interval
from perf.studies.text.study import CASCADE, asked_in_stages
from perf.studies.text.teacher import targets_of
from perf.studies.text.transformer import (
    MOST_TOKENS,
    SPECIAL,
    Encoder,
    _batches,
    ids_of,
    logits_of,
    made_tokenizer,
    onnx_from_encoder,
    padded,
    trained,
    word_vectors,
)

TEXTS = ["Fits a line to the data.", "The mean of all values", "mean, mean; and MEAN of x_i", "Draws lines"] * 8
LABELS = np.array([0, 1, 1, 2] * 8)
TINY = Encoder(layers=1, width=32, epochs=2, learning_rate=1e-3)


def test_the_graph_of_a_linear_member_says_what_the_pipeline_says_of_any_text() -> None:
    pipeline = Linear(features=30, longest=2).trained(TEXTS, LABELS)
    texts = [*TEXTS[:4], "", "nothing known", "Grüße, MEAN!", "the mean of the mean of the mean"]
    session = session_of(onnx_from_pipeline(pipeline).SerializeToString())
    (logits,) = session.run(None, {"text": np.array(texts, object)[:, None]})
    np.testing.assert_allclose(logits, logits_of_pipeline(pipeline, texts), atol=1e-4)


def test_the_same_texts_give_the_same_tokeniser_which_knows_words_pieces_and_letters() -> None:
    one, two = (made_tokenizer(TEXTS, 60) for _ in range(2))
    assert one.to_str() == two.to_str()
    assert one.get_vocab_size() == 60
    assert [one.id_to_token(place) for place in range(5)] == list(SPECIAL)
    assert one.encode("The MEAN").tokens == ["[CLS]", "the", "mean", "[SEP]"]
    assert "[UNK]" not in one.encode("meanest"[:6]).tokens
    assert one.encode("ж").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert len(one.encode("mean " * 500).ids) == MOST_TOKENS
    assert [len(row) for row in ids_of(one, ["mean", "the mean of all"])] == [3, 6]


def test_each_pass_takes_every_row_once_with_rows_of_like_length() -> None:
    rows = [[7] * (1 + place % 90) for place in range(2_000)]
    batches = list(_batches(rows, 2, torch.Generator().manual_seed(0)))
    assert sorted(row for part in batches for row in part) == sorted([*range(2_000)] * 2)
    spread = [max(len(rows[row]) for row in part) - min(len(rows[row]) for row in part) for part in batches]
    assert np.mean(spread) < 10


def test_the_same_seed_gives_the_same_encoder_and_another_seed_another() -> None:
    tokenizer = made_tokenizer(TEXTS, 60)
    rows = ids_of(tokenizer, TEXTS)
    vectors = word_vectors(rows, tokenizer.get_vocab_size(), 8)
    assert vectors.shape == (60, 8)
    targets = np.eye(3, dtype=np.float32)[LABELS]
    wide = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32) * 0.05

    def weights(seed: int) -> dict[str, Any]:
        return trained(TINY, rows, targets, vectors=wide, seed=seed, progress=lambda _: None).state_dict()

    one, two, other = (weights(seed) for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    # What is kept in half precision is what was compared.
    assert all(torch.equal(value, value.half().float()) for value in one.values() if value.dtype == torch.float32)


def test_a_graph_with_small_weights_and_pairs_says_what_the_network_says_of_any_length() -> None:
    rows = ids_of(made_tokenizer(TEXTS, 60), TEXTS)
    vectors = np.random.default_rng(0).normal(size=(60, 32)).astype(np.float32) * 0.05
    targets = np.eye(3, dtype=np.float32)[LABELS]
    few = dataclasses.replace(TINY, weight_bits=8)
    network = trained(few, rows, targets, vectors=vectors, seed=0, progress=lambda _: None)
    without = logits_of(network, rows)
    network.pairs = trained_pairs(rows, LABELS, bits=10, share=0.5)
    wanted = logits_of(network, rows)
    assert np.abs(wanted - without).max() > 0.1
    proto = onnx_from_encoder(network, weight_bits=8)
    stored = {one.data_type for one in proto.graph.initializer if np.prod(one.dims) >= 256}
    assert stored == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}
    session = session_of(proto.SerializeToString())
    for some in (slice(0, 1), slice(1, 9)):
        ids, mask = padded(rows[some])
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(logits, wanted[some], atol=1e-4)


def test_pairs_tell_texts_of_the_same_tokens_apart() -> None:
    rows = [[2, 7, 8, 3], [2, 8, 7, 3]] * 8
    labels = np.array([0, 1] * 8)
    network = trained_pairs(rows, labels, bits=8, share=1.0)
    said = network(*padded(rows))
    assert said.shape[1] in (1, 2)
    assert (said[0] - said[1]).abs().max() > 1


def test_the_teacher_of_a_row_has_not_seen_its_docstring() -> None:
    texts = [f"row number {letter * 6} of its kind" for letter in "abcdefghijklmnop"]
    labels = np.arange(16) % 3
    targets = targets_of(texts, labels, [f"d{place}" for place in range(16)], 3)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert targets.argmax(axis=1).tolist() == labels.tolist()
    # Letters that stand in no other row say nothing of the label: a teacher that had seen the row would know it.
    assert targets.max(axis=1).mean() < 0.9


def test_stages_are_asked_about_the_rows_that_reach_them() -> None:
    asked: list[tuple[str, list[str]]] = []

    class Members:
        def ask(self, name: str, texts: list[str]) -> None:
            asked.append((name, texts))

    class Named:
        def __init__(self, *names: str) -> None:
            self.members = [type("Member", (), {"name": name}) for name in names]

    spec = type("Spec", (), {"stages": [Named("a"), Named("b", "c")]})
    route = asked_in_stages(Members(), spec, np.array([1, 0, 1, 1]))  # type: ignore[arg-type]
    route(2, ["p", "q", "r"])
    assert asked == [("a", ["p", "q"]), ("a", ["r"]), ("b", ["p", "r"]), ("c", ["p", "r"])]


def test_an_unknown_member_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="some of docstrings_linear"):
        export_text(tmp_path / "new", only=["docstrings_huge"], progress=lambda _: None)
    assert not (tmp_path / "new").exists()


def test_the_cascade_is_held_against_the_faster_rival_round_by_round() -> None:
    def window(number: int, route: str, rows_per_s: float, cpu: float) -> dict[str, Any]:
        about = {"round": number, "route": route, "batch": 1, "p50_ms": 1.0, "p99_ms": 2.0}
        return about | {"rows_per_s": rows_per_s, "cpu_ms_per_row": cpu}

    # Both routes are slower in the second round, by the same factor.
    windows = [window(1, CASCADE, 400, 2), window(1, "a_1", 50, 10), window(1, "a_2", 100, 10)]
    windows += [window(2, CASCADE, 200, 4), window(2, "a_1", 30, 20), window(2, "a_2", 50, 20)]
    windows += [window(1, IN_PROCESS, 600, 1), window(2, IN_PROCESS, 300, 2)]
    found = compared(windows, 1, {"a_1": 1, "a_2": 2})
    assert found["rival"] == "a_2"
    assert found["times"][CASCADE]["rows_per_s"] == pytest.approx({"times": 4, "low": 4, "high": 4})
    assert found["times"][CASCADE]["less_cpu"]["times"] == pytest.approx(5)
    assert found["times"][IN_PROCESS]["rows_per_s"]["times"] == pytest.approx(6)
    assert found["times"][IN_PROCESS]["less_cpu"]["times"] == pytest.approx(10)
    assert found["routes"][CASCADE]["rows_per_s"] == 300
    wide = times_with_interval(windows, 1, CASCADE, "a_1", "rows_per_s")
    assert wide["low"] < wide["times"] < wide["high"]
