import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError
from orchestrator.rows.docstrings import CLASSES, DocstringsSplit
from perf.__main__ import app
from perf.studies import training

ROWS = DocstringsSplit(
    ids=np.array(["a.py:f:0", "a.py:f:1"]), texts=('with "quotes", and a comma', "plain"), labels=np.array([3, 0])
)


def test_a_part_is_written_as_csv_and_other_releases_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "docstrings_split", lambda part: ROWS)
    path = tmp_path / "new" / "plan.csv"
    told = CliRunner().invoke(app, ["text-data", "-o", str(path)]).stdout
    assert told == f"{path}: 2 rows; not those of the pinned releases\n"
    monkeypatch.setitem(training.SHA256, "plan", ROWS.sha256())
    assert CliRunner().invoke(app, ["text-data", "-o", str(path)]).stdout == f"{path}: 2 rows\n"
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in found] == [
        (row, "a.py:f", text, CLASSES[label])
        for row, text, label in zip(ROWS.ids, ROWS.texts, ROWS.labels, strict=True)
    ]
    assert list(found[0]) == ["id", "docstring", "text", "label"]


def test_an_unknown_part_is_one_line(tmp_path: Path) -> None:
    error = CliRunner().invoke(app, ["text-data", "--part", "train", "-o", str(tmp_path / "a.csv")]).exception
    assert isinstance(error, DataError)
    assert "expected one of fit, plan, test" in str(error)
    assert not list(tmp_path.iterdir())
