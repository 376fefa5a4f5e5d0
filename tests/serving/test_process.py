"""The embedded server as a whole: it starts, answers, says what is wrong, and stops without losing a request."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from orchestrator.errors import PortInUseError, RepositoryError, ServingError
from orchestrator.probe import mark_of
from orchestrator.serving.machine import SHM
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from tests.servers import running_server
from tests.serving.models import add_onnx, add_python, scale_model

pytestmark = pytest.mark.triton

ONE_IN_ONE_OUT = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
# Doubles its input and takes its time over it.
SLOW = """
    import time
    import triton_python_backend_utils as pb

    class TritonPythonModel:
        def execute(self, requests):
            time.sleep(0.2)
            arrays = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            return [pb.InferenceResponse([pb.Tensor("y", 2 * array)]) for array in arrays]
"""
# As a cascade does: execute returns at once, a thread asks `slow` three times in a row and answers late.
# Every request leaves a byte in the file `arrived`, so that a test knows when all of them are in flight.
LATE_CALLER = """
    import pathlib
    import threading
    import triton_python_backend_utils as pb

    class TritonPythonModel:
        def initialize(self, args):
            self.arrived = pathlib.Path(args["model_repository"], "arrived").open("ab", buffering=0)

        def execute(self, requests):
            self.arrived.write(b"." * len(requests))
            for request in requests:
                array = pb.get_input_tensor_by_name(request, "x").as_numpy().copy()
                threading.Thread(target=self.answer, args=(array, request.get_response_sender())).start()
            return None

        def answer(self, array, sender):
            response = pb.InferenceResponse([], error=pb.TritonError("never asked"))
            for _ in range(3):
                inputs = [pb.Tensor("x", array)]
                call = pb.InferenceRequest(model_name="slow", requested_output_names=["y"], inputs=inputs).exec()
                if call.has_error():
                    response = pb.InferenceResponse([], error=call.error())
                    break
                array = pb.get_output_tensor_by_name(call, "y").as_numpy().copy()
                response = pb.InferenceResponse([pb.Tensor("y", array)])
            sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ENSEMBLE_OF_CALLER = """
    platform: "ensemble"
    max_batch_size: 8
    input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
    output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
    ensemble_scheduling { step [
      { model_name: "caller" model_version: -1
        input_map { key: "x" value: "x" } output_map { key: "y" value: "inner" } },
      { model_name: "double" model_version: -1
        input_map { key: "x" value: "inner" } output_map { key: "y" value: "y" } }
    ] }
"""


def ask(address: str, model: str, value: float) -> float:
    """Sends one row of a value, returns the value of the answer."""
    with grpcclient.InferenceServerClient(address) as client:
        tensor = grpcclient.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.full((1, 3), value, np.float32))
        answer = client.infer(model, [tensor], client_timeout=30).as_numpy("y")
    assert answer is not None
    assert answer.shape == (1, 3)
    return float(answer[0, 0])


