"""Which quantised layers need a processor with dot-product instructions, and that ours need none."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.parity import varied_rows
from export.precision.convert import int8_from
from export.precision.overflow import overflowing_parts, processor_flags_of
from export.runtimes import Question, answers_in_own_process
from orchestrator.rows.digits import digits_split
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, LARGEST_SAFE_WEIGHT
from tests.export.precision.test_convert import NETWORKS, REPOSITORY
from tests.export.small_networks import answers
from tests.onnx_models import array, model_of, node

EMULATOR = shutil.which("qemu-x86_64")


def pair_sums(data: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What vpmaddubsw gives: bytes times signed bytes, added in pairs, kept within 16 bits."""
    products = data.astype(np.int32) * weights.astype(np.int32)
    return np.clip(products.reshape(-1, 2).sum(axis=1), -32768, 32767)


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(-LARGEST_SAFE_WEIGHT, LARGEST_SAFE_WEIGHT)), min_size=2)
)
def test_seven_bit_weights_never_reach_the_end_of_16_bits(pairs: list[tuple[int, int]]) -> None:
    data, weights = np.array(pairs[: len(pairs) // 2 * 2], np.int32).T
    assert np.array_equal(pair_sums(data, weights), (data * weights).reshape(-1, 2).sum(axis=1))


def test_eight_bit_weights_do() -> None:
    data, weights = np.array([255, 255]), np.array([127, 127])
    assert pair_sums(data, weights)[0] == 32767 != (data * weights).sum()
    assert pair_sums(data, np.array([65, 65]))[0] == 32767


@pytest.mark.parametrize("name", list(NETWORKS))
def test_our_int8_needs_no_instruction_set_and_with_eight_bits_it_would(name: str) -> None:
    make, tensor = NETWORKS[name]
    rows = varied_rows(tensor, 32, seed=3)
    assert processor_flags_of(int8_from(make(), rows)) == ()
    assert processor_flags_of(int8_from(make(), rows, weight_bits=8)) == DOT_PRODUCT_FLAGS
    assert processor_flags_of(make()) == ()


def quantised_layer(weight: np.ndarray, *, data_too: bool = True, inside: bool = False) -> onnx.ModelProto:
    """x, in bytes or not, times a weight in bytes; on request inside the branch of an If."""
    constants = {
        "scale": np.float32(0.1),
        "zero": np.array(0, weight.dtype),
        "data_zero": np.int8(0),
        "bytes": weight,
    }
    nodes = [node("DequantizeLinear", ["bytes", "scale", "zero"], ["weight"])]
    data = "x"
    if data_too:
        nodes.append(node("QuantizeLinear", ["x", "scale", "data_zero"], ["q"]))
        nodes.append(node("DequantizeLinear", ["q", "scale", "data_zero"], ["data"]))
        data = "data"
    nodes.append(node("MatMul", [data, "weight"], ["y"], name="dense"))
    ends = {"x": ["n", weight.shape[0]]}, {"y": ["n", weight.shape[1]]}
    model = model_of(nodes, *ends, constants)
    if inside:
        branch = helper.make_graph(nodes, "branch", [], model.graph.output, initializer=model.graph.initializer)
        model = model_of(
            [node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)], *ends, {"yes": True}
        )
    return model


WIDE, NARROW = np.full((4, 3), -128, np.int8), np.full((4, 3), -64, np.int8)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (quantised_layer(WIDE), ("dense", "bytes")),
        (quantised_layer(NARROW), ()),
        (quantised_layer(np.full((4, 3), 255, np.uint8)), ()),
        (quantised_layer(WIDE, data_too=False), ()),
        (quantised_layer(WIDE, inside=True), ("dense", "bytes")),
    ],
    ids=["signed and wide", "seven bits", "unsigned", "weights alone", "inside a branch"],
)
def test_a_layer_overflows_by_its_weights_where_data_are_bytes_too(model: onnx.ModelProto, found: Any) -> None:
    assert overflowing_parts(model) == found


def image_layer(between: list[onnx.NodeProto], weight: np.ndarray, *, weight_too: bool = False) -> onnx.ModelProto:
    """x in bytes, nodes from "data" to "moved" behind it, and a Conv with a weight in bytes."""
    constants = {
        "scale": np.float32(0.1), "data_zero": np.uint8(0), "zero": np.int8(0), "bytes": weight,
        "start": [0], "end": [3], "ones": [1, 1, 1, 1], "pads": [0, 0, 1, 1, 0, 0, 1, 1],
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "scale", "data_zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "data_zero"], ["data"]),
        *between,
        node("DequantizeLinear", ["bytes", "scale", "zero"], ["weight"]),
        node("Relu" if weight_too else "Identity", ["weight"], ["kernel"]),
        node("Conv", ["moved", "kernel"], ["y"], name="conv"),
    ]
    return model_of(nodes, {"x": ["n", 2, 6, 6]}, {"y": None}, constants)


def chain(*steps: tuple[str, list[str], dict[str, Any]]) -> list[onnx.NodeProto]:
    names = ["data", *[f"step{index}" for index in range(1, len(steps))], "moved"]
    return [
        node(kind, [names[index], *more], [names[index + 1]], **settings)
        for index, (kind, more, settings) in enumerate(steps)
    ]


BETWEEN = {
    "MaxPool": chain(("MaxPool", [], {"kernel_shape": [2, 2]})),
    "Slice": chain(("Slice", ["start", "end", "start"], {})),
    "Pad": chain(("Pad", ["pads"], {})),
    "Cast": chain(("Cast", [], {"to": TensorProto.FLOAT16}), ("Cast", [], {"to": TensorProto.FLOAT})),
    "Dropout": chain(("Dropout", [], {})),
    "Expand": chain(("Expand", ["ones"], {})),
    "Sigmoid": chain(("Sigmoid", [], {})),
    "AveragePool": chain(("AveragePool", [], {"kernel_shape": [2, 2]})),
}


