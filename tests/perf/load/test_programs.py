import hashlib
import os
import shlex
import stat
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from orchestrator.errors import ServingError
from orchestrator.serving.machine import machine_here
from perf.load import analyzer
from perf.load.analyzer import (
    IN_WHEEL,
    LIBRARIES,
    AnalyzerBinary,
    analyzer_program,
    cache_folder,
    find_analyzer,
    server_program,
)
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


def is_ready(url: str, timeout_s: float = 60.0) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    return False


SCRIPT = b'#!/bin/sh\necho "Perf Analyzer Version 9.8.7 (commit x)"\nls $(echo $LD_LIBRARY_PATH | cut -d: -f1)\n'


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **more}


def program(path: Path, text: bytes = SCRIPT) -> Path:
    path.write_bytes(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose program is a script, known to the module by its hashes; and the server's libraries."""
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(IN_WHEEL, SCRIPT)
    monkeypatch.setattr(analyzer, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(analyzer, "BINARY_SHA256", hashlib.sha256(SCRIPT).hexdigest())
    libraries = tmp_path / "libs"
    libraries.mkdir()
    for prefix in LIBRARIES.values():
        (libraries / f"{prefix}0a1b.so").touch()
    monkeypatch.setattr(analyzer, "_wheel_libraries", lambda: libraries)
    return path


def test_it_is_fetched_once_and_finds_its_libraries_under_the_names_it_asks_for(
    tmp_path: Path, wheel: Path
) -> None:
    calls = []

    def fetch(folder: Path) -> Path:
        calls.append(folder)
        return wheel

    variables = environment(tmp_path, LD_LIBRARY_PATH="/known")
    for _ in range(2):
        found = find_analyzer(variables, fetch=fetch)
    assert len(calls) == 1
    assert found.version == "9.8.7"
    assert found.path == cache_folder(variables) / "perf_analyzer"
    links, known = found.environment["LD_LIBRARY_PATH"].split(":")
    assert known == "/known"
    assert sorted(path.name for path in Path(links).iterdir()) == sorted(LIBRARIES)
    assert all(path.resolve().is_file() for path in Path(links).iterdir())


def test_a_cached_program_that_was_changed_is_fetched_again(tmp_path: Path, wheel: Path) -> None:
    variables = environment(tmp_path)
    path = find_analyzer(variables, fetch=lambda _: wheel).path
    path.write_bytes(b"half of it")
    assert find_analyzer(variables, fetch=lambda _: wheel).version == "9.8.7"


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"more")
    with pytest.raises(ServingError, match=r"sha256 .* expected .*PERF_ANALYZER"):
        find_analyzer(environment(tmp_path), fetch=lambda _: wheel)
    assert not (cache_folder(environment(tmp_path)) / "perf_analyzer").exists()


def test_the_users_own_program_is_taken_as_it_is(tmp_path: Path) -> None:
    own = program(tmp_path / "own")

    def fetch(_: Path) -> Path:
        raise AssertionError("nothing is fetched")

    found = find_analyzer(environment(tmp_path, PERF_ANALYZER=str(own)), fetch=fetch)
    assert (found.path, found.version) == (own, "9.8.7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no program there"),
        (b"#!/bin/sh\necho broken library >&2; exit 127\n", "broken library"),
        (b"#!/bin/sh\necho hello\n", "got hello"),
        (b"#!/bin/sh\n", "no output"),
    ],
)
def test_an_own_program_that_does_not_start_gives_one_line(tmp_path: Path, text: bytes | None, words: str) -> None:
    own = tmp_path / "own"
    if text is not None:
        program(own, text)
    with pytest.raises(ServingError, match=words) as caught:
        find_analyzer(environment(tmp_path, PERF_ANALYZER=str(own)))
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyzer.sys, "executable", str(program(tmp_path / "python", b"#!/bin/sh\nexit 3\n")))
    with pytest.raises(ServingError, match=r"pip download .* exit status 3; .*-py3-sdk image"):
        find_analyzer(environment(tmp_path))


def test_a_missing_library_names_the_package_that_brings_it(tmp_path: Path, wheel: Path) -> None:
    for path in (tmp_path / "libs").iterdir():
        path.unlink()
    with pytest.raises(ServingError, match=r"libb64.so.0d: got no libb64-\*.*committee\[serve\]"):
        find_analyzer(environment(tmp_path), fetch=lambda _: wheel)
