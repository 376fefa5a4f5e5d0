"""The cascade described by cascade.json, as Triton loads it. Written by committee: render again to change it."""

import importlib
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

# Nearest first: a standalone rendering keeps the runtime beside this file, a checkout above it.
for folder in Path(__file__).resolve().parents:
    if (folder / "orchestrator" / "bls" / "model.py").is_file():
        sys.path.insert(0, str(folder))
        break

try:
    runtime = importlib.import_module("orchestrator.bls.model")
except ModuleNotFoundError as error:
    raise ImportError(f"{__file__}: {error}; render with --standalone, or install what is missing") from error

TritonPythonModel = runtime.cascade_model(pb_utils)
