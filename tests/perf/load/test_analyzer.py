import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError, ServerFaultError
from perf.load.analyzer import (
    RAMP_SHARE,
    STRETCH,
    TRIALS,
    AnalyzerBinary,
    AnalyzerLoad,
    command_from,
    run_analyzer,
    window_from_export,
)

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
    "text", ["", "{", '{"experiments": []}', '{"experiments": [{"window_boundaries": [], "requests": []}]}']
)
def test_a_file_that_is_no_export_gives_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"export\.json"):
        window_from_export(path, batch=1)


def test_a_missing_file_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FileNotFoundError"):
        window_from_export(tmp_path / "none.json", batch=1)


def test_an_export_without_answers_asks_for_a_longer_window(tmp_path: Path) -> None:
    document = document_of("member.json")
    for request in document["experiments"][0]["requests"]:
        request["response_timestamps"] = []
    path = tmp_path / "export.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="longer window"):
        window_from_export(path, batch=1)
