"""Members that change while the cascade is loaded: no answer from them, and answers again afterwards."""

import dataclasses
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bls import member_watch, metrics
from orchestrator.bls.model import CascadeModel
from orchestrator.bls.workers import Workers
from orchestrator.errors import SpecError
from orchestrator.spec import CascadeSpec, Fit, FusedPrefix
from orchestrator.spec.answer import DEGRADED
from orchestrator.spec.planned_models import PlannedModel
from tests.bls.fixtures import (
    EASY,
    HARD,
    ask_all,
    asking,
    eventually,
    large,
    loaded,
    small,
    two_stages,
    usual,
    wait_for,
)
from tests.fakes.triton import FakeTriton, InferenceResponse, TritonError

RIGHT, OTHER = b"the weights", b"others, alas"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_S": 0.01, "HOLD_S": 0.1, "PROBE_S": 0.05, "TURN_S": 0.01}.items():
        monkeypatch.setattr(member_watch, name, seconds)


def put(folder: Path, name: str, data: bytes = RIGHT, version: int = 1) -> Path:
    path = folder / "repository" / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def spec_with(*, on_failure: str = "error", **changes: object) -> CascadeSpec:
    """Two stages whose members have a hash, and what else is said."""
    base = two_stages()
    stages = tuple(
        dataclasses.replace(
            stage,
            members=tuple(dataclasses.replace(one, sha256=sha(RIGHT), **changes) for one in stage.members),
            on_failure=on_failure if index else "error",
        )
        for index, stage in enumerate(base.stages)
    )
    return dataclasses.replace(base, stages=stages)


@contextmanager
def running(
    folder: Path, server: FakeTriton, spec: CascadeSpec, config: dict | None = None
) -> Iterator[CascadeModel]:
    for one in spec.models:
        if not (folder / "repository" / one).exists():
            put(folder, one)
    with loaded(folder, server, spec, config) as model:
        yield model


def ask(model: CascadeModel, *rows: np.ndarray) -> InferenceResponse:
    return ask_all(model, [asking(*rows)])[0]


def text_of(answer: InferenceResponse) -> str:
    error = answer.error()
    assert error is not None
    assert error.code() == TritonError.UNAVAILABLE
    return error.message()


def until(model: CascadeModel, good: Callable[[InferenceResponse], bool]) -> InferenceResponse:
    deadline_s = time.monotonic() + 5
    while not good(answer := ask(model, EASY)):
        assert time.monotonic() < deadline_s, "it never came"
    return answer


def refused(answer: InferenceResponse) -> bool:
    return answer.has_error()


def answered(answer: InferenceResponse) -> bool:
    return not answer.has_error()


def test_every_member_is_asked_by_the_version_the_plan_names(tmp_path: Path) -> None:
    server = usual()
    server.versions = {"small": {1, 3}, "large": {2, 3}}
    spec = spec_with(version=3)
    for name in spec.models:
        put(tmp_path, name, version=3)
    with running(tmp_path, server, spec) as model:
        assert answered(ask(model, HARD))
    assert {version for _, version in server.asked_versions} == {3}


def test_a_plan_without_versions_and_hashes_leaves_the_choice_to_the_server(tmp_path: Path) -> None:
    server = usual()
    with running(tmp_path, server, two_stages()) as model:
        assert answered(ask(model, HARD))
    assert {version for _, version in server.asked_versions} == {-1}


def test_another_file_at_load_is_refused_and_verify_hashes_no_says_so(tmp_path: Path) -> None:
    put(tmp_path, "small", OTHER)
    with pytest.raises(SpecError, match=r"small.*not the file the thresholds were fitted on"):
        running(tmp_path, usual(), spec_with(version=1)).__enter__()
    server = usual()
    config = {"parameters": {"verify_hashes": {"string_value": "no"}}}
    with running(tmp_path, server, spec_with(version=1), config) as model:
        assert answered(ask(model, EASY))
    assert any("verify_hashes is no" in line for line in server.log)


