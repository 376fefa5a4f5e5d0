"""Small records on disk, and the command on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from tests.planner.builders import made_records


def write_made(path: Path, *, rows: int = 300, members: int = 3, seed: int = 0, **arrays: Any) -> Path:
    """Records of members that no repository knows, with other arrays in place of some."""
    records = made_records(seed, rows=rows, members=members)
    outputs = {f"outputs/{name}": output for name, output in records.outputs.items()}
    costs = {f"cost/{name}": np.float64(cost) for name, cost in records.cost.items()}
    np.savez(path, **{"ids": records.ids, "labels": records.labels, **outputs, **costs, **arrays})
    return path


def plan(records: Path, *options: object) -> int:
    """`committee plan`, without temperatures and manifests; its exit code."""
    return run(["plan", *map(str, (records, "--repository", records.parent / "none", *options))])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which is one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error
