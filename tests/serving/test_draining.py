import http.server
import json
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ServingError
from orchestrator.serving.control import ModelEntry, RepositoryControl, drain, drain_waves


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


def test_a_wave_begins_only_when_the_one_before_is_gone(triton: FakeTriton) -> None:
    done = drain(control(triton), [["cascade"], ["large", "small"]], deadline_s=time.monotonic() + 10)
    assert done
    first = [triton.events.index(event) for event in ("unload cascade", "gone cascade", "unload large")]
    assert first == sorted(first)
    assert set(triton.unloading) == {"cascade", "small", "large"}


def test_draining_gives_up_at_the_deadline(triton: FakeTriton) -> None:
    triton.in_flight["cascade"] = 10**6
    began_s = time.monotonic()
    assert not drain(control(triton), [["cascade"], ["small"]], deadline_s=began_s + 0.3)
    assert time.monotonic() - began_s < 2
    assert triton.unloading == ["cascade"]


def test_a_refusal_is_an_error_and_no_endless_wait(triton: FakeTriton) -> None:
    with pytest.raises(ServingError, match=r"unload.*403 restricted"):
        drain(control(triton, key="wrong"), [["cascade"]], deadline_s=time.monotonic() + 10)
