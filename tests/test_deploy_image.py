"""deploy/image: a Dockerfile that a linter accepts, whose pins are those everything is tested with."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.spec.triton import PINNED

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "image"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
PINS = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]


def test_its_pins_are_those_of_the_lock() -> None:
    locked = (ROOT / "requirements" / "dev.lock").read_text().splitlines()
    assert PINS
    assert set(PINS) <= set(locked)


@pytest.mark.export
def test_its_pins_are_what_exported_models_ask_for() -> None:
    from export.deriving.decoder import PACKAGES as DECODER
    from export.deriving.tokenizer import PACKAGES as TOKENIZER

    assert {pin.partition("==")[0] for pin in PINS} == {*DECODER, *TOKENIZER}


def test_it_builds_on_the_image_that_compose_runs() -> None:
    (release,) = re.findall(r"^ARG TRITON_VERSION=(.+)$", DOCKERFILE, re.MULTILINE)
    assert release == PINNED
    assert "FROM nvcr.io/nvidia/tritonserver:${TRITON_VERSION}-py3\n" in DOCKERFILE
    assert f"--build-arg TRITON_VERSION={PINNED}" in DOCKERFILE


def test_what_it_copies_is_there() -> None:
    copied = re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE)
    assert copied
    assert all((FOLDER / name).is_file() for name in copied)


def test_it_does_not_end_as_root() -> None:
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    if not program.is_file():
        pytest.skip("no hadolint in this environment; `make setup` installs it")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    result = lint(FOLDER / "Dockerfile")
    assert (result.returncode, result.stdout) == (0, "")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.replace("python3 -m pip install --no-cache-dir", "sudo pip install"))
    assert lint(wrong).returncode != 0, "it would notice a mistake"
