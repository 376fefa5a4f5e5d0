"""`committee record --derive`: token ids that a model makes from text, in this process and on a server."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.plan_pool import pool_from_records, restricted
from orchestrator.planner.records import records_from_path
from orchestrator.spec.deriving import PaddedTensor, json_from_deriving
from orchestrator.spec.manifest import TensorSpec
from tests.fakes.kserve import CodedError, FakeKServe, FakeModel, Slot
from tests.fakes.kserve_fronts import GrpcFront
from tests.recording.text_members import (
    TOKENS,
    Record,
    recorder,
    tokenizer_manifest,
    write_text_member,
    write_tokens_member,
)

TEXTS = ["good", "no", "a longer text of words", "no", "good"]
# As the file beside an exported tokenizer: a token for each word, which is its number of letters.
DERIVE = """
import numpy as np

class REFUSAL(ValueError):
    pass

def load(folder, *, most):
    def derive(rows, wanted):
        lengths = [[len(word) for word in row.decode().split()] for row in rows]
        for place, row in enumerate(lengths):
            if not 0 < len(row) <= most:
                raise REFUSAL(f"row {place}: got {len(row)} tokens, expected 1 to {most}")
        longest = max(map(len, lengths))
        ids = np.zeros((len(rows), longest), np.int64)
        for row, one in zip(ids, lengths):
            row[: len(one)] = one
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return derive
"""


CLEANER = """
import numpy as np

REFUSAL = ValueError

def load(folder):
    return lambda rows, wanted: {"text": np.array([[row.strip(b"<>")] for row in rows], object)}
