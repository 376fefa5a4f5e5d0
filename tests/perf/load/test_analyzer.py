from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ServerFaultError
from perf.load.analyzer import STRETCH, TRIALS, AnalyzerLoad, command_from, run_analyzer
from perf.load.programs import AnalyzerBinary

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


def program(folder: Path, text: str) -> AnalyzerBinary:
    path = folder / "analyzer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return AnalyzerBinary(path=path, environment={"PATH": "/usr/bin:/bin"}, version="0")


def test_a_refusal_is_told_in_its_last_words_not_in_its_warnings(tmp_path: Path) -> None:
    warning = "WARNING: data type 'FP32' is not supported with JSON."
    text = f"echo 'Thread [1] had error: too large'; echo \"{warning}\"; exit 99"
    with pytest.raises(ServerFaultError, match=r"perf_analyzer on m: got Thread \[1\] had error: too large$"):
        run_analyzer(program(tmp_path, text), LOAD)


def test_an_end_without_a_word_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ServerFaultError, match="exit status 0"):
        run_analyzer(program(tmp_path, "exit 0"), LOAD)
