"""Rows of several tensors and of lengths that vary, recorded by members of several kinds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.__main__ import run
from orchestrator.errors import InputError, MemberError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records, records_from_path
from orchestrator.spec import RowLength
from tests.recording.text_members import (
    Record,
    recorder,
    write_numbers_member,
    write_text_member,
    write_tokens_member,
)

IDS = [[1, 2], [5, 6, 7], [], [20], [1, 2, 3, 4]]
TEXTS = ["no", "good", "no", "good", "no"]
LABELS = [0, 1, 0, 1, 0]


def archive(path: Path, **changes: Any) -> Path:
    """Rows of texts, token ids of varying length, and a mask that shows them all."""
    values = np.concatenate([np.array(ids, np.int64) for ids in IDS])
    offsets = np.cumsum([0, *map(len, IDS)])
    arrays: dict[str, Any] = {
        "text": np.array(TEXTS), "labels": np.array(LABELS), "features": np.eye(5, 3, dtype=np.float32),
        "input_ids.values": values, "input_ids.offsets": offsets,
        "attention_mask.values": np.ones_like(values), "attention_mask.offsets": offsets,
    }  # fmt: skip
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Record:
    write_text_member(tmp_path)
    write_numbers_member(tmp_path)
    write_tokens_member(tmp_path)

    return recorder(tmp_path, capsys)


def test_members_of_several_kinds_are_asked_each_about_its_own_tensors(tmp_path: Path, record: Record) -> None:
    said = record("words", "tokens", "table", "--data", archive(tmp_path / "in.npz"))
    assert "5 rows, 2 classes, 3 members" in said
    records = records_from_path(tmp_path / "out.npz")
    assert records.outputs["words"].argmax(axis=1).tolist() == LABELS
    assert records.outputs["tokens"][:, 1].tolist() == [sum(ids) - 10 for ids in IDS]
    assert records.outputs["table"].shape == (5, 2)


def test_rows_cost_what_their_lengths_cost_on_average(tmp_path: Path, record: Record) -> None:
    pad = {"input_ids": 0.0, "attention_mask": 0.0}
    length = RowLength(longest=16, pad=pad, macs_at=16, macs_coefficients=(10.0, 2.0, 0.5))
    write_tokens_member(tmp_path, "bert", length=length)
    macs = [10 + 2 * len(ids) + 0.5 * len(ids) ** 2 for ids in IDS]

    def recorded(name: str, *options: object) -> Records:
        said = record("bert", "tokens", "--data", tmp_path / name, "--restart", *options)
        assert (", cost 17 on average, of rows 2.0 long" in said) == (name == "in.npz" and not options), said
        return records_from_path(tmp_path / "out.npz")

    whole = recorded(archive(tmp_path / "in.npz").name)
    assert whole.cost == {"bert": pytest.approx(np.mean(macs)), "tokens": 100}
    assert whole.meta["members"]["bert"]["mean_length"] == np.mean([len(ids) for ids in IDS])
    assert "mean_length" not in whole.meta["members"]["tokens"]
    # The same rows in two files, of other lengths each, cost the same together.
    for part, rows in (("a", slice(2)), ("b", slice(2, None))):
        lines = [{"id": n, "input_ids": IDS[n], "attention_mask": [1] * len(IDS[n])} for n in range(5)[rows]]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        found = recorded(f"{part}.jsonl", "--id-column", "id")
        assert found.cost["bert"] == pytest.approx(np.mean(macs[rows]))
        (tmp_path / "out.npz").rename(tmp_path / f"{part}.npz")
    assert (
        run(["record", "--join", *(str(tmp_path / f"{one}.npz") for one in "ab"), "-o", str(tmp_path / "ab.npz")])
        == 0
    )
    joined = records_from_path(tmp_path / "ab.npz")
    assert joined.cost["bert"] == pytest.approx(np.mean(macs))
    assert joined.meta["members"]["bert"]["mean_length"] == pytest.approx(np.mean([len(ids) for ids in IDS]))
    # What somebody says it costs is not touched.
    assert recorded("in.npz", "--cost", "bert=7").cost["bert"] == 7


def test_a_table_of_json_says_the_same_as_the_archive(tmp_path: Path, record: Record) -> None:
    record("words", "tokens", "--data", archive(tmp_path / "in.npz"))
    first = records_from_path(tmp_path / "out.npz")
    lines = [
        json.dumps({"text": text, "input_ids": ids, "attention_mask": [1] * len(ids), "label": label})
        for text, ids, label in zip(TEXTS, IDS, LABELS, strict=True)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    record("words", "tokens", "--data", tmp_path / "in.jsonl", "--restart")
    second = records_from_path(tmp_path / "out.npz")
    for name in ("words", "tokens"):
        np.testing.assert_array_equal(first.outputs[name], second.outputs[name])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_ids.offsets": None}, "expected input_ids, or where lengths differ input_ids.values and"),
        ({"text": np.array(["a"] * 4)}, "4 rows in text, 5 rows in input_ids"),
        ({"input_ids.offsets": np.array([0, 5, 3, 3, 4, 10])}, "expected whole numbers (n + 1,) that ascend"),
        ({"input_ids.offsets": np.array([0, 2, 5, 5, 6, 9])}, "that ascend from 0 to 10"),
        ({"input_ids.values": np.ones(10, np.float32)}, "got dtype float32, expected int64"),
        ({"text": np.arange(5)}, "expected text"),
        ({"input_ids.values": np.array([{}] * 10, object)}, "it holds Python objects"),
    ],
)
def test_archives_that_do_not_fit_are_one_line(
    tmp_path: Path, record: Record, changes: dict[str, Any], said: str
) -> None:
    assert said in record("words", "tokens", "--data", archive(tmp_path / "in.npz", **changes), code=2)


def test_a_row_whose_tensors_differ_in_length_is_told_by_onnx_runtime_in_one_line(
    tmp_path: Path, record: Record
) -> None:
    path = archive(tmp_path / "in.npz", **{"attention_mask.offsets": np.array([0, 3, 5, 5, 6, 10])})
    assert "2 by 3" in record("tokens", "--data", path, code=2)


def test_what_onnx_runtime_refuses_is_not_printed_by_it_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_tokens_member(tmp_path)
    rows = {"input_ids": np.ones((1, 2), np.int64), "attention_mask": np.ones((1, 3), np.int64)}
    with pytest.raises(MemberError, match="2 by 3"):
        LocalMembers(tmp_path, ["tokens"]).ask("tokens", rows)
    assert capfd.readouterr().err == ""


def test_members_that_mean_other_things_by_one_name_are_refused(tmp_path: Path, record: Record) -> None:
    write_tokens_member(tmp_path, "more_tokens")
    manifest = tmp_path / "tokens" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"INT64"', '"INT32"', 1))
    said = record("tokens", "more_tokens", "--data", archive(tmp_path / "in.npz"), code=2)
    assert "got INT32 [-1] for tokens, INT64 [-1] for more_tokens, expected members that take" in said


@given(rows=st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=1, max_size=9))
def test_rows_of_any_lengths_get_the_answers_they_get_alone(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("members")
    write_tokens_member(folder)
    members = LocalMembers(folder, ["tokens"])
    arrays = [np.array(row, np.int64) for row in rows]
    given_rows: Any = {"input_ids": arrays, "attention_mask": [np.ones_like(row) for row in arrays]}
    assert members.ask("tokens", given_rows)[:, 1].tolist() == [sum(row) - 10 for row in rows]


def test_a_row_of_another_dtype_or_rank_is_told_with_its_number(tmp_path: Path) -> None:
    write_tokens_member(tmp_path)
    members = LocalMembers(tmp_path, ["tokens"])
    good = np.ones(2, np.int64)
    for bad in (np.ones(3, np.float32), np.ones((1, 2), np.int64)):
        rows: Any = {"input_ids": [good, bad], "attention_mask": [good, good]}
        with pytest.raises(InputError, match="input input_ids of model tokens row 1: got"):
            members.ask("tokens", rows)
