"""New versions of a plan on a real server: accepted when all members are there; otherwise the old one goes on."""

import dataclasses
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from orchestrator.errors import ServingError
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage, cascade_from_path, json_from_cascade
from orchestrator.spec.cascade import PLAN
from tests.repository.builders import render_output
from tests.served.test_member_versions import polling
from tests.servers import running_server
from tests.serving.models import OF_TWO_NUMBERS, add_python

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
MEMBER = """
    import numpy as np
    import triton_python_backend_utils as pb

    class TritonPythonModel:
        def execute(self, requests):
            rows = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
            scores = [np.tile(np.float32(SCORES), (len(one), 1)) for one in rows]
            return [pb.InferenceResponse([pb.Tensor("logits", one)]) for one in scores]
"""
NEW = "later"
SPEC = CascadeSpec(
    name="cascade",
    inputs=(InputSpec(name="x", dtype="FP32", dims=(2,)),),
    classes=2,
    combine="last",
    stages=(
        Stage(members=(Member(name="first", output="logits"),), threshold=0.9),
        Stage(members=(Member(name="last", output="logits"),)),
    ),
)


def add_member(folder: Path, name: str, label: int | None) -> None:
    """One that says this label of every row, or is sure of nothing."""
    scores = [0, 0] if label is None else [9 * (1 - label), 9 * label]
    add_python(folder, name, MEMBER.replace("SCORES", str(scores)), config=OF_TWO_NUMBERS)


def repository_in(folder: Path) -> Path:
    add_member(folder / "members", "first", None)
    add_member(folder / "members", "last", 0)
    render_output(folder / "members", folder / "models", cascades=[SPEC])
    return folder / "models"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with running_server(repository_in(tmp_path)) as running:
        yield running


def put_plan(repository: Path, version: int) -> None:
    """Writes that version of the plan, its last member the new one; the folder appears whole."""
    folder, beside = repository / "cascade", repository.parent / f"cascade.{version}"
    shutil.copytree(folder / "1", beside)
    spec = cascade_from_path(beside / PLAN)
    stages = (*spec.stages[:-1], Stage(members=(Member(name=NEW, output="logits"),)))
    (beside / PLAN).write_text(json_from_cascade(dataclasses.replace(spec, stages=stages)))
    shutil.rmtree(folder / str(version), ignore_errors=True)
    beside.rename(folder / str(version))


def label(address: str) -> int:
    tensor = grpcclient.InferInput("x", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
    with grpcclient.InferenceServerClient(address) as client:
        return int(client.infer("cascade", [tensor], client_timeout=20).as_numpy("label").item())


def is_ready(server: EmbeddedServer, path: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{server.http_address}/v2/{path}ready", timeout=5):
        return True
    return False


@pytest.mark.parametrize("version", [2, pytest.param(1, marks=pytest.mark.slow(reason="as the other, in place"))])
def test_a_plan_that_names_a_missing_member_is_refused_and_the_old_one_serves_and_is_ready(
    server: EmbeddedServer, version: int
) -> None:
    repository = server.options.repository
    assert label(server.grpc_address) == 0
    put_plan(repository, version)
    with pytest.raises(ServingError, match=f"{NEW}: it is not ready; load them first .* stays"):
        server.control.load("cascade")
    assert label(server.grpc_address) == 0
    assert is_ready(server, "health/")
    assert is_ready(server, "models/cascade/")
    assert f"{NEW}: it is not ready" in server.log_path.read_text()
    # Once the member is there, the same plan is accepted.
    add_member(repository, NEW, 1)
    server.control.load(NEW)
    server.control.load("cascade")
    assert label(server.grpc_address) == 1
    assert is_ready(server, "health/")


@pytest.mark.slow  # polls come once a second, and so many loads take their time
def test_a_polling_server_takes_a_member_and_the_plan_that_names_it_in_one_poll(tmp_path: Path) -> None:
    repository = repository_in(tmp_path)
    with polling(repository, tmp_path / "log") as address:
        assert label(address) == 0
        add_member(tmp_path / "new", NEW, 1)
        (tmp_path / "new" / NEW).rename(repository / NEW)
        put_plan(repository, 2)
        until_s = time.monotonic() + 40
        while label(address) == 0:
            assert time.monotonic() < until_s, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.05)