def test_a_changed_file_stops_the_answers_and_the_planned_one_brings_them_back(tmp_path: Path) -> None:
    server = usual()
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        assert model.is_ready()
        path = put(tmp_path, "large", OTHER)
        message = text_of(until(model, refused))
        assert "member large is not as planned" in message
        assert "\n" not in message
        assert not model.is_ready()
        path.write_bytes(RIGHT)
        until(model, answered)
        assert model.is_ready()
    assert sum("answers no request" in line for line in server.log) == 1
    assert sum("answers again" in line for line in server.log) == 1


def test_readiness_is_looked_at_anew_before_the_first_request_and_watched_from_then_on(tmp_path: Path) -> None:
    with running(tmp_path, usual(), spec_with(version=1)) as model:
        assert model.is_ready()
        path = put(tmp_path, "small", OTHER)
        assert not model.is_ready()
        path.write_bytes(RIGHT)
        assert model.is_ready()
        assert answered(ask(model, EASY))
        path.write_bytes(OTHER)
        until(model, refused)


def test_a_cascade_whose_members_cannot_be_asked_about_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = usual()

    def starting(name: str, version: str = "") -> bool:
        raise RuntimeError("server not ready")

    with running(tmp_path, server, spec_with(version=1)) as model:
        monkeypatch.setattr(server, "is_model_ready", starting)
        assert not model.is_ready()


def test_a_touched_file_changes_nothing(tmp_path: Path) -> None:
    server = usual()
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        put(tmp_path, "small", RIGHT)
        for _ in range(20):
            assert answered(ask(model, EASY))
            time.sleep(0.005)
    assert not any("answers no request" in line for line in server.log)


def test_a_version_that_the_server_no_longer_has_ready_stops_the_answers(tmp_path: Path) -> None:
    server = usual()
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        server.versions["large"] = {2}
        assert "member large is not as planned: its version 1 is not ready" in text_of(until(model, refused))
        server.versions["large"] = {1, 2}
        until(model, answered)


def test_a_version_that_is_away_is_asked_at_every_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = usual()
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        server.versions["large"] = {2}
        until(model, refused)
        monkeypatch.setattr(member_watch, "PROBE_S", 60.0)
        time.sleep(0.2)  # long enough for a probe, after which the next one would come in a minute
        server.versions["large"] = {1, 2}
        until(model, answered)


def test_a_server_that_still_answers_from_the_other_file_is_not_believed(tmp_path: Path) -> None:
    loaded_weights = {"sign": 1.0}
    server = usual(small=lambda rows: small(rows) * np.float32(loaded_weights["sign"]))
    with running(tmp_path, server, spec_with(version=1)) as model:
        good = ask(model, EASY).column("probabilities").copy()
        path = put(tmp_path, "small", OTHER)
        until(model, refused)
        loaded_weights["sign"] = -1.0  # the server loads what lies there
        path.write_bytes(RIGHT)
        message = until(model, lambda one: "answers from another" in text_of(one))
        assert "member small" in text_of(message)
        for _ in range(20):
            assert refused(ask(model, EASY))
            time.sleep(0.005)
        loaded_weights["sign"] = 1.0  # and now the planned one
        assert np.array_equal(until(model, answered).column("probabilities"), good)


def test_a_file_that_was_another_between_two_looks_is_found_out_by_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_watch, "LOOK_S", 0.3)
    loaded_weights = {"sign": 1.0}
    server = usual(small=lambda rows: small(rows) * np.float32(loaded_weights["sign"]))
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        put(tmp_path, "small", OTHER)
        loaded_weights["sign"] = -1.0
        put(tmp_path, "small", RIGHT)
        assert "answers from another" in text_of(until(model, refused))
        loaded_weights["sign"] = 1.0
        until(model, answered)


def test_a_member_that_answers_otherwise_is_noticed_though_no_file_has_changed(tmp_path: Path) -> None:
    loaded_weights = {"sign": 1.0}
    server = usual(large=lambda rows: large(rows) * np.float32(loaded_weights["sign"]))
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        loaded_weights["sign"] = -1.0  # by another config.pbtxt, or a load that ends late
        assert "member large is not as planned: the server answers from another" in text_of(until(model, refused))
        loaded_weights["sign"] = 1.0
        until(model, answered)


