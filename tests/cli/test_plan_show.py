from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.planning import plan, write_made

STRICT = ("--reference", "c", "--epsilon", "0.001")


def test_that_only_the_reference_itself_was_certified_is_said_with_the_rows_for_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = write_made(tmp_path / "r.npz", rows=400)
    assert plan(records, *STRICT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["feasible"], found["accuracy_lower"] is None) == (True, False)
    assert found["more_rows"] > 0
    assert f"about {found['more_rows']} more rows" in found["reason"]["fix"]
    assert plan(records, *STRICT) == 0
    said = capsys.readouterr().out
    assert "note: no plan but the reference itself could be certified: got" in said
    assert f"about {found['more_rows']} more rows would do" in said


@pytest.mark.parametrize(
    ("goal", "word"),
    [
        (("--max-mean-cost", "6"), "certify rows wrong, "),
        (("--min-accuracy", "0.3"), "certify rows wrong, "),
        (("--reference", "c", "--epsilon", "0.3"), "certify rows lost, "),
        (("--label-free", "--epsilon", "0.5"), "certify rows in disagreement, "),
    ],
)
def test_rows_that_count_against_a_plan_are_called_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: tuple[str, ...], word: str
) -> None:
    assert plan(write_made(tmp_path / "r.npz"), *goal) == 0
    assert f" of 150 {word}" in capsys.readouterr().out


def test_a_plan_that_needs_no_reason_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(write_made(tmp_path / "r.npz"), "--max-mean-cost", "6", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["feasible"], found["reason"], found["more_rows"]) == (True, None, None)
