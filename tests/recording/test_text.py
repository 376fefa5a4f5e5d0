"""`committee record` over texts and columns of numbers."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.errors import InputError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import records_from_path
from tests.recording.text_members import (
    GOOD,
    Record,
    recorder,
    write_numbers_member,
    write_pair_member,
    write_text_member,
)


@pytest.fixture
def record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Record:
    write_text_member(tmp_path)
    write_numbers_member(tmp_path)

    return recorder(tmp_path, capsys)


def test_texts_of_a_table_are_recorded_with_ids_and_labels(tmp_path: Path, record: Record) -> None:
    texts = [*GOOD, "", "other thing", "bad"]
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "review", "mood"])
        rows.writerows([[f"k{n}", text, "good" if n < 3 else "bad"] for n, text in enumerate(texts)])
    said = record(
        "words", "--data", tmp_path / "in.csv", "--text", "review", "--label", "mood", "--id-column", "key"
    )
    assert "6 rows, 2 classes, 1 members" in said
    assert "words: accuracy 1.0000" in said
    records = records_from_path(tmp_path / "out.npz")
    assert records.ids.tolist() == [f"k{n}" for n in range(6)]
    assert records.outputs["words"][:, 1].tolist() == [3, 3, 3, -3, -3, -3]


def test_a_bad_row_stops_the_recording_with_its_place_or_is_left_out(tmp_path: Path, record: Record) -> None:
    lines = ['{"text": "good", "label": 1}', '{"text": null, "label": 0}', '{"text": "x", "label": 0}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    said = record("words", "--data", tmp_path / "in.jsonl", code=2)
    assert "in.jsonl row 1 (line 2) text: got null" in said
    assert "--skip-bad" in said
    record("words", "--data", tmp_path / "in.jsonl", "--skip-bad")
    records = records_from_path(tmp_path / "out.npz")
    assert records.ids.tolist() == [0, 2]
    assert records.labels is not None
    assert records.labels.tolist() == [1, 0]


@pytest.mark.parametrize("odd", ["good\0", "go\0od", "\0"])
def test_a_text_with_a_zero_cannot_be_read_for_an_onnx_member(tmp_path: Path, record: Record, odd: str) -> None:
    lines = [json.dumps({"text": text, "label": 1}) for text in ("good", odd)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    said = record("words", "--data", tmp_path / "in.jsonl", code=2)
    assert f"in.jsonl row 1 (line 2) text: got a zero byte (NUL) at {odd.index(chr(0))}, expected UTF-8" in said
    np.savez(tmp_path / "in.npz", text=np.array(["good", f"{odd}."]))
    assert "row 1 that cannot be read (text: got a zero byte" in record(
        "words", "--data", tmp_path / "in.npz", code=2
    )
    record("words", "--data", tmp_path / "in.npz", "--skip-bad", "--restart")
    assert records_from_path(tmp_path / "out.npz").ids.tolist() == [0]
    record("words", "--data", tmp_path / "in.jsonl", "--skip-bad", "--restart")
    assert records_from_path(tmp_path / "out.npz").ids.tolist() == [0]
    with pytest.raises(InputError, match="row 1: got a zero byte"):
        LocalMembers(tmp_path, ["words"]).ask("words", ["good", odd])


def test_columns_of_numbers_are_recorded(tmp_path: Path, record: Record) -> None:
    (tmp_path / "in.csv").write_text("z,y,x,label\n1,0,2,1\n5,0,2,0\n")
    said = record("table", "--data", tmp_path / "in.csv", "--columns", "x,y,z")
    assert "table: accuracy 1.0000" in said
    assert "expected one input of text" in record("table", "--data", tmp_path / "in.csv", "--text", "x", code=2)
    assert "expected q; see --columns" in record("table", "--data", tmp_path / "in.csv", "--columns", "q", code=2)


def test_missing_numbers_are_recorded_where_that_is_asked_for_and_plans_say_what_becomes_of_them(
    tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    write_numbers_member(tmp_path, "other")
    rows = "".join(f"{n % 2 + 1},{n},1.5,{n % 2}\n" for n in range(60))
    (tmp_path / "in.csv").write_text(f"x,y,z,label\n{rows},0,1,0\n1,nan,,1\n")
    table = ["--data", tmp_path / "in.csv"]
    assert "row 60 (line 62) x: got '', expected a number" in (said := record("table", *table, code=2))
    assert "see --missing-as-nan" in said
    record("table", *table, "--skip-bad")
    assert "non_finite_rows" not in records_from_path(tmp_path / "out.npz").meta
    for name in ("table", "other"):
        said = record(name, *table, "--missing-as-nan", "--restart")
        assert records_from_path(tmp_path / "out.npz").meta["non_finite_rows"] == 2
        (tmp_path / "out.npz").rename(tmp_path / f"{name}.npz")
    both = tmp_path / "both.npz"
    assert (
        run(["record", "--join", *(f"{tmp_path / name}.npz" for name in ("table", "other")), "-o", f"{both}"]) == 0
    )
    for options, noted in (([], True), (["--non-finite", "pass"], False)):
        capsys.readouterr()
        goal = ["--min-accuracy", "0.6", "--no-certify", "--repository", f"{tmp_path}", *options]
        assert run(["plan", f"{both}", *goal]) == 0
        assert ("over 2 rows with NaN or infinity, which the cascade refuses" in capsys.readouterr().err) == noted


def test_two_texts_of_a_row_are_columns_that_the_caller_names(tmp_path: Path, record: Record) -> None:
    write_pair_member(tmp_path)
    texts = {"premise": ["good", "no", "good"], "hypothesis": ["no", "good", "good"]}
    rows = zip(*texts.values(), strict=True)
    (tmp_path / "in.csv").write_text("premise,hypothesis\n" + "".join(f"{a},{b}\n" for a, b in rows))
    (tmp_path / "one.csv").write_text("text\ngood\n")
    said = record("pair", "--data", tmp_path / "one.csv", code=2)
    assert "expected a column text_pair, as the model's input is named" in said
    np.savez(tmp_path / "in.npz", **{name: np.array(column) for name, column in texts.items()})
    for name in ("in.csv", "in.npz"):
        for first, second, scores in (
            ("premise", "hypothesis", [3, -3, 0]),
            ("hypothesis", "premise", [-3, 3, 0]),
        ):
            named = f"text_pair={second}, text={first}"
            record("pair", "--data", tmp_path / name, "--text", named, "--restart")
            assert records_from_path(tmp_path / "out.npz").outputs["pair"][:, 1].tolist() == scores
        said = record("pair", "--data", tmp_path / name, "--text", "premise", code=2)
        assert "expected one input of text; give --text as text=COLUMN,text_pair=COLUMN" in said
        said = record("pair", "--data", tmp_path / name, "--text", "text=premise,other=hypothesis", code=2)
        assert "expected inputs of text other" in said
        # The column that is called as the first input is not taken for the second one.
        said = record("pair", "--data", tmp_path / name, "--text", "text_pair=hypothesis", code=2)
        assert "a column text, as" in said or "expected text, or" in said
        said = record("pair", "--data", tmp_path / name, "--text", "text=premise,text_pair=absent", code=2)
        assert "expected absent; see --text" in said


def test_a_column_that_is_called_with_a_sign_of_equality_is_a_column(tmp_path: Path, record: Record) -> None:
    (tmp_path / "in.csv").write_text("text=a,label\ngood,1\nno,0\n")
    record("words", "--data", tmp_path / "in.csv", "--text", "text=a")
    assert records_from_path(tmp_path / "out.npz").outputs["words"][:, 1].tolist() == [3, -3]


def test_a_local_member_takes_texts_in_any_form(tmp_path: Path) -> None:
    write_text_member(tmp_path)
    members = LocalMembers(tmp_path, ["words"])
    for rows in (["good", "no"], np.array(["good", "no"]), np.array([[b"good"], [b"no"]], object)):
        assert members.ask("words", rows).argmax(axis=1).tolist() == [1, 0]
    with pytest.raises(
        InputError, match="input text of model words row 0: got byte 0xff at 0, which is not UTF-8"
    ):
        members.ask("words", [b"\xff"])


def test_the_summary_as_json_is_one_document(tmp_path: Path, record: Record) -> None:
    (tmp_path / "in.tsv").write_text("text\tlabel\ngood\t1\nother\t0\n")
    assert json.loads(record("words", "--data", tmp_path / "in.tsv", "--json"))["rows"] == 2
