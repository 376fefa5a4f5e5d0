import hashlib
import json
import os
import shlex
import stat
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError, ServerFaultError, ServingError
from orchestrator.serving.machine import machine_here
from perf.load import analyzer
from perf.load.analyzer import (
    IN_WHEEL,
    LIBRARIES,
    RAMP_SHARE,
    STRETCH,
    TRIALS,
    AnalyzerBinary,
    AnalyzerLoad,
    analyzer_program,
    cache_folder,
    command_from,
    find_analyzer,
    run_analyzer,
    server_program,
    window_from_export,
)
from tests.test_load_testing_docs import find_port


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


def test_the_users_own_program_is_taken_and_run_as_it_is(tmp_path: Path) -> None:
    own = program(tmp_path / "own")
    # Nothing is fetched.
    found = find_analyzer(environment(tmp_path, PERF_ANALYZER=str(own)), fetch=pytest.fail)
    assert (found.path, found.version) == (own, "9.8.7")
    assert analyzer_program(found) == own


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


LOAD = AnalyzerLoad(model="m", address="h:1", input_data=Path("in.json"), concurrency=16, batch=8, seconds=9.0)


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_three_stretched_measurements_make_one_window_of_the_length_asked_for() -> None:
    words = command_from(LOAD, Path("pa"), export=Path("e.json"))
    assert (after(words, "-s"), after(words, "-r")) == ("99999", "3")
    assert int(after(words, "-p")) * TRIALS * STRETCH == pytest.approx(9000, rel=0.001)
    assert (after(words, "-i"), after(words, "-b"), after(words, "--concurrency-range")) == ("grpc", "8", "16")


@pytest.mark.parametrize("concurrency", [1, 4, 64])
def test_one_thread_sends_so_that_no_two_requests_in_flight_ask_for_the_same_row(concurrency: int) -> None:
    words = command_from(replace(LOAD, concurrency=concurrency), Path("pa"), export=Path("e.json"))
    assert after(words, "--max-threads") == "1"
    assert ("--async" in words) == (concurrency > 1)


def test_a_rate_is_sent_asynchronously_with_poisson_arrivals() -> None:
    load = AnalyzerLoad(model="m", address="h:1", input_data=Path("in.json"), rate=211.5, composing=("a", "b"))
    words = command_from(load, Path("pa"), export=Path("e.json"))
    assert "--async" in words
    assert after(words, "--request-rate-range") == "211.500"
    assert after(words, "--request-distribution") == "poisson"
    assert after(words, "--bls-composing-models") == "a,b"
    assert "--concurrency-range" not in words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "echo 'Thread [1] had error: too large'; "
            "echo \"WARNING: data type 'FP32' is not supported with JSON.\"; exit 99",
            r"got Thread \[1\] had error: too large$",
        ),
        ("exit 0", "exit status 0"),
    ],
)
def test_an_end_without_an_export_is_told_in_the_last_words_that_are_no_warning(
    tmp_path: Path, text: str, says: str
) -> None:
    path = program(tmp_path / "analyzer", f"#!/bin/sh\n{text}\n".encode())
    binary = AnalyzerBinary(path=path, environment={"PATH": "/usr/bin:/bin"}, version="0")
    with pytest.raises(ServerFaultError, match=f"perf_analyzer on m: .*{says}"):
        run_analyzer(binary, LOAD)


# What perf_analyzer 2.45.0 wrote for the digits: a cascade, the same with three rows a request, and a member.
CAPTURED = Path(__file__).parent / "captured"


def document_of(name: str) -> dict:
    return json.loads((CAPTURED / name).read_bytes().decode("latin-1"))


def test_easy_and_hard_requests_are_told_apart_by_the_answers_themselves() -> None:
    window = window_from_export(CAPTURED / "cascade.json", batch=1)
    assert window.exits is not None
    assert window.deferred is not None
    assert window.exits.sum() == window.requests == len(window.latency_ms)
    assert window.exits[1:].sum() == window.deferred.sum() > 0
    found = window.percentiles_ms()
    assert found["easy_p50_ms"] < found["p50_ms"] < found["hard_p50_ms"]


def test_a_request_of_three_rows_is_hard_when_one_of_them_is() -> None:
    window = window_from_export(CAPTURED / "cascade_batch3.json", batch=3)
    assert window.exits is not None
    assert window.deferred is not None
    assert window.exits.sum() == 3 * window.requests
    assert window.exits[1] / 3 <= window.deferred.sum() <= window.exits[1]


def test_a_member_says_nothing_of_stages() -> None:
    window = window_from_export(CAPTURED / "member.json", batch=1)
    assert (window.exits, window.deferred, window.reach(2)) == (None, None, None)
    assert window.requests > 10


def test_what_is_answered_within_the_ramp_does_not_count() -> None:
    experiment = document_of("member.json")["experiments"][0]
    first, last = experiment["window_boundaries"][0], experiment["window_boundaries"][-1]
    start = first + RAMP_SHARE * (last - first)
    answered = np.array([one["response_timestamps"][0] for one in experiment["requests"]])
    window = window_from_export(CAPTURED / "member.json", batch=1)
    assert window.requests == ((answered >= start) & (answered <= last)).sum() < len(answered)
    assert window.seconds == pytest.approx((last - start) / 1e9)
    assert window.requests_per_s == pytest.approx(window.requests / window.seconds)


def test_another_batch_than_was_sent_is_noticed() -> None:
    with pytest.raises(DataError, match="bytes of exit_stage"):
        window_from_export(CAPTURED / "cascade_batch3.json", batch=1)


@pytest.mark.parametrize(
    "text", [None, "", "{", '{"experiments": []}', '{"experiments": [{"window_boundaries": [], "requests": []}]}']
)
def test_a_file_that_is_missing_or_no_export_gives_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "export.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"export\.json" if text is not None else "FileNotFoundError"):
        window_from_export(path, batch=1)


def test_an_export_without_answers_asks_for_a_longer_window(tmp_path: Path) -> None:
    document = document_of("member.json")
    for request in document["experiments"][0]["requests"]:
        request["response_timestamps"] = []
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="longer window"):
        window_from_export(path, batch=1)
