"""Asking models in a process of its own: another version of ONNX Runtime, or another processor's instructions."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ExportError

Array = npt.NDArray[Any]
WORKER = Path(__file__).with_name("worker.py")
# Networks of tens of GMACs take minutes; a process that hangs must end all the same.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """Rows for a model.

    Args:
        model: path of an ONNX file; files of weights lie beside it.
        rows: (n, *dims) in the dtype of its only input.
        batches: sizes they are sent in, one after another.
        rows_in: batch size -> how many of the rows, from the first, are sent in it; all where it is not named.
    """

    model: Path
    rows: Array
    batches: tuple[int, ...]
    rows_in: Mapping[int, int] = field(default_factory=dict)


def answers_in_own_process(
    questions: Sequence[Question],
    *,
    folder: Path | None = None,
    wanted: str | None = None,
    prefix: Sequence[str] = (),
) -> list[dict[int, Array] | str]:
    """The models' answers, computed in a process of its own.

    Args:
        questions: asked in this order.
        folder: of an unpacked ONNX Runtime; None for the installed one.
        wanted: version of ONNX Runtime that must answer; None for whichever does.
        prefix: a command that runs the interpreter, such as an emulator of another processor.

    Returns:
        for each question, batch size -> the first output (n, k), or one line that says why there is none.

    Raises:
        ExportError: ONNX Runtime cannot be imported there, or is another version than wanted.
    """
    with tempfile.TemporaryDirectory(prefix="committee-runtime-") as name:
        cases = [_case(question, Path(name) / str(index)) for index, question in enumerate(questions)]
        own = [] if folder is None else [str(folder.resolve())]
        output, why = _run([*prefix, sys.executable, str(WORKER), *own], json.dumps(cases))
        first, *lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")] or [{}]
        _require_version(first.get("version"), wanted, folder, why)
        faults = [line["fault"] for line in lines] + [why] * (len(cases) - len(lines))
        return [fault if fault is not None else _read(case) for case, fault in zip(cases, faults, strict=True)]


def _run(command: Sequence[str], text: str) -> tuple[str, str]:
    """Output of a process that gets `text` on stdin, and one line about how it ended."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        # subprocess gives bytes here, even with text=True.
        return (error.stdout or b"").decode(errors="replace"), f"its process did not end within {_TIMEOUT_S:g} s"
    except OSError as error:
        return "", f"its process failed: {error}"
    return done.stdout, f"its process ended with status {done.returncode} ({_last_line(done.stderr)})"


def _require_version(found: str | None, wanted: str | None, folder: Path | None, why: str) -> None:
    """Raises ExportError where no version answers, or another than `wanted`."""
    if found is not None and wanted in (None, found):
        return
    raise ExportError(
        f"ONNX Runtime {wanted or 'as installed'}",
        got=why if found is None else f"version {found}",
        expected=f"version {wanted}" if wanted else "one that can be imported",
        fix="install it again" if folder is None else f"remove {folder} and run again",
    )


def _case(question: Question, into: Path) -> dict[str, Any]:
    into.mkdir()
    rows = into / "rows.npy"
    np.save(rows, question.rows)
    return {
        "model": str(question.model.resolve()),
        "rows": str(rows),
        "batches": [
            [batch, min(question.rows_in.get(batch, len(question.rows)), len(question.rows))]
            for batch in question.batches
        ],
        "into": str(into),
    }


def _read(case: dict[str, Any]) -> dict[int, Array]:
    return {batch: np.load(Path(case["into"]) / f"{batch}.npy") for batch, _ in case["batches"]}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]
