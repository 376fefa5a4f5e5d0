"""`committee serve` on the real server when processes are killed: what dies comes back."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.serving.machine import SHM
from perf.harness.product import ServedProduct
from tests.serving.models import add_onnx, add_python, scale_model
from tests.serving.test_process import ONE_IN_ONE_OUT, ask

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
SQUARE = """
    import triton_python_backend_utils as pb

    class TritonPythonModel:
        def execute(self, requests):
            arrays = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            return [pb.InferenceResponse([pb.Tensor("y", array * array)]) for array in arrays]
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProduct]:
    folder = tmp_path_factory.mktemp("dying")
    add_onnx(folder / "models", "double", scale_model(), config=ONE_IN_ONE_OUT)
    add_python(folder / "models", "square", SQUARE, config=ONE_IN_ONE_OUT)
    with ServedProduct(folder / "models", folder) as served:
        yield served


def eventually(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it never came"
        time.sleep(0.05)


def answers(product: ServedProduct, model: str, expected: float) -> bool:
    try:
        return ask(product.grpc, model, 3.0) == expected
    except Exception:  # dead, or on its way back
        return False


@pytest.mark.parametrize(("model", "expected"), [("square", 9.0), ("double", 6.0)])
def test_a_model_whose_process_is_killed_answers_again_without_a_restart(
    product: ServedProduct, model: str, expected: float
) -> None:
    server, killed = product.server_pid, product.stub(model)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: f"model {model} is loaded again after" in product.events.read_text())
    assert ask(product.grpc, model, 3.0) == expected
    assert product.server_pid == server
    assert f"model {model}: its process {killed} ended with signal SIGKILL" in product.events.read_text()


def test_a_server_that_is_killed_is_started_again_at_the_same_address_with_its_log_kept(
    product: ServedProduct,
) -> None:
    killed = product.server_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: answers(product, "square", 9.0))
    assert product.server_pid != killed
    eventually(lambda: "Triton is ready again after" in product.events.read_text())
    # A server that ran for seconds only is started again after a pause.
    said = r"Triton is started again( after 1 s)?: signal SIGKILL; restart 1 of 5 within 10 minutes"
    assert re.search(said, product.events.read_text())
    assert product.log.with_name(f"{product.log.name}.1").is_file()
    assert "Triton is" not in product.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("with_stubs", [True, False])
def test_what_a_killed_server_left_in_shared_memory_is_gone_at_the_next_start(
    tmp_path: Path, with_stubs: bool
) -> None:
    # Slow: two servers of its own start.
    add_python(tmp_path / "models", "square", SQUARE, config=ONE_IN_ONE_OUT)
    with ServedProduct(tmp_path / "models", tmp_path) as killed:
        prefix = next(one.shm for one in killed.processes if one.shm is not None).rsplit("_", 1)[0]
        assert list(SHM.glob(f"{prefix}_*"))
        server, stub = killed.server_pid, killed.stub("square")
        assert server is not None
        os.kill(psutil.Process(server).ppid(), signal.SIGKILL)
        if with_stubs:
            os.killpg(server, signal.SIGKILL)
        else:
            os.kill(server, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(server))
        assert list(SHM.glob(f"{prefix}_*"))
    with ServedProduct(tmp_path / "models", tmp_path):
        assert not list(SHM.glob(f"{prefix}_*"))
        assert not psutil.pid_exists(stub) or psutil.Process(stub).status() == psutil.STATUS_ZOMBIE
