"""`committee serve` as a person or a supervisor sees it: a process with output, signals and an exit code."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from orchestrator.__main__ import run
from orchestrator.cli.serve import production_words
from orchestrator.serving.options import Ports, bracketed, network_host
from orchestrator.serving.process import EmbeddedServer
from orchestrator.serving.stubs import DeadStubs
from tests.serving.models import add_onnx, add_python, scale_model

FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
CONFIG = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    add_onnx(folder, "double", scale_model(), config=CONFIG)
    return folder


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`committee serve` with these arguments; killed if the test leaves it running."""
    command = [sys.executable, "-m", "orchestrator", "serve", *arguments]
    # A server that fails keeps its log in the temporary folder, which goes with the test.
    environment = {**os.environ, "TMPDIR": str(Path(arguments[1]).parent)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def failure(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a run that is meant to fail by itself."""
    with serving(*arguments) as process:
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    return process.returncode, errors


def read_ready(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    ready: dict[str, str] = json.loads(process.stdout.readline())
    return ready


def copy_digits(repository: Path) -> None:
    for name in ("digits_cascade", "digits_small", "digits_medium", "digits_large"):
        shutil.copytree(Path("model_repository") / name, repository / name)


def test_a_repository_that_is_not_there_is_one_line_and_exit_2(tmp_path: Path) -> None:
    code, errors = failure("--repository", str(tmp_path / "nowhere"))
    assert code == 2
    assert errors.startswith(f"error: {tmp_path / 'nowhere'} does not exist")
    assert errors.count("\n") == 1


def test_a_plan_that_cannot_be_read_is_one_line_before_any_server_starts(repository: Path) -> None:
    (repository / "cascade/1").mkdir(parents=True)
    (repository / "cascade/1/cascade.json").write_text('{"format": 1, ')
    # Nothing that starts has its log in this folder.
    code, errors = failure("--repository", str(repository), *FREE)
    assert code == 2
    assert errors.count("\n") == 1
    assert "cascade cascade.json" in errors
    assert errors.endswith("see committee check\n")
    assert [path.name for path in repository.parent.iterdir()] == ["models"]


def test_wrong_options_are_all_named_in_one_line(repository: Path) -> None:
    code, errors = failure("--repository", str(repository), "--http-port", "99999", "--host", "a b")
    assert code == 2
    assert "http_port" in errors
    assert "host" in errors
    assert errors.count("\n") == 1


@pytest.mark.triton
def test_a_port_in_use_is_one_line_and_exit_4(repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = str(other.getsockname()[1])
        code, errors = failure("--repository", str(repository), *FREE, "--grpc-port", port)
    assert code == 4
    assert f"port {port}" in errors
    assert "--grpc-port" in errors
    assert errors.count("\n") == 1


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_json_tells_where_and_a_signal_ends_it_cleanly(repository: Path, number: signal.Signals) -> None:
    with serving("--repository", str(repository), *FREE, "--json") as process:
        ready = read_ready(process)
        assert set(ready) == {"grpc", "http", "metrics", "pid", "triton_version", "models", "log"}
        assert ready["models"] == ["double"]
        with httpclient.InferenceServerClient(ready["http"]) as client:
            tensor = httpclient.InferInput("x", [1, 3], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
            np.testing.assert_array_equal(client.infer("double", [tensor]).as_numpy("y"), np.full((1, 3), 2.0))
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == ""
    assert errors.strip().endswith("Triton stopped.")
    assert not Path(f"/proc/{ready['pid']}").exists()


@pytest.mark.triton
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_people_read_the_endpoints_and_how_to_stop(repository: Path, host: str) -> None:
    if not can_bind(host):
        pytest.skip(f"no {host} on this machine")
    with serving("--repository", str(repository), *FREE, "--host", host) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(7)]
        address = lines[1].split()[1]
        with grpcclient.InferenceServerClient(address) as client:
            assert client.is_server_ready()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    text = "".join(lines)
    shown = f"[{host}]" if ":" in host else host
    for part in ("double", f"gRPC     {shown}:", f"http://{shown}:", "/metrics", "Ctrl-C"):
        assert part in text
    assert "warning" not in errors
    assert process.returncode == 0


def can_bind(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


class NotStarted(EmbeddedServer):
    """A server that nobody starts, so that none listens to the network: Ctrl-C comes as soon as it is awaited."""

    def start(self) -> None:
        self._ports = Ports(http=1, grpc=2, metrics=3)
        self._stubs = DeadStubs(1)

    def wait(self, timeout_s: float | None = None) -> int | None:
        raise KeyboardInterrupt

    @property
    def pid(self) -> int:
        return 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "box.invalid"])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_address_others_can_reach_is_named_with_a_warning(
    repository: Path, host: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.cli.serve.EmbeddedServer", NotStarted)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        words = ["serve", "--repository", str(repository), "--host", host, *(["--json"] if as_json else [])]
        assert run(words) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr()
    reached = bracketed(network_host(host))
    assert json.loads(said.out)["grpc"] == f"{reached}:2" if as_json else f"gRPC     {reached}:2" in said.out
    assert f"warning: bound to {host}, so anybody on the network may ask these models" in said.err
    assert "--host 127.0.0.1" in said.err
    assert f"warning: HTTP is bound to {host}, and one malformed request over it ends" in said.err


def test_what_serves_in_production_is_said_of_this_repository(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    add_onnx(plain, "double", scale_model(), config=CONFIG)
    assert production_words(plain).endswith("NVIDIA's Triton image serves the same folder.")
    mine = tmp_path / "my models"
    copy_digits(mine)
    words = shlex.split(production_words(mine).split("`")[1].replace("FOLDER", str(tmp_path / "out")))
    assert words[0] == "committee"
    assert run(words[1:]) == 0
    assert (tmp_path / "out/digits_cascade/1/cascade.json").is_file()


@pytest.mark.triton
def test_ctrl_c_while_starting_ends_it_cleanly_too(repository: Path, tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    code = f"import time\nopen({str(loading)!r}, 'w').close()\ntime.sleep(60)"
    add_python(repository, "sleeper", code, config=CONFIG)
    with serving("--repository", str(repository), *FREE) as process:
        deadline_s = time.monotonic() + 30
        while not loading.exists():
            assert time.monotonic() < deadline_s, "the model never began to load"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == ""
    assert "Traceback" not in errors


@pytest.mark.triton
def test_a_server_that_dies_is_one_line_and_exit_4(repository: Path) -> None:
    with serving("--repository", str(repository), *FREE, "--json", "--restart", "no") as process:
        os.kill(int(read_ready(process)["pid"]), signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    error = json.loads(errors.splitlines()[-1])["error"]
    assert error["message"].startswith("embedded Triton ended by itself: got signal SIGKILL")


@pytest.mark.triton
def test_a_model_that_does_not_load_shows_its_part_of_the_log_and_exit_4(repository: Path) -> None:
    add_python(repository, "broken", "import no_such_module_at_all", config=CONFIG)
    code, errors = failure("--repository", str(repository), *FREE)
    assert code == 4
    *log, last = errors.splitlines()
    assert last.startswith("error: embedded Triton did not start: got model broken: ModuleNotFoundError")
    assert any("broken/1/model.py" in line for line in log)


@pytest.mark.triton
def test_a_cascade_goes_while_a_member_is_another_and_comes_back_with_it(tmp_path: Path) -> None:
    models = tmp_path / "models"
    copy_digits(models)
    path = models / "digits_medium" / "1" / "model.onnx"
    fitted = path.read_bytes()
    with serving("--repository", str(models), *FREE, "--json") as process:
        ready = read_ready(process)
        with httpclient.InferenceServerClient(ready["http"]) as client:
            assert client.is_model_ready("digits_cascade")
            path.write_bytes((models / "digits_large" / "1" / "model.onnx").read_bytes())
            wait_until(lambda: not client.is_model_ready("digits_cascade"))
            path.write_bytes(fitted)
            wait_until(lambda: client.is_model_ready("digits_cascade"))
            assert client.is_model_ready("digits_medium")
            path.unlink()
            wait_until(lambda: not client.is_model_ready("digits_cascade"))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    said = [line for line in errors.splitlines() if line.startswith("digits_cascade is ")]
    assert len(said) == 3
    assert "unloaded until that is mended: member digits_medium is not as planned" in said[0]
    assert "loaded again" in said[1]
    assert "model.onnx is gone" in said[2]


@pytest.mark.triton
def test_a_plan_that_names_a_version_that_is_not_served_is_one_line_before_any_server_starts(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    copy_digits(models)
    shutil.copytree(models / "digits_small" / "1", models / "digits_small" / "2")
    code, errors = failure("--repository", str(models), *FREE)
    assert code == 2
    assert errors.count("\n") == 1
    assert "member digits_small: got version 1 in the plan, Triton serves 2" in errors


def wait_until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s"
        time.sleep(0.05)