"""


def write_tokenizer(repository: Path, name: str = "tokenizer") -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "derive.py").write_text(DERIVE)
    files = {"1/derive.py": hashlib.sha256(DERIVE.encode()).hexdigest()}
    manifest = tokenizer_manifest(name, pad=0.0, options={"most": 9}, data_files=files)
    (repository / name / "manifest.json").write_text(json_from_deriving(manifest))


@pytest.fixture
def record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Record:
    """Runs the command over members in the folder; gives what it printed, to stderr where it failed."""
    write_text_member(tmp_path)
    write_tokens_member(tmp_path)
    write_tokenizer(tmp_path)

    def recorded(*words: object, texts: list[str] = TEXTS, code: int = 0) -> str:
        rows = [{"review": text, "label": int(text == "good")} for text in texts]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = ("--data", tmp_path / "in.jsonl", "--text", "review")
        return recorder(tmp_path, capsys)(*words, *data, code=code)

    return recorded


def sums(texts: list[str] = TEXTS) -> list[int]:
    """What the member of tokens says of texts."""
    return [sum(map(len, text.split())) - 10 for text in texts]


def test_members_of_text_and_of_tokens_are_recorded_from_a_column_of_text(tmp_path: Path, record: Record) -> None:
    record("words", "tokens", "--derive", "tokenizer")
    records = records_from_path(tmp_path / "out.npz")
    assert records.outputs["tokens"][:, 1].tolist() == sums()
    assert records.outputs["words"][:, 1].tolist() == [3, -3, -3, -3, 3]
    assert list(records.meta["derived"]) == ["tokenizer"]
    # A plan knows from the records which model made the tokens.
    spec = pool_from_records(records, tmp_path, name="c", cost=None).spec
    assert [one.name for one in spec.inputs] == ["text"]
    assert [one.name for one in spec.derived] == ["tokenizer"]
    # Members that read none need no tokenizer, and one that is away is noted.
    assert pool_from_records(restricted(records, "words"), tmp_path, name="c", cost=None).spec.derived == ()
    (tmp_path / "tokenizer").rename(tmp_path / "away")
    pool = pool_from_records(records, tmp_path, name="c", cost=None)
    assert [one.name for one in pool.spec.inputs] == ["text", *TOKENS]
    assert any("tokenizer" in note for note in pool.notes)


@pytest.mark.parametrize("order", [("tokenizer", "cleaner"), ("cleaner", "tokenizer")])
def test_models_that_read_one_another_are_named_in_any_order(
    tmp_path: Path, record: Record, order: tuple[str, str]
) -> None:
    code = CLEANER.encode()
    (tmp_path / "cleaner" / "1").mkdir(parents=True)
    (tmp_path / "cleaner" / "1" / "derive.py").write_bytes(code)
    tensors = [TensorSpec(name=name, dtype="STRING", dims=(1,)) for name in ("raw", "text")]
    manifest = tokenizer_manifest(
        "cleaner", pad=0.0, inputs=tensors[:1], outputs=[PaddedTensor(**vars(tensors[1]))],
        data_files={"1/derive.py": hashlib.sha256(code).hexdigest()},
    )  # fmt: skip
    (tmp_path / "cleaner" / "manifest.json").write_text(json_from_deriving(manifest))
    record("words", "tokens", *(word for name in order for word in ("--derive", name)), texts=["<good>", "<a b>"])
    records = records_from_path(tmp_path / "out.npz")
    assert records.outputs["tokens"][:, 1].tolist() == sums(["good", "a b"])
    assert records.outputs["words"][:, 1].tolist() == [3, -3]


def test_a_text_that_is_refused_is_a_row_that_cannot_be_read(tmp_path: Path, record: Record) -> None:
    texts = ["good", " ", "no", "w " * 10]
    said = record("tokens", "--derive", "tokenizer", texts=texts, code=2)
    assert "row 1 that cannot be read (text: got 0 tokens, expected 1 to 9)" in said
    record("tokens", "--derive", "tokenizer", "--skip-bad", texts=texts)
    records = records_from_path(tmp_path / "out.npz")
    assert records.ids.tolist() == [0, 2]
    assert records.outputs["tokens"][:, 1].tolist() == sums(["good", "no"])


def test_what_cannot_derive_is_one_line(tmp_path: Path, record: Record) -> None:
    said = record("words", "tokens", code=2)
    assert "expected a column input_ids" in said
    assert "name a model that makes it with --derive" in said
    assert "expected an exported model" in record("tokens", "--derive", "absent", code=2)
    assert "--derive tokenizer: got a model that makes" in record("words", "--derive", "tokenizer", code=2)
    assert "manifest.json" in record("tokens", "--derive", "words", code=2)
    (tmp_path / "tokenizer" / "1" / "derive.py").write_text("other")
    assert "got another file than was exported" in record("tokens", "--derive", "tokenizer", code=2)


def test_a_server_derives_each_row_by_itself(tmp_path: Path, record: Record) -> None:
    def derive(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        assert rows.shape == (1, 1)
        ids = [len(word) for word in rows[0, 0].decode().split()]
        if not ids:
            raise CodedError("INVALID_ARGUMENT", "text: row 0: got a text without a token")
        return {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}

    def answer(rows: dict[str, np.ndarray], parameters: object) -> dict[str, np.ndarray]:
        total = (rows["input_ids"] * rows["attention_mask"]).sum(axis=1) - 10
        return {"logits": np.stack([-total, total], axis=1).astype(np.float32)}

    slots = tuple(Slot(name, "INT64", (-1,)) for name in TOKENS)
    settings: dict[str, Any] = {"max_batch_size": 8}
    tokenizer = FakeModel("tokenizer", derive, (Slot("text", "BYTES", (1,)),), slots, **settings)
    member = FakeModel("tokens", answer, slots, (Slot("logits", "FP32", (2,)),), **settings)
    with GrpcFront(FakeKServe([tokenizer, member])) as front:
        record("tokens", "--derive", "tokenizer", "--url", front.address)
        assert records_from_path(tmp_path / "out.npz").outputs["tokens"][:, 1].tolist() == sums()
        words = ["tokens", "--derive", "tokenizer", "--url", front.address, "--restart"]
        assert "row 1 that cannot be read (model tokenizer: got text: row 0" in record(
            *words, texts=["a", ""], code=2
        )
