"""Image processing that fused members share."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.cost.counting import preprocess_macs_per_row
from export.fusing import Fusion, fuse, fused_model
from export.members import ReadMember
from export.parity import varied_rows
from orchestrator.local import LocalMembers
from orchestrator.spec import Member, TensorSpec
from tests.export.small_networks import IMAGE_INPUT, SCORES, add_image_member, answers, image_model
from tests.export.test_fusing import preprocess_nodes
from tests.onnx_models import model_of
from tests.repository.builders import manifest_of


def fused_images(sides: list[int]) -> tuple[onnx.ModelProto, list[onnx.ModelProto]]:
    models = [image_model(seed, side) for seed, side in enumerate(sides)]
    manifests = [manifest_of(f"m{i}", "0" * 64, inputs=(IMAGE_INPUT,), output=SCORES) for i in range(len(sides))]
    members = tuple(Member(name=m.name, output="logits", weight=1 + i) for i, m in enumerate(manifests))
    fusion = Fusion(name="images", members=members, combine="mean_logit")
    parts = [ReadMember(*pair) for pair in zip(manifests, models, strict=True)]
    return fused_model(fusion, parts), models


@pytest.mark.parametrize("sides", [[12, 12], [12, 16], [12, 16, 12], [24, 12], [24, 24]])
def test_image_processing_is_shared_as_far_as_it_is_the_same(sides: list[int]) -> None:
    fused, models = fused_images(sides)
    onnx.checker.check_model(fused, full_check=True)
    rows = varied_rows(IMAGE_INPUT, 9)
    expected = sum((1 + i) * answers(model, rows) for i, model in enumerate(models)) / sum(
        1 + i for i in range(len(models))
    )
    np.testing.assert_allclose(answers(fused, rows), expected, atol=1e-5)
    apart = {side: len(preprocess_nodes(image_model(0, side))) for side in set(sides)}
    # The cast is common to all of them, and nothing else to two that resize to different sizes.
    assert len(preprocess_nodes(fused)) == sum(apart.values()) - (len(apart) - 1)
    assert [node.op_type for node in preprocess_nodes(fused)].count("Cast") == 1
    costs = {side: preprocess_macs_per_row(image_model(0, side)) for side in apart}
    assert preprocess_macs_per_row(fused) == sum(costs.values())
    names = [node.name for node in fused.graph.node]
    assert len(set(names)) == len(names)
    constants = [weight.name for weight in fused.graph.initializer]
    assert len(set(constants)) == len(constants)


def first_step(kind: str, constant: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """A member of one "preprocess/" node and nothing else, x (n, 3) -> (n, 3)."""
    inputs = {"Concat": ["preprocess/one", "x"], "Cast": ["x"]}.get(kind, ["x", "preprocess/one"])
    nodes = [
        helper.make_node(kind, inputs, ["preprocess/image"], name="preprocess/image", **attributes),
        helper.make_node("Cast", ["preprocess/image"], ["logits"], to=TensorProto.FLOAT),
    ]
    return model_of(nodes, {"x": ["n", 3]}, {"logits": ["n", 3]}, {"preprocess/one": constant})


ONE = np.array([2.5, 1, 0], np.float32)

ZERO = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("models", "nodes", "constants"),
    [
        ((first_step("Add", ONE), first_step("Add", ONE)), 1, 1),
        ((first_step("Add", ONE), first_step("Mul", ONE)), 2, 1),
        ((first_step("Add", ONE), first_step("Add", ONE + 1)), 2, 2),
        ((first_step("Add", ONE), first_step("Add", ONE[None])), 2, 2),
        ((first_step("Add", ONE[:1]), first_step("Reshape", np.array([-1, 3]))), 2, 2),
        ((first_step("Cast", ONE, to=TensorProto.INT32), first_step("Cast", ONE, to=TensorProto.FLOAT)), 2, 2),
        ((first_step("Cast", ONE, to=TensorProto.INT32), first_step("Cast", ONE, to=TensorProto.INT32)), 1, 2),
        ((first_step("Pow", ZERO), first_step("Pow", ZERO.view(np.int32))), 2, 2),
    ],
)
def test_only_what_is_the_same_operation_on_the_same_values_is_shared(
    models: tuple[onnx.ModelProto, ...], nodes: int, constants: int
) -> None:
    source, made = (
        TensorSpec(name="x", dtype="FP32", dims=(3,)),
        TensorSpec(name="logits", dtype="FP32", dims=(3,)),
    )
    parts = [
        ReadMember(manifest_of(f"m{i}", "0" * 64, inputs=(source,), output=made), model)
        for i, model in enumerate(models)
    ]
    members = tuple(Member(name=f"m{i}", output="logits") for i in range(2))
    model = fused_model(Fusion(name="f", members=members, combine="mean_logit"), parts)
    x = np.array([[1.25, 2.5, 3.75]], np.float32)
    np.testing.assert_allclose(answers(model, x), sum(answers(one, x) for one in models) / 2)
    assert len(preprocess_nodes(model)) == nodes
    assert len([w for w in model.graph.initializer if "one" in w.name]) == constants
    assert {node.name for node in preprocess_nodes(model)} <= {"preprocess/image", "preprocess/m1/image"}


def test_image_members_become_one_member_on_disk(tmp_path: Path) -> None:
    add_image_member(tmp_path, "a", seed=1, side=12, max_batch_size=16, random_weights=True)
    add_image_member(tmp_path, "b", seed=2, side=16, max_batch_size=8)
    members = (Member(name="a", output="logits"), Member(name="b", output="logits"))
    manifest, _ = fuse(tmp_path, Fusion(name="both", members=members, combine="mean_prob"))
    assert (manifest.max_batch_size, manifest.random_weights, manifest.resolution_px) == (8, True, None)
    assert (manifest.output.name, manifest.output_kind) == ("probabilities", "probabilities")
    rows = varied_rows(IMAGE_INPUT, 20)
    together = LocalMembers(tmp_path, ["both"]).ask("both", rows)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    apart = [preprocess_macs_per_row(image_model(0, side)) for side in (12, 16)]
    assert manifest.preprocess_macs == sum(apart) > 0
    # Fusing what is fused already works as well.
    add_image_member(tmp_path, "c", seed=3, side=12)
    more = (Member(name="both", output="probabilities", weight=2), Member(name="c", output="logits"))
    again, _ = fuse(tmp_path, Fusion(name="three", members=more, combine="mean_prob"))
    assert again.parity["max_abs"] <= 1e-5
    model = onnx.load(tmp_path / "three" / "1" / "model.onnx")
    assert [node.op_type for node in preprocess_nodes(model)].count("Cast") == 1
