"""Renderings on the real server: what Triton takes, and what it answers."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from orchestrator.decision import Combiner, confidence_score
from orchestrator.repository.check import check
from orchestrator.repository.index import plans_in
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec, Stage, cascade_from_path
from orchestrator.spec.answer import ANSWER_COLUMNS
from tests.repository.builders import CLASSES, DIMS, PIXELS, add_member, linear_model, render_output, spec_of
from tests.servers import running_server

pytestmark = pytest.mark.triton


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standalone rendering of a cascade, an ensemble and a vote, moved away from everything it came from."""
    repository = tmp_path_factory.mktemp("source") / "model_repository"
    first, second = add_member(repository, "small", seed=1), add_member(repository, "large", seed=2)
    model = linear_model(3, input="pixels")
    other = add_member(repository, "named", model=model, inputs=(PIXELS,), max_batch_size=6)
    spec = spec_of(first, dataclasses.replace(second, temperature=0.5))
    named = dataclasses.replace(other, inputs={"pixels": "x"}, max_batch_size=6, weight=2.0)
    render(spec, repository)
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    stage = Stage(members=(*spec.members, named))
    render_ensemble(dataclasses.replace(spec, name="votes", combine="vote", stages=(stage,)), repository)
    output = tmp_path_factory.mktemp("made") / "out"
    cascades, ensembles = plans_in(repository)
    render_output(repository, output, cascades=cascades, ensembles=ensembles, standalone=True)
    shutil.rmtree(repository)
    place = tmp_path_factory.mktemp("place") / "elsewhere"
    shutil.move(output, place)
    assert check(place)
    return place


@pytest.fixture(scope="module")
def client(moved: Path) -> Iterator[grpcclient.InferenceServerClient]:
    with running_server(moved) as server:
        client = grpcclient.InferenceServerClient(server.grpc_address)
        yield client
        client.close()


def ask(client: grpcclient.InferenceServerClient, name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    tensor = grpcclient.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    result = client.infer(name, [tensor])
    return {output: result.as_numpy(output) for output in ANSWER_COLUMNS}


def expected(spec: CascadeSpec, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seeds = {"small": 1, "large": 2, "named": 3}
    outputs = []
    for member in spec.members:
        weights = np.random.default_rng(seeds[member.name]).normal(size=(DIMS[0], CLASSES)).astype(np.float32)
        outputs.append(x @ weights)
    combiner = Combiner(spec)
    accumulator = combiner.empty(len(x))
    combiner.add_stage(accumulator, 0, outputs)
    p, label = combiner.distribution(accumulator)
    return p, label, confidence_score(spec.score, p, label, accumulator.tops, combiner.weights)


def test_the_server_loads_every_model_of_a_rendering(client: grpcclient.InferenceServerClient) -> None:
    names = ["small", "large", "named", "cascade", "together", "together_mean", "votes", "votes_mean"]
    assert [name for name in names if not client.is_model_ready(name)] == []


@pytest.mark.parametrize("name", ["together", "votes"])
def test_an_ensemble_answers_what_the_decision_core_does(
    client: grpcclient.InferenceServerClient, moved: Path, name: str
) -> None:
    spec = next(one for one in plans_in(moved)[1] if one.name == name)
    x = rows(6)
    p, label, score = expected(spec, x)
    got = ask(client, name, x)
    np.testing.assert_allclose(got["probabilities"], p, atol=1e-6)
    np.testing.assert_array_equal(got["label"][:, 0], label)
    np.testing.assert_allclose(got["confidence"][:, 0], score, atol=1e-6)
    assert (got["cost"] == np.float32(spec.worst_cost)).all()
    assert (got["exit_stage"] == 0).all()
    assert (got["status"] == 0).all()


def test_a_cascade_that_stands_alone_answers(client: grpcclient.InferenceServerClient, moved: Path) -> None:
    spec = cascade_from_path(moved / "cascade" / "1" / "cascade.json")
    got = ask(client, "cascade", rows(20))
    assert set(got["exit_stage"][:, 0]) == {0, 1}
    early = got["exit_stage"][:, 0] == 0
    threshold = spec.stages[0].threshold
    assert threshold is not None
    assert (got["confidence"][early, 0] >= threshold).all()
    together = ask(client, "together", rows(20)[~early][:8])
    np.testing.assert_allclose(got["probabilities"][~early][:8], together["probabilities"], atol=1e-6)


@pytest.mark.parametrize("name", ["cascade", "together"])
def test_classification_requests_get_the_labels(client: grpcclient.InferenceServerClient, name: str) -> None:
    tensor = grpcclient.InferInput("x", [1, *DIMS], "FP32")
    tensor.set_data_from_numpy(rows(1))
    output = grpcclient.InferRequestedOutput("probabilities", class_count=2)
    words = client.infer(name, [tensor], outputs=[output]).as_numpy("probabilities")
    labels = [word.decode().split(":")[2] for word in words.reshape(-1)]
    assert len(labels) == 2
    assert set(labels) < {"ant", "bee", "cow"}


def test_cascade_and_ensemble_look_alike_to_a_client(client: grpcclient.InferenceServerClient) -> None:
    one, two = (client.get_model_metadata(name, as_json=True) for name in ("cascade", "together"))
    assert one["inputs"] == two["inputs"]
    assert one["outputs"] == two["outputs"]


def test_the_served_config_is_the_rendered_one(client: grpcclient.InferenceServerClient, moved: Path) -> None:
    config = client.get_model_config("cascade").config
    assert config.max_batch_size == 32
    assert [group.count for group in config.instance_group] == [1]
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.response_cache.enable


def test_an_alternative_config_is_taken_where_there_is_one_and_the_usual_one_elsewhere(
    tmp_path: Path, moved: Path
) -> None:
    place = tmp_path / "repository"
    shutil.copytree(moved, place)
    for folder in ("small", "large", "named"):
        # A GPU is not to be had everywhere: the same file with its instances on the CPU shows what is read.
        path = place / folder / "configs" / "gpu.pbtxt"
        path.write_text(path.read_text().replace("KIND_GPU", "KIND_CPU"))
    with running_server(place, config_name="gpu") as server:
        client = grpcclient.InferenceServerClient(server.grpc_address)
        warmed = {
            name: len(client.get_model_config(name).config.model_warmup)
            for name in ("small", "cascade", "together")
        }
        client.close()
    assert warmed == {"small": 2, "cascade": 0, "together": 0}
