"""Asking models in a process of its own: another version of ONNX Runtime, or another processor's instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WORKER = Path(__file__).with_name("worker.py")
# Networks of tens of GMACs take minutes for some rows; a process that hangs must end all the same.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """Rows for a model.

    Args:
        model: path of an ONNX file; files of weights lie beside it.
        rows: (n, *dims) in the dtype of its only input.
        batches: sizes they are sent in, one after another.
    """

    model: Path
    rows: Array
    batches: tuple[int, ...]


def answers_apart(
    questions: Sequence[Question], *, folder: Path | None = None, prefix: Sequence[str] = ()
) -> list[dict[int, Array] | str]:
    """What models say in a process of its own.

    Args:
        questions: asked in this order.
        folder: of an unpacked ONNX Runtime; None for the installed one.
        prefix: a command that runs the interpreter, such as an emulator of another processor.

    Returns:
        for each question, batch size -> the first output (n, k), or one line that says why there is none.
    """
    with tempfile.TemporaryDirectory(prefix="committee-runtime-") as name:
        cases = [_case(question, Path(name) / str(index)) for index, question in enumerate(questions)]
        environment = dict(os.environ)
        if folder is not None:
            environment["PYTHONPATH"] = str(folder)
        try:
            done = subprocess.run(
                [*prefix, sys.executable, str(WORKER)],
                input=json.dumps(cases),
                capture_output=True,
                text=True,
                env=environment,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return [f"its process failed: {error}"] * len(questions)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        why = f"its process ended with status {done.returncode} ({_last_line(done.stderr)})"
        faults = [line["fault"] for line in lines] + [why] * (len(cases) - len(lines))
        return [fault if fault is not None else _read(case) for case, fault in zip(cases, faults, strict=True)]


def _case(question: Question, into: Path) -> dict[str, Any]:
    into.mkdir()
    rows = into / "rows.npy"
    np.save(rows, question.rows)
    return {
        "model": str(question.model.resolve()),
        "rows": str(rows),
        "batches": list(question.batches),
        "into": str(into),
    }


def _read(case: dict[str, Any]) -> dict[int, Array]:
    return {batch: np.load(Path(case["into"]) / f"{batch}.npy") for batch in case["batches"]}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]
