from __future__ import annotations

import shlex
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from orchestrator.serving.machine import machine_here
from perf.load.programs import AnalyzerBinary, analyzer_program, server_program
from tests.test_load_testing_docs import find_port


def test_a_program_of_the_users_own_is_run_as_it_is(tmp_path: Path) -> None:
    own = AnalyzerBinary(path=tmp_path / "mine", environment={}, version="1", libraries=None)
    assert analyzer_program(own) == tmp_path / "mine"


def test_a_fetched_one_finds_its_libraries_and_gets_every_word(tmp_path: Path) -> None:
    real = tmp_path / "perf analyzer"
    real.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH"\nfor word; do echo "$word"; done\n')
    real.chmod(0o755)
    found = AnalyzerBinary(path=real, environment={}, version="1", libraries=tmp_path / "lib-abc")
    program = analyzer_program(found)
    words = ["-m", "a model", "--x=$HOME"]
    said = subprocess.check_output([program, *words], text=True, env={"LD_LIBRARY_PATH": "/before"}).splitlines()
    assert said == [f"{tmp_path / 'lib-abc'}:/before", *words]
    assert analyzer_program(found).read_text() == program.read_text()


@pytest.mark.triton
def test_the_server_takes_tritons_options_and_listens_on_this_machine_only(tmp_path: Path) -> None:
    program = server_program(machine_here(), {"XDG_CACHE_HOME": str(tmp_path)})
    http = find_port()
    words = [str(program), "--model-repository", "model_repository", "--model-control-mode=explicit"]
    words += [f"--http-port={http}", "--allow-grpc=false", "--allow-metrics=false", "--load-model=digits_small"]
    assert "--http-address=127.0.0.1" in shlex.split(program.read_text().splitlines()[-1])
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            assert is_ready(f"http://127.0.0.1:{http}/v2/models/digits_small/ready"), (
                tmp_path / "log"
            ).read_text()
        finally:
            server.terminate()
            server.wait(timeout=60)


def is_ready(url: str, patience_s: float = 60.0) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False
