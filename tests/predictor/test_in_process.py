"""Members in this process: what the page says, other processes, and what cannot be opened."""

import hashlib
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.errors import RepositoryError, UnknownModelError
from orchestrator.planner.replay import replay
from orchestrator.predictor.in_process import LocalModels
from orchestrator.predictor.predictor import Predictor
from orchestrator.recording.job import records_of
from orchestrator.repository.index import plan_of
from orchestrator.rows.digits import digits_split

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"


def test_the_example_of_the_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/batch.md").read_text(encoding="utf-8"), re.S)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")


def test_a_job_without_a_server_answers_as_replay_does(tmp_path: Path) -> None:
    spec = plan_of(REPOSITORY, "digits_cascade")
    expected = replay(spec, records_of(REPOSITORY, [one.name for one in spec.members], "digits:test"))
    np.save(tmp_path / "in.npy", digits_split("test").images)
    words = ["batch", tmp_path / "in.npy", tmp_path / "out.npz", "--model", "digits_cascade", "--in-process"]
    assert run([*map(str, words), "--repository", str(REPOSITORY), "--probabilities"]) == 0
    with np.load(tmp_path / "out.npz") as found:
        for column in ("label", "exit_stage", "status", "cost"):
            np.testing.assert_array_equal(found[column], getattr(expected, column))
        # Kernels round otherwise for another number of rows.
        np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)


def test_a_predictor_of_local_models_travels() -> None:
    predictor = pickle.loads(pickle.dumps(Predictor(LocalModels(repository=REPOSITORY), "digits_small")))
    with predictor:
        assert predictor.predict({"image": digits_split("test").images[:3]})["label"].shape == (3,)


def test_another_member_than_the_planned_one_and_an_unknown_model_are_refused(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "repository", symlinks=False)
    other = tmp_path / "repository" / "digits_small" / "1" / "model.onnx"
    data = (REPOSITORY / "digits_medium" / "1" / "model.onnx").read_bytes()
    other.write_bytes(data)
    manifest = tmp_path / "repository" / "digits_small" / "manifest.json"
    planned = plan_of(REPOSITORY, "digits_cascade").members[0].sha256
    # Not what its manifest says, then not what the plan says.
    for said in ("as in manifest.json", "as planned"):
        predictor = Predictor(LocalModels(repository=tmp_path / "repository"), "digits_cascade")
        with predictor, pytest.raises(RepositoryError, match=said):
            predictor.predict({"image": digits_split("test").images[:3]})
        manifest.write_text(manifest.read_text().replace(str(planned), hashlib.sha256(data).hexdigest()))
    with Predictor(LocalModels(repository=REPOSITORY), "nobody") as predictor, pytest.raises(UnknownModelError):
        predictor.predict({"image": digits_split("test").images[:3]})
