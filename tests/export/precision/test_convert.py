import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from export.images import PREFIX
from export.parity import varied_rows
from export.precision.convert import (
    agreement_of,
    fp16_from,
    int8_from,
    rounding_from,
    tiny_weights_of,
    wilson_ci95,
)
from orchestrator.errors import ExportError
from orchestrator.rows.digits import digits_split
from orchestrator.spec import TensorSpec
from tests.export.small_networks import (
    IMAGE_INPUT,
    Builder,
    answers,
    attention_network,
    conv_network,
    image_model,
    with_output,
)

REPOSITORY = Path(__file__).parents[3] / "model_repository"
TOKENS = TensorSpec(name="image", dtype="FP32", dims=(6, 8))
PLANES = TensorSpec(name="image", dtype="FP32", dims=(3, 12, 12))
NETWORKS = {
    "convolutions": (conv_network, PLANES),
    "attention": (attention_network, TOKENS),
    "image": (image_model, IMAGE_INPUT),
}
IMAGES = pytest.mark.parametrize("name", list(NETWORKS))


def data(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def converted(name: str, to: str) -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]:
    make, tensor = NETWORKS[name]
    rows = varied_rows(tensor, 48, seed=3)
    model = make()
    return model, fp16_from(model) if to == "fp16" else int8_from(model, rows[:32]), rows


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


@IMAGES
@pytest.mark.parametrize("to", ["fp16", "int8"])
def test_the_converted_model_is_valid_keeps_its_face_and_is_the_same_every_time(name: str, to: str) -> None:
    before = data(NETWORKS[name][0]())
    model, made, rows = converted(name, to)
    onnx.checker.check_model(made, full_check=True)
    assert data(model) == before
    assert data(made) == data(converted(name, to)[1])
    for side in ("input", "output"):
        old, new = getattr(model.graph, side), getattr(made.graph, side)
        faces = [[(v.name, v.type.tensor_type.elem_type) for v in values] for values in (old, new)]
        assert faces[0] == faces[1]
    assert made.ir_version <= 10
    assert [(part.domain, part.version) for part in made.opset_import] == [("", 18)]
    assert answers(made, rows[:1]).dtype == np.float32
    agreed = agreement_of(data(made), data(model), rows)
    assert agreed.rows == 48
    assert 0 < agreed.max_abs < (0.02 if to == "fp16" else 0.6)


@pytest.mark.parametrize("to", ["fp16", "int8"])
def test_image_processing_gives_the_same_bits_in_every_precision(to: str) -> None:
    model, made, rows = converted("image", to)
    image = f"{PREFIX}image"
    pair = [answers(with_output(m, image), rows, image) for m in (model, made)]
    np.testing.assert_array_equal(*pair)
    assert pair[0].dtype == np.float32


def test_half_precision_halves_the_weights_of_the_network_only() -> None:
    model, half, _ = converted("image", "fp16")
    old, new = initializers(model), initializers(half)
    for name, value in new.items():
        expected = np.float32 if name.startswith(PREFIX) else np.float16
        assert value.dtype == (expected if old[name].dtype == np.float32 else old[name].dtype), name


def test_nodes_with_constants_that_half_precision_cannot_hold_stay_fp32() -> None:
    # Squares of 1e-5 are nothing in half precision, so 1e-12 beside them must stay what it is.
    b = Builder([4])
    small = b.op("Mul", b.last, b.weight([1e-12]))
    b.op("Mul", b.op("Mul", small, b.weight([1e30])), b.weight([1e-18]))
    b.op("MatMul", b.op("Clip", b.last, b.weight(-1e30), b.weight(1e30)), b.random(4, 5))
    model = b.model()
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.testing.assert_allclose(answers(fp16_from(model), rows), answers(model, rows), atol=2e-3)


def test_weights_beyond_half_precision_are_refused_by_name() -> None:
    b = Builder([4])
    b.op("MatMul", b.last, b.weight(np.full((4, 5), 7e4)))
    with pytest.raises(ExportError, match=r"weight_0 up to 70000.*at most 65504.*keep this member in fp32"):
        fp16_from(b.model())


def test_weights_too_small_for_half_precision_are_counted() -> None:
    b = Builder([4])
    b.op("MatMul", b.last, b.weight([[1e-9, 0, 1, 1e-8, -1e-9]] * 4))
    assert tiny_weights_of(b.model()) == 12


def test_values_that_overflow_inside_the_network_are_told_from_small_differences() -> None:
    b = Builder([4])
    b.op("MatMul", b.op("Mul", b.last, b.weight([6e4])), b.random(4, 5))
    b.op("Mul", b.last, b.weight([1e-4]))
    model = b.model()
    rows = np.ones((6, 4), np.float32)
    rows[0] = 100
    with pytest.raises(ExportError, match=r"NaN or infinity on \d of 6 rows.*keep it in fp32"):
        agreement_of(data(rounding_from(fp16_from(model))), data(model), rows * 30)


@pytest.mark.parametrize("name", ["digits_small", "digits_medium", "digits_large"])
def test_digits_members_keep_their_top_1(name: str) -> None:
    path = REPOSITORY / name / "1" / "model.onnx"
    model, rows = onnx.load(path), digits_split("plan").images
    half = agreement_of(data(rounding_from(fp16_from(model))), path, rows)
    byte = agreement_of(data(int8_from(model, digits_split("train").images[:200])), path, rows)
    assert half.same_top1 == 1
    assert byte.same_top1 >= 0.995
    assert half.mean_abs < byte.mean_abs / 5
    assert byte.same_top1_ci95[0] < byte.same_top1 <= byte.same_top1_ci95[1]