@pytest.mark.parametrize("weight_too", [False, True])
@pytest.mark.parametrize("name", list(BETWEEN))
def test_whatever_stands_between_bytes_and_a_layer_its_weights_count(name: str, weight_too: bool) -> None:
    wide = image_layer(BETWEEN[name], np.full((3, 2, 2, 2), 127, np.int8), weight_too=weight_too)
    assert "bytes" in overflowing_parts(wide)
    narrow = image_layer(BETWEEN[name], np.full((3, 2, 2, 2), 64, np.int8), weight_too=weight_too)
    assert overflowing_parts(narrow) == ()


def test_a_layer_inside_a_branch_finds_weights_and_data_of_the_graph_around_it() -> None:
    for weight, found in ((WIDE, ("dense", "bytes")), (NARROW, ())):
        model = quantised_layer(weight)
        *outer, dense = model.graph.node
        branch = helper.make_graph([dense], "branch", [], [model.graph.output[0]])
        del model.graph.node[:]
        model.graph.node.extend([*outer, node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)])
        model.graph.initializer.append(array(True, "yes"))
        assert overflowing_parts(model) == found


def test_weights_that_are_quantised_in_the_graph_count_as_stored_ones() -> None:
    model = quantised_layer(WIDE)
    weight = next(one for one in model.graph.initializer if one.name == "bytes")
    weight.CopyFrom(array(np.ones((4, 3), np.float32), "floats"))
    model.graph.node.insert(0, node("QuantizeLinear", ["floats", "scale", "zero"], ["bytes"]))
    assert "bytes" in overflowing_parts(model)
    del model.graph.node[2:4]  # the data's own bytes
    model.graph.node[2].input[0] = "x"
    assert overflowing_parts(model) == ()


@pytest.mark.parametrize(("zero", "found"), [(np.int8(0), ("product",)), (np.uint8(0), ())])
def test_two_computed_operands_overflow_where_the_second_is_signed(zero: Any, found: Any) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["data"]),
        node("Transpose", ["data"], ["turned"], perm=[0, 2, 1]),
        node("Dropout", ["turned"], ["kept"]),
        node("MatMul", ["data", "kept"], ["y"], name="product"),
    ]
    square = ["n", 4, 4]
    model = model_of(nodes, {"x": square}, {"y": square}, {"scale": np.float32(0.1), "zero": zero})
    assert overflowing_parts(model) == found


def test_operators_on_bytes_are_looked_at_by_their_weights() -> None:
    def integer_product(weight: np.ndarray) -> onnx.ModelProto:
        nodes = [
            node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            node("MatMulInteger", ["q", "bytes"], ["y"], name="product"),
        ]
        return model_of(nodes, {"x": ["n", 4]}, {"y": (TensorProto.INT32, ["n", 3])}, {"bytes": weight})

    assert overflowing_parts(integer_product(WIDE)) == ("product",)
    assert overflowing_parts(integer_product(NARROW)) == ()


def unsigned(model: onnx.ModelProto, rows: np.ndarray, folder: Path) -> onnx.ModelProto:
    """The form other tools choose for such processors: uint8 for weights and for activations."""
    onnx.save(model, str(folder / "fp32.onnx"))
    quant_pre_process(folder / "fp32.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
    quantize_static(folder / "prepared.onnx", folder / "uint8.onnx", Calibration(rows), **kinds)
    return onnx.load(str(folder / "uint8.onnx"))


class Calibration(CalibrationDataReader):
    def __init__(self, rows: np.ndarray) -> None:
        self.batches = iter([{"image": rows}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.mark.skipif(EMULATOR is None, reason="no qemu-x86_64 (apt-get install qemu-user): no processor to emulate")
def test_on_a_processor_without_dot_products_our_int8_answers_as_here_and_eight_bits_do_not(
    tmp_path: Path,
) -> None:
    """QEMU's processor has AVX2 and neither VNNI nor AVX-512; ONNX Runtime takes its kernels by that."""
    models = {name: (make(), varied_rows(tensor, 48, seed=3)) for name, (make, tensor) in NETWORKS.items()}
    digits = onnx.load(str(REPOSITORY / "digits_medium/1/model.onnx"))
    models["digits"] = digits, digits_split("train").images[:64].astype(np.float32)
    questions, here = [], []
    for name, (model, rows) in models.items():
        forms = {f"{bits} bits": int8_from(model, rows[:32], weight_bits=bits) for bits in (7, 8)}
        forms["uint8"] = unsigned(model, rows[:32], tmp_path)
        for form, made in forms.items():
            path = tmp_path / f"{name}, {form}.onnx"
            path.write_bytes(made.SerializeToString())
            questions.append(Question(model=path, rows=rows[32:48], batches={16: 16}))
            here.append(answers(made, rows[32:48]))
    assert EMULATOR is not None
    there = answers_in_own_process(questions, prefix=[EMULATOR, "-cpu", "max"])
    errors = {}
    for question, mine, theirs in zip(questions, here, there, strict=True):
        assert not isinstance(theirs, str), theirs
        errors[question.model.stem] = float(np.abs(theirs[16] - mine).max())
    eight = {name for name in errors if name.endswith("8 bits")}
    # A value halfway between two bytes may be rounded to either.
    assert all(error < 0.05 for name, error in errors.items() if name not in eight), errors
    assert any(errors[name] > 0.5 for name in eight), errors
