from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from pathlib import Path

import pytest

from orchestrator.errors import ServingError
from perf.load import programs
from perf.load.programs import IN_WHEEL, LIBRARIES, cache_folder, find_analyzer

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
    monkeypatch.setattr(programs, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(programs, "BINARY_SHA256", hashlib.sha256(SCRIPT).hexdigest())
    libraries = tmp_path / "libs"
    libraries.mkdir()
    for prefix in LIBRARIES.values():
        (libraries / f"{prefix}0a1b.so").touch()
    monkeypatch.setattr(programs, "_wheel_libraries", lambda: libraries)
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
    monkeypatch.setattr(programs.sys, "executable", str(program(tmp_path / "python", b"#!/bin/sh\nexit 3\n")))
    with pytest.raises(ServingError, match=r"pip download .* exit status 3; .*-py3-sdk image"):
        find_analyzer(environment(tmp_path))


def test_a_missing_library_names_the_package_that_brings_it(tmp_path: Path, wheel: Path) -> None:
    for path in (tmp_path / "libs").iterdir():
        path.unlink()
    with pytest.raises(ServingError, match=r"libb64.so.0d: got no libb64-\*.*committee\[serve\]"):
        find_analyzer(environment(tmp_path), fetch=lambda _: wheel)