@IMAGES
def test_int8_is_what_tensorrt_reads(name: str) -> None:
    made = converted(name, "int8")[1]
    weights = initializers(made)
    scales = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert scales
    for node in scales:
        zero = weights[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    # Biases are no outputs of DequantizeLinear.
    assert not [name for name, value in weights.items() if value.dtype == np.int32]
    assert all(node.domain == "" for node in made.graph.node)


@IMAGES
def test_int8_leaves_alone_what_must_not_be_quantised(name: str) -> None:
    made = converted(name, "int8")[1]
    makers = {output: node for node in made.graph.node for output in node.output}
    weights = initializers(made)

    def quantised(node: onnx.NodeProto) -> bool:
        found = [makers[one].op_type == "DequantizeLinear" for one in node.input[:2] if one in makers]
        return len(found) == 2 and all(found)

    layers = [node for node in made.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    chosen = [node for node in layers if quantised(node)]
    assert len(chosen) == {"convolutions": 2, "image": 2, "attention": 3}[name]
    assert not quantised(layers[-1])
    for node in layers:
        from_weights = [makers[one].input[0] for one in node.input[1:2] if one in makers and node in chosen]
        assert all(source in weights and weights[source].dtype == np.int8 for source in from_weights)
    assert not [node for node in chosen if node.name.startswith(PREFIX)]
    for node in chosen:
        scale = weights[makers[node.input[1]].input[1]]
        kernel = weights[makers[node.input[1]].input[0]]
        axis = 1 if node.op_type == "MatMul" else 0
        assert scale.shape == (kernel.shape[axis],)
        found = next(part.i for part in makers[node.input[1]].attribute if part.name == "axis")
        assert found % kernel.ndim == axis


def test_batch_normalisation_goes_into_the_convolution_before_int8() -> None:
    assert "BatchNormalization" in [node.op_type for node in conv_network().graph.node]
    assert "BatchNormalization" not in [node.op_type for node in converted("convolutions", "int8")[1].graph.node]


def test_int8_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    int8_from(attention_network(), varied_rows(TOKENS, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_lower_precision_is_not_converted_again() -> None:
    model, half, rows = converted("convolutions", "fp16")
    byte = int8_from(model, rows)
    for made, word in ((half, "half-precision"), (byte, "quantised")):
        with pytest.raises(ExportError, match=word):
            fp16_from(made)
        with pytest.raises(ExportError, match=word):
            int8_from(made, rows)


def test_a_model_too_large_for_the_tools_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.precision.convert.EXTERNAL_OVER_BYTES", 100)
    for convert in (fp16_from, lambda model: int8_from(model, varied_rows(PLANES, 2))):
        with pytest.raises(ExportError, match="GB of weights"):
            convert(conv_network())


def test_calibration_rows_must_fit_and_be_numbers_and_something_must_be_quantised() -> None:
    rows = varied_rows(TOKENS, 4)
    rows[1] = np.nan
    for wrong, says in ((rows, "calibration rows: got NaN"), (np.zeros((4, 3, 5), np.float32), "^int8")):
        with pytest.raises(ExportError, match=says):
            int8_from(attention_network(), wrong)
    b = Builder([5])
    b.op("Mul", b.last, b.weight([2.0]))
    with pytest.raises(ExportError, match="no convolution or dense layer"):
        int8_from(b.model(), varied_rows(TensorSpec(name="image", dtype="FP32", dims=(5,)), 4))


def test_a_network_of_one_layer_has_that_layer_quantised() -> None:
    b = Builder([4])
    b.op("MatMul", b.last, b.random(4, 5))
    made = int8_from(b.model(), varied_rows(TensorSpec(name="image", dtype="FP32", dims=(4,)), 16))
    assert [node.op_type for node in made.graph.node].count("QuantizeLinear") >= 1


@given(st.integers(1, 4000), st.floats(0, 1))
def test_the_interval_of_a_share_holds_the_share_and_stays_a_share(rows: int, share: float) -> None:
    hits = round(share * rows)
    low, high = wilson_ci95(hits, rows)
    assert 0 <= low <= hits / rows <= high <= 1
    assert high - low < 2 / np.sqrt(rows)


def test_the_interval_is_wilsons() -> None:
    stats = pytest.importorskip("scipy.stats")
    for hits, rows in ((10, 10), (96, 100), (0, 7), (449, 450)):
        expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
        assert wilson_ci95(hits, rows) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_float16_of_an_unrelated_type_is_left_as_it_is() -> None:
    b = Builder([4])
    index = b.op("ArgMax", b.last, axis=1, keepdims=1)
    b.op("MatMul", b.op("Cast", index, to=TensorProto.FLOAT), b.random(1, 5))
    model = b.model()
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.testing.assert_allclose(answers(fp16_from(model), rows), answers(model, rows), atol=5e-3)


def test_a_weight_that_two_normalisations_share_is_cast_once() -> None:
    b = Builder([6, 8])
    scale, shift = b.weight(np.ones(8)), b.weight(np.zeros(8))
    b.op("LayerNormalization", b.last, scale, shift, axis=-1)
    b.op("MatMul", b.last, b.random(8, 8))
    b.op("Mul", b.last, scale)  # in half precision, so that the weight itself is
    b.op("LayerNormalization", b.last, scale, shift, axis=-1)
    b.op("ReduceMean", b.last, b.weight([1], np.int64), keepdims=0)
    b.op("MatMul", b.last, b.random(8, 5))
    model, rows = b.model(), varied_rows(TOKENS, 16)
    made = fp16_from(model)
    outputs = [output for node in made.graph.node for output in node.output]
    assert len(outputs) == len(set(outputs))
    assert np.abs(answers(made, rows) - answers(model, rows)).max() < 0.02
