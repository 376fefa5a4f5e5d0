"""The models of a repository, and a server that lets them go without losing a request."""

import dataclasses
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RepositoryError, ServingError
from orchestrator.serving import control as control_module
from orchestrator.serving.control import (
    ModelEntry,
    RepositoryControl,
    check_models,
    drain,
    drain_waves,
    scan_repository,
)
from tests.serving.models import add_python


def add(repository: Path, name: str, config: str | None, *files: str) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    ("config", "files", "backend"),
    [
        ('backend: "onnxruntime"', [], "onnxruntime"),
        ('platform: "onnxruntime_onnx"', [], "onnxruntime"),
        ('platform: "tensorrt_plan"', [], "tensorrt"),
        ('platform: "ensemble"', [], "ensemble"),
        (None, ["1/model.onnx"], "onnxruntime"),
        ("max_batch_size: 4", ["1/model.plan"], "tensorrt"),
        (None, ["1/model.py"], "python"),
        (None, ["2/model.pt"], "pytorch"),
        (None, ["1/something.else"], None),
        ('backend: "of_the_future" future_field: 7', [], "of_the_future"),
    ],
)
def test_the_backend_is_what_triton_will_take_it_for(
    tmp_path: Path, config: str | None, files: list[str], backend: str | None
) -> None:
    add(tmp_path, "model", config, *files)
    assert scan_repository(tmp_path) == (ModelEntry(name="model", backend=backend),)


def test_a_python_model_may_call_whom_its_files_name(tmp_path: Path) -> None:
    add(tmp_path, "small", None, "1/model.onnx")
    add(tmp_path, "smaller", None, "1/model.onnx")
    add(tmp_path, "large", None, "1/model.onnx")
    add(tmp_path, "teacher", None, "1/model.onnx")
    caller = add_python(tmp_path, "cascade", 'MODEL = "large"', config='parameters { key: "t" }')
    (caller / "1" / "cascade.json").write_text('{"members": [{"name": "small"}]}')
    assert {model.name: model.calls for model in scan_repository(tmp_path)} == {
        "small": (),
        "smaller": (),
        "large": (),
        "teacher": (),
        "cascade": ("large", "small"),
    }


def test_an_ensemble_calls_its_steps(tmp_path: Path) -> None:
    add(tmp_path, "first", None, "1/model.onnx")
    add(tmp_path, "both", 'platform: "ensemble" ensemble_scheduling { step [{ model_name: "first" }] }')
    assert scan_repository(tmp_path)[0].calls == ("first",)


