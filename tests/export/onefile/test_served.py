"""One graph on the real server, beside the cascade it was made of."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from export.onefile.writing import write_onefile
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.spec import FusedPrefix, cascade_from_path
from tests.export.onefile.builders import NAMES
from tests.repository.builders import render_output
from tests.servers import running_server

pytestmark = pytest.mark.triton
REPOSITORY = Path(__file__).parents[3] / "model_repository"
SPEC = cascade_from_path(REPOSITORY / "digits_cascade" / "1" / "cascade.json")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpcclient.InferenceServerClient]:
    place = tmp_path_factory.mktemp("served") / "repository"
    render_output(REPOSITORY, place, cascades=[SPEC])
    write_onefile(SPEC, place)
    write_onefile(SPEC, place, stages=2)
    led = dataclasses.replace(
        SPEC, name="digits_led", fused_prefix=FusedPrefix(name="digits_cascade_lead", stages=2)
    )
    render(led, place)
    report = check(place)
    assert report, report.faults
    with running_server(place) as server:
        client = grpcclient.InferenceServerClient(server.grpc_address)
        yield client
        client.close()


def ask(
    client: grpcclient.InferenceServerClient, name: str, rows: np.ndarray, outputs: tuple[str, ...]
) -> dict[str, np.ndarray]:
    tensor = grpcclient.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    result = client.infer(name, [tensor])
    return {output: result.as_numpy(output) for output in outputs}


@pytest.mark.parametrize("batch", [1, 33, 256])
def test_served_beside_its_cascade_it_gives_the_same_answers(
    client: grpcclient.InferenceServerClient, batch: int
) -> None:
    rows = digits_split("test").images[: max(batch, 40)]
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        one, cascade = (ask(client, name, part, NAMES) for name in ("digits_cascade_onefile", "digits_cascade"))
        for name in ("label", "exit_stage", "cost", "status"):
            np.testing.assert_array_equal(one[name], cascade[name], err_msg=name)
            assert one[name].dtype == cascade[name].dtype
        for name in ("probabilities", "confidence"):
            np.testing.assert_allclose(one[name], cascade[name], atol=1e-5, err_msg=name)


def test_the_served_lead_gives_what_each_member_says_where_it_is_asked(
    client: grpcclient.InferenceServerClient,
) -> None:
    images = digits_split("test").images[:256]
    late = ask(client, "digits_cascade", images, NAMES)["exit_stage"][:, 0] > 0
    # A member takes no more than 64 rows at once, and few of the first 64 are unsure.
    rows = np.concatenate([images[late][:32], images[~late][:32]])
    first, second = (stage.members[0].name for stage in SPEC.stages[:2])
    lead = ask(client, "digits_cascade_lead", rows, (first, second))
    asked = ask(client, "digits_cascade", rows, NAMES)["exit_stage"][:, 0] > 0
    assert 0 < asked.sum() < len(rows)
    for name, where in ((first, np.ones(len(rows), bool)), (second, asked)):
        own = ask(client, name, rows[where], ("logits",))["logits"]
        np.testing.assert_allclose(lead[name][where], own, atol=1e-4)
        assert np.isnan(lead[name][~where]).all()


def test_labels_come_with_the_classes_a_client_asks_for(client: grpcclient.InferenceServerClient) -> None:
    rows = digits_split("test").images[:1]
    tensor = grpcclient.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    wanted = grpcclient.InferRequestedOutput("probabilities", class_count=1)
    top = client.infer("digits_cascade_onefile", [tensor], outputs=[wanted]).as_numpy("probabilities")
    label = ask(client, "digits_cascade_onefile", rows, NAMES)["label"].item()
    assert top.ravel()[0].decode().split(":")[1:] == [str(label), SPEC.labels[label]]


@pytest.mark.parametrize("parameters", [{}, {"min_stage": 1}, {"max_stage": 0}, {"threshold_shift": 0.1}])
def test_a_cascade_with_a_lead_gives_the_same_answers(
    client: grpcclient.InferenceServerClient, parameters: dict[str, float]
) -> None:
    rows = digits_split("test").images[:200]
    tensor = grpcclient.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    led, plain = (client.infer(name, [tensor], parameters=parameters) for name in ("digits_led", "digits_cascade"))
    for name in ("label", "exit_stage", "cost", "status"):
        np.testing.assert_array_equal(led.as_numpy(name), plain.as_numpy(name), err_msg=name)
    np.testing.assert_allclose(led.as_numpy("probabilities"), plain.as_numpy("probabilities"), atol=1e-5)


def test_a_lead_made_from_another_plan_is_a_fault(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    render_output(REPOSITORY, place, cascades=[SPEC])
    other = dataclasses.replace(
        SPEC, stages=(dataclasses.replace(SPEC.stages[0], threshold=0.5), *SPEC.stages[1:])
    )
    write_onefile(other, place, stages=2)
    render(dataclasses.replace(SPEC, fused_prefix=FusedPrefix(name="digits_cascade_lead", stages=2)), place)
    texts = [fault.text for fault in check(place).faults]
    assert any("made from another plan" in text for text in texts), texts
