"""ONNX Runtime's telemetry is off in every process that the project starts."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers import running_server
from tests.serving.models import add_onnx, scale_model

ROOT = Path(__file__).resolve().parents[1]
OFF = "ORT_DISABLE_TELEMETRY"
# What a user of the package does: a session, and a run of it.
RUNS_A_MODEL = """
import {package}
import numpy as np
import onnxruntime
path = "model_repository/digits_small/1/model.onnx"
session = onnxruntime.InferenceSession(path)
session.run(None, {{"image": np.zeros((1, 1, 8, 8), np.float32)}})
"""


def clean_environment(home: Path) -> dict[str, str]:
    """Nothing that turns telemetry off: neither our own setting nor the marks of CI, which ONNX Runtime knows."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "LANG")}
    return {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def run(code: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["orchestrator", "export", "perf"])
def test_every_package_turns_it_off_before_onnx_runtime_is_imported(package: str, tmp_path: Path) -> None:
    run(RUNS_A_MODEL.format(package=package), clean_environment(tmp_path))
    assert list(tmp_path.rglob("*")) == [], "ONNX Runtime keeps something below the user's cache"


@pytest.mark.triton
def test_the_server_and_its_models_inherit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for name in ("CI", "GITHUB_ACTIONS", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HOME", str(cache))
    (tmp_path / "repository").mkdir()
    add_onnx(tmp_path / "repository", "scale", scale_model())
    with running_server(tmp_path / "repository"):
        pass
    assert not list(cache.rglob("*onnxruntime*"))


def test_a_user_who_wants_it_is_obeyed(tmp_path: Path) -> None:
    code = f"import orchestrator, os; print(os.environ[{OFF!r}])"
    assert run(code, clean_environment(tmp_path)) == "1"
    assert run(code, {**clean_environment(tmp_path), OFF: "0"}) == "0"