def test_a_member_that_hangs_holds_up_neither_easy_rows_nor_the_look_at_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_watch, "FIRST_TURN_S", 0.1)
    gate = threading.Event()

    def hanging(rows: np.ndarray) -> np.ndarray:
        gate.wait(10)
        return large(rows)

    with running(tmp_path, usual(large=hanging), spec_with(version=1)) as model:
        try:
            assert answered(ask(model, EASY))
            put(tmp_path, "small", OTHER)
            assert "member small is not as planned" in text_of(until(model, refused))
        finally:
            gate.set()


def test_a_call_that_never_comes_back_does_not_keep_a_member_from_being_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"FIRST_TURN_S": 0.1, "OWED_S": 0.05}.items():
        monkeypatch.setattr(member_watch, name, seconds)
    gate, loaded_weights = threading.Event(), {"sign": 1.0}

    def lost_once(rows: np.ndarray) -> np.ndarray:
        if not gate.is_set():
            gate.set()
            time.sleep(6)  # longer than anybody waits here
        return large(rows) * np.float32(loaded_weights["sign"])

    with running(tmp_path, usual(large=lost_once), spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        until_said = time.monotonic() + 5
        while "large" not in model._watch._probes.first:
            assert time.monotonic() < until_said, "it was never asked again"
            time.sleep(0.01)
        loaded_weights["sign"] = -1.0
        assert "member large is not as planned" in text_of(until(model, refused))


def test_a_member_that_refuses_the_row_is_asked_a_few_times_and_no_more(tmp_path: Path) -> None:
    def picky(rows: np.ndarray) -> np.ndarray:
        raise ValueError("not this one")

    server = usual(large=picky)
    with running(tmp_path, server, spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        eventually(lambda: any("large refuses the first request's row" in line for line in server.log))
        time.sleep(0.2)
        assert [name for name, _ in server.asked].count("large") == member_watch.MOST_REFUSALS
        assert answered(ask(model, EASY))


@contextmanager
def changed_while_deferred(
    folder: Path,
) -> Iterator[tuple[CascadeModel, Callable[[], InferenceResponse], threading.Event]]:
    """A hard row waits for the last member, which an event lets answer, while the first member is replaced.

    Yields the model, a function that waits for the request's answer, and the event.
    """
    gate, asked = threading.Event(), threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        if (rows == HARD).all(axis=1).any():
            asked.set()
            gate.wait(10)
        return large(rows)

    with running(folder, usual(large=slow), spec_with(version=1)) as model:
        request = asking(HARD)
        listed = (model.execute([request]) or [None])[0]
        assert asked.wait(5)
        put(folder, "small", OTHER)
        try:
            yield model, lambda: wait_for(request, listed, timeout_s=5), gate
        finally:
            gate.set()


def test_rows_that_are_deferred_are_refused_when_a_member_changes(tmp_path: Path) -> None:
    with changed_while_deferred(tmp_path) as (_, answer, _):
        # While its member is still being asked.
        assert "member small is not as planned" in text_of(answer())


def test_an_answer_that_is_ready_too_late_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the request had come between the notice and its answer.
    monkeypatch.setattr(Workers, "refuse_all", lambda *_: None)
    with changed_while_deferred(tmp_path) as (model, answer, gate):
        until(model, refused)
        gate.set()
        assert "member small is not as planned" in text_of(answer())


def test_what_a_member_says_while_it_is_found_out_is_not_handed_on(tmp_path: Path) -> None:
    holder: list[CascadeModel] = []

    def found_out(rows: np.ndarray) -> np.ndarray:
        if holder:
            put(tmp_path, "small", OTHER)
            eventually(lambda: not holder[0].is_ready())
        return small(rows)

    with running(tmp_path, usual(small=found_out), spec_with(version=1)) as model:
        assert answered(ask(model, EASY))
        holder.append(model)
        answer = ask(model, EASY)
        holder.clear()
        assert "member small is not as planned" in text_of(answer)


def test_a_stage_that_answers_without_a_lost_member_goes_on_but_never_with_another(tmp_path: Path) -> None:
    server = usual()
    with running(tmp_path, server, spec_with(on_failure="answer", version=1)) as model:
        assert answered(ask(model, HARD))
        server.versions["large"] = set()
        eventually(lambda: not model.is_ready())
        assert int(ask(model, HARD).column("status")[0, 0]) & DEGRADED
        put(tmp_path, "large", OTHER)
        until(model, refused)


def test_a_fused_prefix_that_is_another_is_stepped_over(tmp_path: Path) -> None:
    def prefix(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"small": small(rows), "large": large(rows)}

    server = usual(prefix=prefix)
    plan = dataclasses.replace(
        spec_with(version=1), fused_prefix=FusedPrefix(name="prefix", stages=2, sha256=sha(RIGHT), version=1)
    )
    with running(tmp_path, server, plan) as model:
        assert answered(ask(model, HARD))
        assert ("prefix", 1) in server.asked_versions
        put(tmp_path, "prefix", OTHER)
        eventually(lambda: any("its members are asked" in line for line in server.log))
        assert answered(ask(model, HARD, HARD))
        assert ("prefix", 2) not in server.asked, "only the watch asks about it, a row at a time"
        put(tmp_path, "prefix", RIGHT)
        eventually(lambda: any("is as planned again" in line for line in server.log))
        assert answered(ask(model, HARD))


def test_members_that_cannot_be_seen_are_named_at_start(tmp_path: Path) -> None:
    server = usual()
    spec = spec_with(version=1)
    with loaded(tmp_path, server, spec) as model:
        assert answered(ask(model, EASY))
    assert any("small, large" in line and "their answers only" in line for line in server.log)


@pytest.mark.parametrize(("flags", "warns"), [({"avx2"}, True), ({"avx2", "avx_vnni"}, False)])
def test_a_processor_that_answers_a_member_otherwise_than_recorded_is_said_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str], warns: bool
) -> None:
    monkeypatch.setattr(member_watch, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    recorded = {"onnxruntime": "1.31.1", "processor_flags": {"small": ["avx512_vnni", "avx_vnni"]}}
    fit = Fit(
        data_sha256="",
        rows=1,
        split="",
        target="",
        accuracy=None,
        accuracy_ci95=None,
        exit_share=(0.5, 0.5),
        mean_cost=1.0,
        extra={"recorded_with": recorded},
    )
    server = usual()
    with running(tmp_path, server, dataclasses.replace(spec_with(), fit=fit)):
        said = [line for line in server.log if "so on it small answers otherwise than recorded" in line]
    assert bool(said) is warns


def test_a_watch_that_could_not_begin_is_begun_by_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = member_watch.MemberProbes.begin, itertools.count()

    def failing_once(self: member_watch.MemberProbes, models: Iterator[PlannedModel]) -> None:
        if not next(calls):
            raise RuntimeError("can't start new thread")
        begin(self, models)

    monkeypatch.setattr(member_watch.MemberProbes, "begin", failing_once)
    with loaded(tmp_path, fake := usual()) as model:
        (refused,), (answered,) = ask_all(model, [asking(EASY)]), ask_all(model, [asking(EASY)])
        assert refused.error().code() == TritonError.UNAVAILABLE
        assert not answered.has_error()
    assert [line for line in fake.log if line.endswith("committee: members: RuntimeError: can't start new thread")]


@pytest.mark.parametrize(
    ("kind", "part"),
    [(member_watch.MemberProbes, "_ask_those_due"), (metrics.MetricsFlusher, "flush")],
)
def test_threads_outlive_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, part: str) -> None:
    monkeypatch.setattr(metrics, "FLUSH_INTERVAL_S", 0.05)
    with loaded(tmp_path, fake := usual()) as model:
        ask_all(model, [asking(EASY)])
        does, seen = getattr(kind, part), list[float]()

        def failing_once(self: object, *arguments: float) -> None:
            seen.append(0.0)
            if len(seen) == 1:
                raise MemoryError("no memory")
            does(self, *arguments)

        monkeypatch.setattr(kind, part, failing_once)
        eventually(lambda: len(seen) > 1)
    assert [line for line in fake.log if line.endswith("MemoryError: no memory")]