def add_ensemble(repository: Path, name: str, config: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "a model repository"
    add_onnx(folder, "double", scale_model(), config=ONE_IN_ONE_OUT)
    return folder


def test_a_started_server_answers_and_a_stopped_one_leaves_nothing_behind(repository: Path) -> None:
    before = set(SHM.iterdir())
    with running_server(repository) as server:
        assert ask(server.grpc_address, "double", 4.0) == 8.0
        assert server.version == "2.51.0"
        assert server.model_names == ("double",)
        log_path = server.log_path
        pid = server.pid
        assert log_path is not None
        assert "successfully loaded 'double'" in log_path.read_text()
        for address, path in ((server.http_address, "/v2"), (server.metrics_address, "/metrics")):
            connection = http.client.HTTPConnection(address, timeout=5)
            connection.request("GET", path)
            assert connection.getresponse().status == 200
            connection.close()
        server.stop()
    assert not log_path.parent.exists()
    assert {path for path in set(SHM.iterdir()) - before if f"committee_{os.getpid()}_" in path.name} == set()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(("model", "factor"), [("caller", 8.0), ("pipeline", 16.0)])
def test_requests_in_flight_are_answered_while_stopping_even_those_whose_calls_come_later(
    repository: Path, model: str, factor: float
) -> None:
    add_python(repository, "slow", SLOW, config=f"{ONE_IN_ONE_OUT}\ndynamic_batching {{}}")
    add_python(repository, "caller", LATE_CALLER, config=ONE_IN_ONE_OUT)
    add_ensemble(repository, "pipeline", ENSEMBLE_OF_CALLER)
    with ThreadPoolExecutor(16) as pool, running_server(repository) as server:
        futures = [pool.submit(ask, server.grpc_address, model, float(i)) for i in range(16)]
        wait_until_arrived(repository / "caller" / "arrived", requests=16)
        server.stop()
        answers = [future.result(timeout=30) for future in futures]
    assert answers == [factor * i for i in range(16)]


def wait_until_arrived(path: Path, *, requests: int) -> None:
    deadline_s = time.monotonic() + 20
    while (arrived := path.stat().st_size if path.exists() else 0) < requests:
        assert time.monotonic() < deadline_s, f"{arrived} of {requests} requests arrived"
        time.sleep(0.01)


def test_an_idle_http_connection_does_not_hold_up_stopping(repository: Path) -> None:
    with running_server(repository) as server:
        connection = http.client.HTTPConnection(server.http_address, timeout=5)
        connection.request("GET", "/v2")
        connection.getresponse().read()
        began_s = time.monotonic()
        server.stop()
        took_s = time.monotonic() - began_s
        connection.close()
    assert took_s < 10, "the stop timeout is 15 s, and nothing was in flight"


def test_a_request_that_outlasts_the_stop_timeout_is_given_up(repository: Path) -> None:
    arrived = repository / "slow" / "arrived"
    endless = SLOW.replace("time.sleep(0.2)", f"open({str(arrived)!r}, 'w').write('.'); time.sleep(60)")
    add_python(repository, "slow", endless, config=ONE_IN_ONE_OUT)
    with ThreadPoolExecutor(1) as pool, running_server(repository, stop_timeout_s=1.0) as server:
        future = pool.submit(ask, server.grpc_address, "slow", 1.0)
        wait_until_arrived(arrived, requests=1)
        began_s = time.monotonic()
        server.stop()
        assert time.monotonic() - began_s < 8
        with pytest.raises(InferenceServerException):
            future.result(timeout=10)


def test_stopping_twice_or_before_starting_is_harmless(repository: Path) -> None:
    server = EmbeddedServer(ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0))
    server.stop()
    server.start()
    # Anybody may put this here, and it cannot be removed where it is somebody else's.
    in_the_way = mark_of(server.pid)
    in_the_way.mkdir()
    server.stop()
    server.stop()
    in_the_way.rmdir()


def test_nobody_else_may_load_or_unload_models_or_change_what_is_logged(repository: Path) -> None:
    with running_server(repository) as server:
        with grpcclient.InferenceServerClient(server.grpc_address) as client:
            with pytest.raises(InferenceServerException, match="restricted"):
                client.unload_model("double")
            with pytest.raises(InferenceServerException, match="restricted"):
                client.load_model("double", config="{}", files={"file:1/model.py": b"import os"})
            with pytest.raises(InferenceServerException, match="restricted"):
                client.update_log_settings({"log_error": False})
            with pytest.raises(InferenceServerException, match="restricted"):
                client.update_trace_settings(settings={"trace_rate": "1"})
        for path in ("logging", "trace/setting", "models/double/trace/setting"):
            connection = http.client.HTTPConnection(server.http_address, timeout=5)
            connection.request("POST", f"/v2/{path}", body="{}")
            assert connection.getresponse().status == 403
            connection.close()
        assert ask(server.grpc_address, "double", 1.0) == 2.0


def test_leaving_the_block_stops_the_server_in_order(repository: Path) -> None:
    with EmbeddedServer(free_options(repository)) as server:
        pid = server.pid
        assert ask(server.grpc_address, "double", 1.0) == 2.0
    assert server.wait(0) == 0
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_is_killed_is_noticed(repository: Path) -> None:
    with running_server(repository) as server:
        assert server.wait(0.1) is None
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(10) == -signal.SIGKILL


# Ends the server that loads it, as a fault of the server's own would, while the file beside it has bytes to eat.
CRASHER = """
    import os, pathlib, signal, time

    class TritonPythonModel:
        def initialize(self, args):
            crashes = pathlib.Path(args["model_repository"], "crashes")
            left = crashes.read_bytes()
            if left:
                crashes.write_bytes(left[1:])
                os.kill(os.getppid(), signal.SIGABRT)
                time.sleep(60)
"""


def test_a_server_that_crashes_while_starting_is_started_once_more(repository: Path) -> None:
    add_python(repository, "crasher", CRASHER, config=ONE_IN_ONE_OUT)
    (repository / "crasher" / "crashes").write_bytes(b".")
    told: list[str] = []
    with EmbeddedServer(free_options(repository), progress=told.append) as server:
        assert ask(server.grpc_address, "double", 3.0) == 6.0
    assert [text for text in told if "crashed" in text] == ["Triton crashed while starting; starting it once more"]
    assert (repository / "crasher" / "crashes").read_bytes() == b""


