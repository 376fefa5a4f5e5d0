from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator.cli.console import print_json, progress, stdout_console


def test_json_is_one_document_of_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "array": np.array([[1, 2]], np.int32),
        "scalar": np.float32(0.5),
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "nested": ({"flag": np.bool_(True)}, "text", None),
    }
    print_json(value)
    assert json.loads(capsys.readouterr().out) == {
        "array": [[1, 2]],
        "scalar": 0.5,
        "nan": None,
        "inf": None,
        "nested": [{"flag": True}, "text", None],
    }


def test_progress_says_nothing_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_whole_tables(capsys: pytest.CaptureFixture[str]) -> None:
    stdout_console().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"
