"""The clients against the real server, over tiny ONNX models whose answers are known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from orchestrator.errors import InputError, RefusedError, UnknownModelError
from tests.client.asking import KINDS, client_of
from tests.onnx_models import model_of
from tests.servers import running_server

CLASSES = 4
CONFIG = """backend: "onnxruntime"
max_batch_size: 8
input [{{ name: "x" data_type: TYPE_FP32 dims: [ {classes} ] }}]
output [{outputs}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
ANSWERS = {
    "probabilities": ("FP32", TensorProto.FLOAT, CLASSES),
    "label": ("INT64", TensorProto.INT64, 1),
    "confidence": ("FP32", TensorProto.FLOAT, 1),
}


def write_model(
    folder: Path,
    nodes: list[onnx.NodeProto],
    outputs: dict[str, tuple[str, int, int]],
    *,
    output_kind: str | None = None,
) -> None:
    """A model from x (n, 4) with the given outputs."""
    sides = {name: (kind, ["n", k]) for name, (_, kind, k) in outputs.items()}
    model = model_of(nodes, {"x": ["n", CLASSES]}, sides, {"axis": np.array([1], np.int64)})
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    listed = ", ".join(f'{{ name: "{n}" data_type: TYPE_{d} dims: [ {k} ] }}' for n, (d, _, k) in outputs.items())
    said = (
        f'parameters {{ key: "output_kind" value {{ string_value: "{output_kind}" }} }}\n' if output_kind else ""
    )
    (folder / "config.pbtxt").write_text(CONFIG.format(classes=CLASSES, outputs=listed) + said)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    repository = tmp_path_factory.mktemp("repository")
    logits = {"logits": ("FP32", TensorProto.FLOAT, CLASSES)}
    write_model(repository / "same", [helper.make_node("Identity", ["x"], ["logits"])], logits)
    nodes = [
        helper.make_node("Softmax", ["x"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=1),
        helper.make_node("ReduceMax", ["probabilities", "axis"], ["confidence"], keepdims=1),
    ]
    write_model(repository / "sure", nodes, ANSWERS)
    # The names say the contrary of what the tensors hold, as a name may.
    scores = {"logits": ("FP32", TensorProto.FLOAT, CLASSES)}
    softmax = [helper.make_node("Softmax", ["x"], ["logits"], axis=1)]
    for name, kind in (("stated", "probabilities"), ("silent", None)):
        write_model(repository / name, softmax, scores, output_kind=kind)
    named = {"probabilities": ("FP32", TensorProto.FLOAT, CLASSES)}
    identity = [helper.make_node("Identity", ["x"], ["probabilities"])]
    write_model(repository / "named", identity, named, output_kind="logits")
    with running_server(repository) as running:
        yield running


pytestmark = [pytest.mark.triton, pytest.mark.timeout(180), pytest.mark.parametrize("kind", KINDS)]


def address_of(server: Any, kind: str) -> str:
    return str(server.http_address if kind == "http" else server.grpc_address)


def rows_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, CLASSES)).astype(np.float32)


def test_answers_of_a_member_and_of_a_model_with_answers_agree(server: Any, kind: str) -> None:
    rows = rows_of(37)
    with client_of(kind, address_of(server, kind)) as client:
        plain, sure = client.infer("same", rows), client.infer("sure", rows)
        scores = client.ask("same", rows)
    assert np.array_equal(scores, rows)
    assert np.array_equal(plain.label, rows.argmax(axis=1))
    assert np.array_equal(plain.label, sure.label)
    assert plain.probabilities == pytest.approx(sure.probabilities, abs=1e-6)
    assert plain.confidence == pytest.approx(sure.confidence, abs=1e-6)


def test_the_kind_of_a_members_scores_is_learned_from_its_configuration_or_its_values(
    server: Any, kind: str
) -> None:
    rows = rows_of(37)
    with client_of(kind, address_of(server, kind)) as client:
        expected = client.infer("sure", rows)
        for name in ("stated", "silent", "named"):
            assert client.infer(name, rows).confidence == pytest.approx(expected.confidence, abs=1e-6), name
        kinds = [client.metadata(name).output_kind for name in ("stated", "silent", "named")]
    assert kinds == ["probabilities", None, "logits"]


def test_metadata_and_readiness_are_read(server: Any, kind: str) -> None:
    with client_of(kind, address_of(server, kind)) as client:
        info = client.metadata("sure")
        assert (info.max_batch_size, info.dims) == (8, (CLASSES,))
        assert [tensor.name for tensor in info.outputs] == list(ANSWERS)
        assert client.ready()
        assert client.ready("sure")
        assert not client.ready("nobody")


def test_mistakes_become_the_leaves_they_become_with_the_fake(server: Any, kind: str) -> None:
    with client_of(kind, address_of(server, kind)) as client:
        with pytest.raises(UnknownModelError, match="nobody"):
            client.infer("nobody", rows_of(1))
        with pytest.raises(InputError, match="float64"):
            client.infer("same", rows_of(1).astype(np.float64))
        info = client.metadata("same")
        # A limit larger than the server's: what a model loaded again with a smaller one looks like.
        known = getattr(client, "_client", client)._known
        known["same"] = type(info)(**{**vars(info), "max_batch_size": 64})
        with pytest.raises(RefusedError, match="batch-size must be <= 8"):
            client.infer("same", rows_of(20))
        assert len(client.infer("same", rows_of(20))) == 20
