"""Leading stages in the cascade's own process, on a real server: the planned answers, in every case."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.__main__ import run
from orchestrator.serving.process import EmbeddedServer
from tests.served.fixtures import ONNX_MEMBERS, metrics_of
from tests.served.test_member_versions import (
    BACK_S,
    CASCADE,
    Served,
    anything,
    committed,
    is_planned,
    is_refused,
    is_unavailable,
    perturbed,
)
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120)]
SMALL = ONNX_MEMBERS[0]


def in_process(repository: Path, stages: int) -> Path:
    """The cascade's version folder, rendered so that it needs nothing from here."""
    folder = repository / CASCADE / "1"
    words = ["render", folder / "cascade.json", "--repository", repository, "--in-process", stages, "--standalone"]
    assert run(list(map(str, words))) == 0
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedServer, Served]]:
    repository = committed(tmp_path_factory.mktemp("in_process") / "repository")
    in_process(repository, 2)
    with running_server(repository) as server:
        yield server, Served(server.grpc_address, repository)


def test_every_answer_is_as_planned_and_the_models_of_these_stages_are_only_watched(
    server: tuple[EmbeddedServer, Served],
) -> None:
    embedded, served = server
    assert [served.answers() for _ in range(3)] == ["as planned"] * 3
    found = metrics_of(embedded, CASCADE, until=lambda one: one["in_process_rows_total digits_small"] >= 750)
    assert found["in_process_rows_total digits_small"] == 750
    assert [found[f"in_process digits_{name}"] for name in ("small", "medium")] == [1, 1]
    assert "in_process digits_large" not in found
    assert 0 < found["in_process_rows_total digits_medium"] < 750
    assert found["in_process_us_total digits_small"] > 0


def test_a_file_that_is_replaced_is_noticed_although_it_was_read_before(
    server: tuple[EmbeddedServer, Served],
) -> None:
    _, served = server
    assert served.answers() == "as planned"
    path = served.repository / SMALL / "1" / "model.onnx"
    fitted = path.read_bytes()
    path.write_bytes(perturbed(path))
    try:
        assert f"member {SMALL} is not as planned" in served.until(is_refused, meanwhile=anything)
    finally:
        path.write_bytes(fitted)
    served.until(is_planned, meanwhile=is_unavailable, within_s=BACK_S)


def test_without_onnxruntime_the_models_are_called(tmp_path: Path) -> None:
    repository = committed(tmp_path / "repository")
    folder = in_process(repository, 3)
    assert json.loads((folder / "cascade.json").read_text())["in_process"] == 3
    # The folder of model.py comes first where a standalone rendering looks for modules.
    (folder / "onnxruntime.py").write_text("raise ImportError\n")
    with running_server(repository) as server:
        assert Served(server.grpc_address, repository).answers() == "as planned"
        found = metrics_of(server, CASCADE)
        assert [found[f"in_process {name}"] for name in ONNX_MEMBERS] == [0, 0, 0]
        text = server.log_path.read_text()
    assert "digits_large is called, not run in process: onnxruntime is not installed" in text