# Its process is ended from outside, just after its model is loaded, as often as the file beside it has bytes.
VICTIM = """
    import os, pathlib, signal, threading

    class TritonPythonModel:
        def initialize(self, args):
            crashes = pathlib.Path(args["model_repository"], "crashes")
            left = crashes.read_bytes()
            if left:
                crashes.write_bytes(left[1:])
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
"""
LATE = """
    import time

    class TritonPythonModel:
        def initialize(self, args):
            time.sleep(3)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_dies_while_the_server_starts_is_seen_at_once(repository: Path, times: int) -> None:
    add_python(repository, "victim", VICTIM, config=ONE_IN_ONE_OUT)
    add_python(repository, "late", LATE, config=ONE_IN_ONE_OUT)
    (repository / "victim" / "crashes").write_bytes(b"." * times)
    told: list[str] = []
    server = EmbeddedServer(free_options(repository, startup_timeout_s=600.0), progress=told.append)
    what = "its process [0-9]+ ended with signal SIGKILL"
    with (
        nullcontext() if times == 1 else pytest.raises(ServingError, match=f"did not start: got model.*{what}"),
        server,
    ):
        assert ask(server.grpc_address, "double", 3.0) == 6.0
    assert sum(re.search(f"{what}; starting Triton once more", text) is not None for text in told) == 1


def test_a_server_that_crashes_each_time_is_given_up_after_two(repository: Path, tmp_path: Path) -> None:
    add_python(repository, "crasher", CRASHER, config=ONE_IN_ONE_OUT)
    (repository / "crasher" / "crashes").write_bytes(b"...")
    log_path = tmp_path / "triton.log"
    with pytest.raises(ServingError, match=r"did not start: got exit status -6; the whole log is"):
        EmbeddedServer(free_options(repository, log_path=log_path)).start()
    assert (repository / "crasher" / "crashes").read_bytes() == b"."
    assert log_path.is_file()


def test_a_model_that_does_not_load_is_named_with_its_reason(repository: Path, tmp_path: Path) -> None:
    add_python(repository, "broken", "import no_such_module_at_all", config=ONE_IN_ONE_OUT)
    log_path = tmp_path / "triton.log"
    with pytest.raises(ServingError) as caught, running_server(repository, log_path=log_path):
        pass
    text = str(caught.value)
    assert "model broken: ModuleNotFoundError: No module named 'no_such_module_at_all'" in text
    assert "double" not in text
    assert text.endswith(f"the whole log is {log_path}")
    assert "no_such_module_at_all" in log_path.read_text()
    assert "\n" not in text


def test_a_model_that_loads_too_slowly_is_named(repository: Path, tmp_path: Path) -> None:
    sleeper = "import time\ntime.sleep(60)"
    add_python(repository, "sleeper", sleeper, config=ONE_IN_ONE_OUT)
    with pytest.raises(ServingError, match=r"not ready after 3 s.*still loading (double, )?sleeper") as caught:
        EmbeddedServer(free_options(repository, startup_timeout_s=3.0, log_path=tmp_path / "log")).start()
    assert "the whole log is" in str(caught.value)


def free_options(repository: Path, **options: Any) -> ServeOptions:
    return ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0, **options)


@pytest.mark.parametrize("field", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_in_use_is_named_with_its_argument(repository: Path, field: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with (
            pytest.raises(PortInUseError, match=f"port {port} .*`{field}`"),
            running_server(repository, **{field: port}),
        ):
            pass


def test_an_unservable_backend_is_refused_before_anything_starts(repository: Path) -> None:
    add_onnx(repository, "engine", scale_model())
    (repository / "engine" / "config.pbtxt").write_text('backend: "tensorrt"')
    with pytest.raises(RepositoryError, match=r"model engine with backend tensorrt.*docker compose"):
        EmbeddedServer(free_options(repository)).start()


STARTER = """
import sys, time
from pathlib import Path
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer

server = EmbeddedServer(ServeOptions(repository=Path(sys.argv[1]), http_port=0, grpc_port=0, metrics_port=0))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_when_we_are_killed_without_a_chance_to_stop_it(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(repository)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # nobody is left to remove what it keeps there
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    deadline_s = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, "the server outlived us"
        time.sleep(0.1)


def test_http_stays_on_its_own_address_while_grpc_serves_on_another(repository: Path) -> None:
    with running_server(repository, host="127.0.0.2", http_host="127.0.0.1") as server:
        assert server.http_address.startswith("127.0.0.1:")
        assert server.grpc_address.startswith("127.0.0.2:")
        assert ask(server.grpc_address, "double", 3.0) == 6.0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(server.http_address.rsplit(":", 1)[1])), timeout=5)
        server.stop()


def test_several_servers_run_side_by_side(repository: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        futures: list[Future[float]] = [pool.submit(serve_and_ask, repository) for _ in range(2)]
        assert [future.result(timeout=60) for future in futures] == [6.0, 6.0]


def serve_and_ask(repository: Path) -> float:
    with running_server(repository) as server:
        return ask(server.grpc_address, "double", 3.0)
