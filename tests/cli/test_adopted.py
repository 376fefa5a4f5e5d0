"""Hand-written models with configs of their own become a cascade, and none of their files changes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from orchestrator.__main__ import run
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.planner.records import records_from_path
from orchestrator.spec import cascade_from_path
from tests.onnx_models import model_of
from tests.repository.builders import snapshot
from tests.servers import running_server

CLASSES, FEATURES, ROWS = 3, 4, 400
NAMES = ["plain", "scripted", "wrapped"]
PLAIN = """\
# tuned for our machine
backend: "onnxruntime"
default_model_filename: "net.onnx"
max_batch_size: 8
input [ { name: "pixels" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "features" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "margin" data_type: TYPE_FP32 dims: [ 1 ] }
]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""
SCRIPTED = """\
backend: "python"
max_batch_size: 16
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUT" data_type: TYPE_FP64 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
CODE = """\
import numpy as np
import triton_python_backend_utils as pb_utils

WEIGHTS = np.array({weights})


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            scores = np.exp(x @ WEIGHTS)
            scores /= scores.sum(axis=1, keepdims=True)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", scores)]))
        return answers
"""
WRAPPED = """\
platform: "ensemble"
max_batch_size: 12
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "p" data_type: TYPE_FP64 dims: [ 3 ] } ]
ensemble_scheduling { step [ {
  model_name: "inner" model_version: -1
  input_map { key: "IN" value: "x" }
  output_map { key: "OUT" value: "p" }
} ] }
"""


def weights_of(name: str) -> np.ndarray:
    right = np.random.default_rng(0).normal(size=(FEATURES, CLASSES))
    noise = {"plain": 0.7, "scripted": 0.3, "inner": 0.0}[name]
    return 6 * (right + noise * np.random.default_rng(len(name)).normal(size=right.shape))


def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, FEATURES)).astype(np.float32)


def write_model(repository: Path, name: str, config: str, files: dict[str, bytes]) -> None:
    folder = repository / name
    for file, content in {"config.pbtxt": config.encode(), **files}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def plain_model() -> bytes:
    """pixels (n, 4) -> features (n, 3), scores (n, 3), margin (n, 1)."""
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["scores"]),
        helper.make_node("Neg", ["scores"], ["features"]),
        helper.make_node("ReduceMax", ["scores"], ["margin"], axes=[1], keepdims=1),
    ]
    outputs = {"features": ["n", CLASSES], "scores": ["n", CLASSES], "margin": ["n", 1]}
    weights = {"w": weights_of("plain").astype(np.float32)}
    model = model_of(nodes, {"pixels": ["n", FEATURES]}, outputs, weights, opset=17, ir=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_repository(repository: Path) -> None:
    write_model(repository, "plain", PLAIN, {"1/net.onnx": plain_model()})
    for name, version in (("scripted", 1), ("inner", 3)):
        code = CODE.format(weights=weights_of(name).tolist()).encode()
        write_model(repository, name, SCRIPTED, {f"{version}/model.py": code})
    write_model(repository, "wrapped", WRAPPED, {"1/.gitkeep": b""})


@pytest.mark.triton
@pytest.mark.timeout(120)
def test_an_onnx_model_a_python_model_and_an_ensemble_become_a_cascade(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, data, recorded = tmp_path / "models", tmp_path / "rows.npz", tmp_path / "records.npz"
    write_repository(repository)
    before = snapshot(repository)
    labels = (rows() @ weights_of("inner")).argmax(axis=1)
    np.savez(data, images=rows(), labels=labels)
    plan, at = tmp_path / "cascade.json", ["--repository", str(repository)]
    imposed = ["--impose-exits", "0.5,0.3", "-o", str(plan), "--name", "mine"]
    words = ["record", *NAMES, "--data", str(data), "-o", str(recorded), *at]
    costs = ["--cost", "plain=1", "--cost", "scripted=4", "--cost", "wrapped=10"]
    with running_server(repository) as server, GrpcClient(server.grpc_address) as client:
        url = ["--url", server.grpc_address]
        assert run([*words, *url, *costs]) == 2
        assert "name the one with the scores: --output-tensor plain=TENSOR" in capsys.readouterr().err
        assert run([*words, *url, "--output-tensor", "plain=scores"]) == 2
        assert "--cost plain=... --cost scripted=... --cost wrapped=..." in capsys.readouterr().err
        assert run([*words, *url, *costs, "--output-tensor", "plain=scores"]) == 0
        assert run(["plan", str(recorded), *at, *imposed]) == 0
        assert run(["render", str(plan), *at]) == 0
        assert run(["check", *at]) == 0
        server.control.load("mine")
        answers = client.infer("mine", rows())
    about = records_from_path(recorded).meta["members"]
    assert about["plain"]["output"] == "scores"
    assert about["plain"]["instances"] == 2
    planned = cascade_from_path(plan)
    assert (planned.input.name, planned.input.dtype, planned.input.dims) == ("pixels", "FP32", (FEATURES,))
    assert [(one.name, one.input, one.output, one.max_batch_size, one.instances) for one in planned.members] == [
        ("plain", None, "scores", 8, 2),
        ("scripted", "IN", "OUT", 16, 1),
        ("wrapped", "x", "p", 12, 1),
    ]
    output = tmp_path / "served"
    assert run(["render", str(plan), *at, "--standalone", "--output", str(output)]) == 0
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"mine", *NAMES, "inner"}
    assert run(["check", "--repository", str(output)]) == 0
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    shares = np.bincount(answers.exit_stage, minlength=3) / ROWS
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.02)
    assert not answers.status.any()
    first = answers.exit_stage == 0
    np.testing.assert_array_equal(answers.label[first], (rows() @ weights_of("plain")).argmax(axis=1)[first])
