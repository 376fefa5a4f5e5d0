"""A server that is asked whether it answers, and that stops: streams, deferred rows, the preStop recipe."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from orchestrator.probe import ANSWERED, BUSY, DRAINING, FAILED, SCRIPT, mark_of, probe
from orchestrator.serving.machine import machine_here
from orchestrator.serving.options import ServeOptions, choose_ports
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage
from perf.load.analyzer import server_program
from tests.repository.builders import render_output
from tests.served.test_standalone import stubs_below
from tests.servers import running_server
from tests.serving.models import OF_TWO_NUMBERS, add_python

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
# The first is never sure; the second takes its time over rows that say how long.
MEMBER = """
    import pathlib
    import time
    import numpy as np
    import triton_python_backend_utils as pb

    class TritonPythonModel:
        def initialize(self, args):
            self.arrived = pathlib.Path(args["model_repository"], "arrived")

        def execute(self, requests):
            responses = []
            for request in requests:
                rows = pb.get_input_tensor_by_name(request, "x").as_numpy()
                if LAST and rows.max() > 0:
                    self.arrived.touch()
                    time.sleep(float(rows.max()))
                scores = np.tile(np.float32([9, 0] if LAST else [0, 0]), (len(rows), 1))
                responses.append(pb.InferenceResponse([pb.Tensor("logits", scores)]))
            return responses
"""
SPEC = CascadeSpec(
    name="cascade",
    inputs=(InputSpec(name="x", dtype="FP32", dims=(2,)),),
    classes=2,
    stages=(
        Stage(members=(Member(name="first", output="logits"),), threshold=0.9),
        Stage(members=(Member(name="last", output="logits"),)),
    ),
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("first", "last"):
        code = MEMBER.replace("LAST", str(name == "last"))
        add_python(tmp_path / "members", name, code, config=OF_TWO_NUMBERS)
    render_output(tmp_path / "members", tmp_path / "models", cascades=[SPEC], standalone=True)
    return tmp_path / "models"


@pytest.fixture
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with running_server(repository) as running:
        yield running


def url_of(server: EmbeddedServer) -> str:
    return f"http://{server.http_address}"


def ask(server: EmbeddedServer | str, wait_s: float, model: str = "cascade") -> Any:
    """The label of one row, whose last member takes so long, or a member's top score."""
    address = server if isinstance(server, str) else server.grpc_address
    with grpcclient.InferenceServerClient(address) as client:
        answer = client.infer(model, [tensor(wait_s)], client_timeout=30)
    return answer.as_numpy("label").item() if model == "cascade" else answer.as_numpy("logits").max()


def tensor(wait_s: float) -> Any:
    made = grpcclient.InferInput("x", [1, 2], "FP32")
    made.set_data_from_numpy(np.full((1, 2), wait_s, np.float32))
    return made


def wait_for(path: Path) -> None:
    until_s = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until_s, f"{path} did not appear"
        time.sleep(0.01)


