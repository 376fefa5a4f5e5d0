"""The model.py that Triton loads for a cascade, and the runtime files beside it in a standalone rendering."""

from pathlib import Path

import orchestrator

SHIM = '''\
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
'''
RUNTIME = "orchestrator"
_PARTS = ("errors.py", "files.py", "spec", "decision", "bls")


def runtime_files() -> dict[str, bytes]:
    """The runtime's source files, path in the package -> bytes; they need numpy and nothing else."""
    root = Path(orchestrator.__file__).parent
    paths = [root / "__init__.py"]
    for part in _PARTS:
        paths += [root / part] if part.endswith(".py") else sorted((root / part).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def is_shim(path: Path | None) -> bool:
    """True for a model.py that loads the runtime, whichever version of committee wrote it."""
    if path is None or path.name != "model.py" or not path.is_file():
        return False
    return b"orchestrator.bls.model" in path.read_bytes()
