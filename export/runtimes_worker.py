"""A program of its own: what models answer in the ONNX Runtime of a given folder.

Started by file name, so it may import numpy and that ONNX Runtime only; without a folder it takes the installed
one. Its first line of JSON is {"version": ...}, once ONNX Runtime is imported: where a folder lacks the package,
Python takes the installed one, so the caller must compare. Reads JSON from stdin, a list of {"model": path,
"into": folder with rows_0.npy and so on, one per tensor, "tensors": [{"name": or null for the only input,
"lengths": of its rows or null}], "batches": [[size, rows]]}. A batch is cut to its longest row. Writes
<folder>/<size>.npy, and one line of JSON each:
{"fault": null or one line}. A model that crashes it leaves no line.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

# The folder is an argument, since a colon in its name would split PYTHONPATH.
if len(sys.argv) > 1:
    sys.path.insert(0, sys.argv[1])

# After the path is set.
import onnxruntime


def main() -> None:
    """Says which version this is, and answers every case in turn."""
    _say({"version": onnxruntime.__version__})
    for case in json.load(sys.stdin):
        fault = None
        try:
            _answer(case)
        # ONNX Runtime's exceptions share no base of their own.
        except Exception as error:
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        _say({"fault": fault})


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _answer(case: dict[str, Any]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case["model"], options, providers=["CPUExecutionProvider"])
    into = Path(case["into"])
    only = session.get_inputs()[0].name
    tensors = [
        (one["name"] or only, np.load(into / f"rows_{place}.npy"), one["lengths"])
        for place, one in enumerate(case["tensors"])
    ]

    def feed(start: int, end: int) -> dict[str, Any]:
        return {
            name: rows[start:end] if lengths is None else rows[start:end, : max(lengths[start:end])]
            for name, rows, lengths in tensors
        }

    for batch, count in case["batches"]:
        starts = range(0, count, batch)
        parts = [session.run(None, feed(start, min(start + batch, count)))[0] for start in starts]
        np.save(into / f"{batch}.npy", np.concatenate(parts))


if __name__ == "__main__":
    main()
