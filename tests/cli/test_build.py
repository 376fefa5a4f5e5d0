"""`committee build`: the commands a person would give, one after another, each going on where it stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from orchestrator.__main__ import run
from orchestrator.cli.build import models_from_words
from orchestrator.local import LocalMembers
from orchestrator.spec import cascade_from_path, manifest_from_path
from tests.onnx_models import model_of
from tests.recording.builders import NAMES, png, rows_of, write_member

ROOT = Path(__file__).parents[2]
# Side that the float models see; the smallest an export takes.
PX = 8


def float_model(path: Path, *, seed: int, softmax: bool) -> None:
    """The stronger colour of float32 pictures, roughly: one of three classes, as people's ONNX files are."""
    weights = np.random.default_rng(seed).normal(size=(3, PX * PX, 3))
    weights = (weights + np.eye(3)[:, None]).reshape(-1, 3).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
        helper.make_node("Softmax" if softmax else "Identity", ["raw"], ["scores"]),
    ]
    onnx.save(
        model_of(nodes, {"pixels": ["n", 3, PX, PX]}, {"scores": ["n", 3]}, {"weights": weights}, ir=8), path
    )


def built(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs `committee build` as a person would, in a folder."""
    argv = [sys.executable, "-m", "orchestrator", "build", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def coloured_pictures(root: Path, *, each: int) -> None:
    """A folder per class, pictures of each a little stronger in one colour."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 200, (PX, PX, 3))
            pixels[..., index] += 50
            (root / name / f"{number:03d}.png").write_bytes(png(pixels.astype(np.uint8)))


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Labelled rows and two members in `repository`, the second dearer and always right."""
    for seed, name in enumerate(("a", "b")):
        write_member(tmp_path / "repository", name, seed=seed, macs=10 ** (seed + 2))
    images = rows_of(200)
    labels = LocalMembers(tmp_path / "repository", ["b"]).ask("b", images).argmax(axis=1)
    np.savez(tmp_path / "rows.npz", images=images, labels=labels)
    return tmp_path


READY = ("a", "b", "--data", "rows.npz", "-o", "repository", "--epsilon", 0.3)


@pytest.mark.export
def test_two_onnx_files_and_pictures_become_a_cascade_that_the_printed_commands_make_too(tmp_path: Path) -> None:
    coloured_pictures(tmp_path / "pictures", each=60)
    float_model(tmp_path / "small.onnx", seed=1, softmax=False)
    float_model(tmp_path / "large.onnx", seed=2, softmax=True)
    words = ["small.onnx", "big=large.onnx", "--data", "pictures", "-o", "repository", "--epsilon", 0.3]
    words += f"--mean 0,0,0 --std 1,1,1 --resolution {PX} --labels-by-order --reference big".split()
    words += ["--plan-args=--header-pattern '^x-'"]
    done = built(tmp_path, *words, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["members"] == ["small", "big"]
    assert [one["step"] for one in document["steps"]] == ["export", "record", "plan", "render", "check"]
    kinds = {
        name: manifest_from_path(tmp_path / f"repository/{name}/manifest.json").output_kind
        for name in ("small", "big")
    }
    assert kinds == {"small": "logits", "big": "probabilities"}
    plan = tmp_path / "repository" / "cascade" / "1" / "cascade.json"
    assert (cascade_from_path(plan).name, cascade_from_path(plan).header_pattern) == ("cascade", "^x-")
    assert (tmp_path / document["report"]).is_file()
    first = plan.read_bytes()
    for one in document["steps"][1:]:
        command = ["/bin/bash", "-c", one["command"]]
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
    assert plan.read_bytes() == first


def test_the_same_command_again_repeats_no_question_and_a_shell_takes_what_is_printed(ready: Path) -> None:
    (ready / "rows.npz").rename(ready / "my rows.npz")
    words = [*("my rows.npz" if word == "rows.npz" else word for word in READY), "--work", "my work"]
    first = built(ready, *words)
    assert first.returncode == 0, first.stderr
    assert "[1/4] record" in first.stderr
    assert "[4/4] check" in first.stderr
    assert "(up to date" not in first.stdout
    assert first.stdout.splitlines()[-3].split() == ["Cascade:", "repository/cascade"]
    commands = [line[2:] for line in first.stderr.splitlines() if line.startswith("$ ")]
    assert shlex.split(commands[0])[-1] == "my work/records.npz"
    assert subprocess.run(commands[-1], cwd=ready, shell=True, capture_output=True, check=False).returncode == 0
    second = built(ready, *words)
    assert second.returncode == 0
    assert "(up to date, --restart records again)" in second.stdout


def test_where_no_cascade_does_it_nothing_is_rendered_and_the_finished_steps_are_told(ready: Path) -> None:
    done = built(ready, *READY[:-2], "--min-accuracy", 1, "--json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert ([one["step"] for one in document["steps"]], document["failed"]) == (["record"], "plan")
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["exit_code"] == 3
    assert error["message"].startswith("build: step plan: got exit code 3")
    assert "ask for something else" in error["message"]
    assert not (ready / "repository" / "cascade").exists()


def test_pictures_for_members_that_take_numbers_are_refused_before_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_member(tmp_path / "repository", name, preprocess=None)
    coloured_pictures(tmp_path / "pictures", each=1)
    monkeypatch.chdir(tmp_path)
    assert run(["build", "a", "b", "--data", "pictures", "-o", "repository"]) == 2
    assert "pictures, and a, b that take numbers" in capsys.readouterr().err


def test_members_are_meant_by_name_or_by_folder(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ready / "repository")
    assert [one.word for one in models_from_words(["a", "./b/"], Path())] == ["a", "b"]
    monkeypatch.chdir(ready)
    assert [one.word for one in models_from_words(["a", "repository/b"], Path("repository"))] == ["a", "b"]
    (ready / "tiny").mkdir()
    (ready / "tiny" / "config.json").write_text("{}")
    assert [one.word for one in models_from_words(["x=tiny/", "a"], Path("repository"))] == ["x=hf:tiny", "a"]


def test_a_terminated_build_ends_its_step_and_goes_on_afterwards(ready: Path) -> None:
    argv = [sys.executable, "-m", "orchestrator", "build", *map(str, READY)]
    child = subprocess.Popen(argv, cwd=ready, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    assert child.stderr is not None
    while "[1/4]" not in child.stderr.readline():
        pass
    time.sleep(0.2)
    (step,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[1]
    assert said.splitlines()[-1] == "build: stopped in step record; the same command goes on from there"
    assert child.returncode == 143
    assert not Path(f"/proc/{step}").exists()
    assert built(ready, *READY).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "two or more"),
        (["a", "not_there.onnx"], "no such file"),
        (["a", "c=b"], "another name for a member of the repository"),
        (["a", "a"], "a model more than once"),
        (["a", ""], "no such file"),
        (["a", "x y=b"], "the name 'x y'"),
        (["a", "repository"], "a folder without config.json"),
        (["a", "b", "--name", "a"], "a, a member"),
        (["a", "b", "--name", "../x"], "--name: got '../x'"),
        (["a", "b", "--delta", "2"], "--delta"),
        (["a", "b", "--min-accuracy", "0.5", "--epsilon", "0.1"], "--min-accuracy: got --epsilon"),
        (["a", "b", "--mean", "0.5"], "--mean and no model to export"),
        (["a", "b", "--data", "nowhere"], "--data: got 'nowhere'"),
        (["a", "b", "--data", "now:here"], "--data: got 'now:here'"),
        (["a", "b", "--data", ""], "--data: got ''"),
        (["a", "b", "--reference", "c"], "--reference: got c"),
        (["a", "b", "--class-map", "none.txt"], "none.txt, which is no file"),
        (["a", "b", "--work", "rows.npz"], "rows.npz, a file"),
        (["a", "b", "--plan-args", "'"], "No closing quotation"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    ready: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready)
    assert run(["build", "--data", "rows.npz", "-o", "repository", *words]) == 2
    assert {path.name for path in ready.iterdir()} == {"repository", "rows.npz"}
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
