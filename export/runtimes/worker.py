"""A program of its own: answers of models in whatever ONNX Runtime stands first on its path.

Started by file name, so it may import numpy and that ONNX Runtime only. Reads JSON from stdin, a list of
{"model": path, "rows": path of .npy, "batches": [sizes], "into": folder}; writes <folder>/<batch>.npy, and one
line of JSON for each: {"version": ..., "fault": null or one line}. A model that crashes it leaves no line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    """Answers every case in turn."""
    for case in json.load(sys.stdin):
        fault = None
        try:
            _answer(case)
        # ONNX Runtime's exceptions share no base of their own.
        except Exception as error:
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        sys.stdout.write(json.dumps({"version": onnxruntime.__version__, "fault": fault}) + "\n")
        sys.stdout.flush()


def _answer(case: dict) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case["model"], options, providers=["CPUExecutionProvider"])
    rows = np.load(case["rows"])
    name = session.get_inputs()[0].name
    for batch in case["batches"]:
        starts = range(0, len(rows), batch)
        parts = [session.run(None, {name: rows[start : start + batch]})[0] for start in starts]
        np.save(Path(case["into"]) / f"{batch}.npy", np.concatenate(parts))


if __name__ == "__main__":
    main()
