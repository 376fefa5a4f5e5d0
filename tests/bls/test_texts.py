"""Texts that a member would not read as they are, and how a client finds the row that is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bls.pieces import Refusal
from tests.bls.fixtures import EASY, HARD, K, ask_all, loaded
from tests.bls.kinds import DERIVING, derive
from tests.bls.test_tensors import AT_ONCE, LATER, SEVERAL, asking, label, refusal, server, spec_of
from tests.fakes.triton import TritonError

ODD = {
    b"1\x002": "got a zero byte (NUL) at 1, expected UTF-8 without zeros; take it out",
    b"\x00": "got a zero byte (NUL) at 0",
    b"1 \xff": "got byte 0xff at 2, which is not UTF-8",
}


def column(*texts: bytes) -> np.ndarray:
    return np.array([[text] for text in texts], object)


def put(repository: Path, *files: str) -> None:
    for file in files:
        path = repository / "repository" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("file", ["small/1/model.onnx", "small/3/net.onnx", f"{DERIVING}/1/model.onnx"])
def test_a_text_that_onnx_runtime_would_not_read_whole_is_refused_with_its_row(
    tmp_path: Path, odd: bytes, file: str
) -> None:
    put(tmp_path, file)
    with loaded(tmp_path, server(LATER), spec_of(LATER)) as model:
        good = LATER.tensors(np.stack([EASY]))["text"][0, 0]
        bad = asking(LATER, EASY, text=column(good, odd, good))
        first, refused, last = ask_all(model, [asking(LATER, EASY), bad, asking(LATER, HARD)])
    assert (label(first), label(last)) == ([0], [2])
    code, message = refusal(refused)
    assert code == TritonError.INVALID_ARG
    assert f"input text row 1: {ODD[odd]}" in message


@pytest.mark.parametrize(
    "files", [(), ("small/1/model.py",), ("small/1/model.py", "small/1/model.onnx"), ("large/1/model.onnx",)]
)
def test_bytes_that_no_onnx_member_reads_reach_their_model_as_they_are(
    tmp_path: Path, files: tuple[str, ...]
) -> None:
    picture, seen = b"\x89PNG\x00\xff\x00", []

    def small(given: Any) -> np.ndarray:
        seen.append(given["text"][0, 0])
        return np.stack([EASY[:K]])

    put(tmp_path, *files)
    with loaded(tmp_path, server(SEVERAL, small=small), spec_of(SEVERAL)) as model:
        assert label(ask_all(model, [asking(SEVERAL, EASY, text=column(picture))])[0]) == [0]
    assert seen == [picture]


@pytest.mark.parametrize("kind", [LATER, AT_ONCE], ids=lambda kind: kind.name)
def test_a_deriving_models_number_of_a_row_becomes_that_of_the_request(tmp_path: Path, kind: Any) -> None:
    def numbering(given: Any) -> dict[str, np.ndarray]:
        for place, text in enumerate(given["words"][:, 0]):
            if b"bad" in text:
                raise ValueError(f"text: row {place}: got a bad word")
        return derive(given)

    said = {"small": lambda given: np.zeros((len(given["text"]), K), np.float32)} if kind is LATER else {}
    with loaded(tmp_path, server(kind, **{DERIVING: numbering}, **said), spec_of(kind)) as model:
        good = kind.tensors(np.stack([HARD]))["text"][0, 0]
        # The model takes three rows at a time.
        wide = asking(kind, HARD, text=column(good, good, good, good, b"bad", good))
        first, refused, alone, last = ask_all(
            model,
            [asking(kind, HARD), wide, asking(kind, HARD, text=column(b"bad")), asking(kind, HARD, HARD)],
        )
    assert (label(first), label(last)) == ([2], [2, 2])
    # A batch of a later stage may hold the bad row alone, so that the code says nothing here.
    for response, row in ((refused, 4), (alone, 0)):
        _, message = refusal(response)
        assert f"tokens: text: row {row}: got a bad word" in message


def test_a_number_of_a_row_of_another_request_is_left_out() -> None:
    refused = Refusal("text: row 2: got a word").counted_from(7).under("tokens")
    assert refused.row == 9
    assert refused.told({8: 0}) == "tokens: text: got a word"
    assert refused.told({8: 0, 9: 1}) == "tokens: text: row 1: got a word"
    assert Refusal("row 2 of 3").counted_from(7).told({}) == "row 2 of 3"