def script(repository: Path, server: EmbeddedServer | str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the rendered file as a container does, with nothing but the standard library."""
    url = server if isinstance(server, str) else url_of(server)
    command = [sys.executable, "-I", "-S", str(repository / SCRIPT), f"--url={url}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("model", ["cascade", "last"])
def test_an_idle_stream_does_not_hold_up_stopping(server: EmbeddedServer, model: str) -> None:
    answered = threading.Event()
    client = grpcclient.InferenceServerClient(server.grpc_address)
    client.start_stream(lambda result, error: answered.set())
    client.async_stream_infer(model, [tensor(0)])
    assert answered.wait(20)
    began_s = time.monotonic()
    server.stop()
    assert time.monotonic() - began_s < 10, "the stop timeout is 15 s"
    client.stop_stream(cancel_requests=True)
    client.close()


def test_while_it_stops_deferred_rows_are_answered_and_new_requests_are_told_to_come_again(
    server: EmbeddedServer, repository: Path
) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(ask, server, 3.0)
        wait_for(repository / "last" / "arrived")
        stopping = pool.submit(server.stop)
        # A request that came before the cascade looked would wait behind the late one.
        while DRAINING not in probe(url_of(server), "cascade", timeout_s=0.3)[1]:
            assert not late.done()
        while not stopping.done():
            try:
                ask(server, 0)
            except InferenceServerException as error:
                said.append(f"{error.status()} {error.message()}")
            time.sleep(0.02)
        assert late.result(timeout=10) == 0
        stopping.result(timeout=20)
    assert any(DRAINING in text for text in said)
    assert {text.split()[0] for text in said} == {"StatusCode.UNAVAILABLE"}
    assert not mark_of(server.pid).exists()


def test_after_a_repair_what_a_model_has_accepted_is_answered_and_nobody_sees_that_models_go(
    server: EmbeddedServer, repository: Path
) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        arrived = repository / "last" / "arrived"
        lost = pool.submit(ask, server, 20.0, "last")
        wait_for(arrived)
        os.kill(stubs_below(server.pid)["last"], signal.SIGKILL)
        server.reload("last")
        arrived.unlink()
        late = pool.submit(ask, server, 6.0, "last")
        wait_for(arrived)
        stopping = pool.submit(server.stop)
        while not stopping.done():
            try:
                ask(server, 0)
            except InferenceServerException as error:
                said.append(str(error.status()))
            time.sleep(0.02)
        assert late.result(timeout=1) == 9
        with pytest.raises(InferenceServerException):
            lost.result(timeout=1)
    assert set(said) == {"StatusCode.UNAVAILABLE"}


def test_the_recipe_of_the_image_drains_and_the_probe_tells_it_from_a_fault(
    server: EmbeddedServer, repository: Path
) -> None:
    assert script(repository, server).returncode == ANSWERED
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, server, 2.0)
        wait_for(repository / "last" / "arrived")
        drained = script(repository, server, "--drain")
        assert (drained.returncode, drained.stdout) == (0, "drained\n")
        # It came back when the row between the stages was answered, and not before.
        assert late.result(timeout=2) == 0
    done = script(repository, server)
    assert (done.returncode, done.stdout.count("\n")) == (BUSY, 1)
    assert DRAINING in done.stdout
    assert script(repository, server, "--alive").returncode == ANSWERED
    # Another server is not drained by a mark that this one left behind.
    mark_of(server.pid).write_text("1 cascade")
    until_s = time.monotonic() + 10
    while script(repository, server).returncode != ANSWERED:
        assert time.monotonic() < until_s


def test_the_probe_sees_a_dead_member_behind_the_first_stage_and_a_dead_cascade(server: EmbeddedServer) -> None:
    url = url_of(server)
    assert probe(url, "cascade")[0] == ANSWERED
    for name in ("last", "cascade"):
        os.kill(stubs_below(server.pid)[name], signal.SIGKILL)
        code, text = probe(url, "cascade")
        assert code == FAILED, text
        assert "\n" not in text


@contextmanager
def image_like(repository: Path, log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Triton alone, as NVIDIA's image starts it; gives the process and its addresses for HTTP and gRPC."""
    ports = choose_ports(ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0))
    words = [str(server_program(machine_here())), f"--model-repository={repository}", *options]
    words += [f"--{name}-port={getattr(ports, name)}" for name in ("http", "grpc", "metrics")]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
    http, grpc = f"127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}"
    try:
        until_s = time.monotonic() + 60
        while probe(f"http://{http}", "cascade", timeout_s=1)[0] != ANSWERED:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until_s, log.read_text()[-2000:]
            time.sleep(0.05)
        yield process, http, grpc
    finally:
        process.kill()
        process.wait()
        mark_of(process.pid).unlink(missing_ok=True)


@pytest.mark.parametrize("kept", ["nothing", "a connection"])
def test_after_the_recipe_a_server_of_the_image_loses_no_row_and_ends_at_its_exit_timeout_at_the_latest(
    repository: Path, tmp_path: Path, kept: str
) -> None:
    started = image_like(repository, tmp_path / "log", "--exit-timeout-secs=5")
    with started as (process, http, grpc), ThreadPoolExecutor(1) as pool:
        idle = HTTPConnection(http)
        if kept == "a connection":
            idle.request("GET", "/v2/health/live")
            assert idle.getresponse().read() == b""
        late = pool.submit(ask, grpc, 2.0)
        wait_for(repository / "last" / "arrived")
        drained = script(repository, f"http://{http}", "--drain")
        assert (drained.returncode, drained.stdout) == (0, "drained\n")
        assert late.result(timeout=2) == 0
        with pytest.raises(InferenceServerException, match=DRAINING):
            ask(grpc, 0)
        process.send_signal(signal.SIGTERM)
        # With 1 where Triton has waited for its whole timeout.
        assert process.wait(timeout=20) in (0, 1)
        idle.close()


def test_a_probe_that_finds_no_time_while_others_are_answered_says_busy(server: EmbeddedServer) -> None:
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            ask(server, 0.2)

    with ThreadPoolExecutor(8) as pool:
        loads = [pool.submit(load) for _ in range(8)]
        try:
            codes = {probe(url_of(server), "cascade", timeout_s=0.4)[0] for _ in range(3)}
        finally:
            stop.set()
        for one in loads:
            one.result(timeout=30)
    assert codes <= {ANSWERED, BUSY}


def test_a_cascade_whose_runtime_cannot_drain_is_unloaded(repository: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(repository, old)
    path = old / "cascade" / "1" / "orchestrator" / "bls" / "model.py"
    path.write_text(path.read_text().replace("self._drain.is_set", "False"))
    with running_server(old) as running:
        assert ask(running, 0) == 0
        began_s = time.monotonic()
        running.stop()
        assert time.monotonic() - began_s < 12