def test_files_and_hidden_folders_are_no_models(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "python"')
    add(tmp_path, ".git", None)
    (tmp_path / "README.md").touch()
    assert [model.name for model in scan_repository(tmp_path)] == ["model"]


def test_a_repository_that_is_missing_a_file_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere does not exist.*`repository`"):
        scan_repository(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file: got a file.*`repository`"):
        scan_repository(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"empty: got no model in it.*`repository`"):
        scan_repository(tmp_path / "empty")


def test_a_repository_or_model_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    model = add(tmp_path, "model", 'backend: "python"')
    for folder in (tmp_path, model):
        folder.chmod(0)
        try:
            if os.access(folder, os.R_OK):
                pytest.skip("this user may read everything")
            with pytest.raises(RepositoryError, match=r"Permission denied.*read access"):
                scan_repository(tmp_path)
        finally:
            folder.chmod(0o755)


def test_a_malformed_configuration_is_named_with_its_line(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "python"\nmax_batch_size: "many"\n')
    with pytest.raises(RepositoryError, match=r"model/config\.pbtxt at line 2 is no model configuration.*many"):
        scan_repository(tmp_path)
    (tmp_path / "model" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"model/config\.pbtxt is not UTF-8 text"):
        scan_repository(tmp_path)


def test_every_model_the_server_cannot_run_is_named(tmp_path: Path) -> None:
    add(tmp_path, "engine", 'backend: "tensorrt"')
    add(tmp_path, "script", None, "1/model.pt")
    add(tmp_path, "fine", 'backend: "onnxruntime"')
    add(tmp_path, "pipeline", 'platform: "ensemble"')
    expected = (
        "got model engine with backend tensorrt, model script with backend pytorch, "
        r".*nvcr\.io/nvidia/tritonserver:.*docker compose up -d triton$"
    )
    with pytest.raises(RepositoryError, match=expected) as caught:
        check_models(scan_repository(tmp_path), tmp_path)
    assert "fine" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_brings_its_backend_along_is_left_to_triton(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "own"', "1/libtriton_own.so")
    check_models(scan_repository(tmp_path), tmp_path)


def test_a_model_folder_whose_name_a_shell_would_split_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "my model", 'backend: "python"')
    with pytest.raises(RepositoryError, match=r"'my model'.*rename"):
        check_models(scan_repository(tmp_path), tmp_path)


@st.composite
def repositories(draw: st.DrawFn) -> tuple[ModelEntry, ...]:
    """Models in an order in which each calls later ones only, so without a cycle, then shuffled."""
    count = draw(st.integers(1, 8))
    models = []
    for i in range(count):
        backend = draw(st.sampled_from(["python", "ensemble", "onnxruntime"]))
        later = [f"m{j}" for j in range(i + 1, count)]
        calls = draw(st.lists(st.sampled_from(later), unique=True)) if later and backend != "onnxruntime" else []
        models.append(ModelEntry(name=f"m{i}", backend=backend, calls=tuple(calls)))
    return tuple(draw(st.permutations(models)))


@given(repositories())
def test_every_model_goes_once_and_after_everyone_who_calls_it(models: tuple[ModelEntry, ...]) -> None:
    waves = drain_waves(models)
    wave_of = {name: number for number, wave in enumerate(waves) for name in wave}
    assert sorted(name for wave in waves for name in wave) == sorted(model.name for model in models)
    for model in models:
        for called in model.calls:
            assert wave_of[model.name] < wave_of[called]


def test_models_that_call_each_other_go_together_rather_than_never() -> None:
    models = [
        ModelEntry(name="a", backend="python", calls=("b",)),
        ModelEntry(name="b", backend="python", calls=("a", "c")),
        ModelEntry(name="c", backend="onnxruntime"),
    ]
    assert drain_waves(models) == [["a", "b"], ["c"]]


class FakeTriton(http.server.ThreadingHTTPServer):
    """Its repository API: an unloaded model stays UNLOADING for as many looks as it has requests in flight."""

    def __init__(self, in_flight: dict[str, int], key: str) -> None:
        self.in_flight = in_flight
        self.key = key
        self.unloading: list[str] = []
        self.events: list[str] = []
        super().__init__(("127.0.0.1", 0), FakeApi)


class FakeApi(http.server.BaseHTTPRequestHandler):
    server: FakeTriton

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("committee-control") != self.server.key:
            self._send(403, b"restricted")
        elif self.path == "/v2/repository/index":
            self._send(200, json.dumps(self._index()).encode())
        else:
            name = self.path.split("/")[4]
            self.server.events.append(f"unload {name}")
            self.server.unloading.append(name)
            self._send(200, b"")

    def _index(self) -> list[dict[str, str]]:
        models = []
        for name, left in self.server.in_flight.items():
            state = "READY"
            if name in self.server.unloading:
                state = "UNLOADING" if left else "UNAVAILABLE"
                self.server.in_flight[name] = max(left - 1, 0)
                if not left:
                    self.server.events.append(f"gone {name}")
            models.append({"name": name, "version": "1", "state": state})
        return models

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton({"cascade": 3, "small": 0, "large": 2}, "secret") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def control(triton: FakeTriton, key: str = "secret") -> RepositoryControl:
    return RepositoryControl(host="127.0.0.1", port=triton.server_address[1], key=key)


MODELS = (
    ModelEntry(name="cascade", backend="python", calls=("small", "large")),
    ModelEntry(name="large", backend="onnxruntime"),
    ModelEntry(name="small", backend="onnxruntime"),
)


def drained(
    triton: FakeTriton,
    deadline_s: float,
    *,
    key: str = "secret",
    cascades: bool = False,
    reloaded: Sequence[str] = (),
    busy: Sequence[bool] = (),
) -> bool:
    def drain_cascades(names: list[str]) -> list[str]:
        triton.events += [f"drain {name}" for name in names]
        return []

    left = list(busy)

    def is_busy(names: list[str]) -> bool:
        found = "cascade" in names and bool(left) and left.pop(0)
        triton.events += ["busy"] if found else []
        return found

    models = [dataclasses.replace(model, is_cascade=cascades and bool(model.calls)) for model in MODELS]
    return drain(
        control(triton, key),
        models,
        drain_cascades=drain_cascades,
        deadline_s=deadline_s,
        reloaded=reloaded,
        is_busy=is_busy,
    )


def test_a_cascade_drains_first_and_is_not_unloaded(triton: FakeTriton) -> None:
    assert drained(triton, time.monotonic() + 10, cascades=True)
    assert triton.events[0] == "drain cascade"
    assert set(triton.unloading) == {"small", "large"}


def test_models_that_call_no_others_are_not_waited_for_long(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_HELD_S", 0.2)
    triton.in_flight["large"] = 10**6
    began_s = time.monotonic()
    assert not drained(triton, began_s + 60, cascades=True)
    assert time.monotonic() - began_s < 10


def test_a_model_whose_process_died_with_requests_is_not_waited_for_long_and_the_others_follow(
    triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_HELD_S", 0.2)
    triton.in_flight["cascade"] = 10**6
    began_s = time.monotonic()
    assert drained(triton, began_s + 60, reloaded=["cascade"])
    assert time.monotonic() - began_s < 10
    assert "unload large" in triton.events


def test_what_a_model_has_accepted_since_it_was_loaded_again_is_waited_for(triton: FakeTriton) -> None:
    triton.in_flight["cascade"] = 10**6
    assert drained(triton, time.monotonic() + 60, reloaded=["cascade"], busy=[True] * 3)
    events = [event for event in triton.events if event in ("busy", "unload large")]
    assert events == ["busy"] * 3 + ["unload large"]
    assert not drained(triton, time.monotonic() + 0.2, reloaded=["cascade"], busy=[True] * 1000)


def test_a_wave_begins_only_when_the_one_before_is_gone(triton: FakeTriton) -> None:
    assert drained(triton, time.monotonic() + 10)
    first = [triton.events.index(event) for event in ("unload cascade", "gone cascade", "unload large")]
    assert first == sorted(first)
    assert set(triton.unloading) == {"cascade", "small", "large"}


def test_draining_gives_up_at_the_deadline(triton: FakeTriton) -> None:
    triton.in_flight["cascade"] = 10**6
    began_s = time.monotonic()
    assert not drained(triton, began_s + 0.3)
    assert time.monotonic() - began_s < 2
    assert triton.unloading == ["cascade"]


def test_a_refusal_is_an_error_and_no_endless_wait(triton: FakeTriton) -> None:
    with pytest.raises(ServingError, match=r"unload.*403 restricted"):
        drained(triton, time.monotonic() + 10, key="wrong")
