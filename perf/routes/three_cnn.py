"""Three plain convolutional networks with random weights, sized to about 0.15, 2 and 12 ms per row on one core.

Random weights are given a head whose top probability spreads over the rows, so that thresholds can impose any
exit mix. What the networks answer means nothing; what they cost does.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from export.cost.counting import COUNTER, macs_per_row, parameters_of
from export.members import MODEL_FILE, write_member
from export.parity import varied_rows
from orchestrator.decision import softmax
from orchestrator.errors import DataError
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec
from perf.harness.machine import write_json
from perf.routes.scenario import Recipe, imposed_cascade
from perf.routes.spec import Rows, Scenario

CLASSES = 10
IMAGE = TensorSpec(name="image", dtype="FP32", dims=(3, 32, 32))
OPSET, IR_VERSION = 18, 10
# 70 % of the rows exit at the first member, 15 % at the second.
EXIT_SHARE = (0.70, 0.15)
_HEAD_ROWS = 512
_ROWS_SEED = 20_000_000
# The head is scaled until the median top probability of the rows is this.
_MEDIAN_TOP = 0.5
_LARGEST_MS = 12.0
# Half powers of two, so that two measurements of one machine nearly always choose the same factor.
FACTORS = tuple(2.0 ** (half / 2) for half in range(-8, 9))
_CHANNELS = 8  # channels are a multiple of this, as many float32 as a vector register holds
_WARM_RUNS, _RUNS = 5, 25


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: 3x3 convolutions of (channels, stride) with ReLU, global average pooling, a linear head."""

    name: str
    layers: tuple[tuple[int, int], ...]
    seed: int


# Sizes by measurement: on the machine they were chosen on, ONNX Runtime does about 52 million multiply-accumulates
# per ms on one core, whatever the batch. On others they are made wider or narrower, to take as long there.
NETWORKS = (
    Network(name="cnn_small", layers=((24, 1), (56, 2), (64, 2), (64, 1)), seed=1),
    Network(name="cnn_medium", layers=((64, 1), (120, 2), (120, 1), (240, 2), (240, 1)), seed=2),
    Network(
        name="cnn_large", layers=((112, 1), (232, 2), (232, 1), (232, 1), (464, 2), (464, 1), (464, 1)), seed=3
    ),
)


def three_cnn(networks: Sequence[Network] = NETWORKS, *, pool: int = 8192, recorded: int = 1024) -> Recipe:
    """The scenario of networks in stage order, of which smaller ones make a quick test.

    The thresholds are taken from the first `recorded` rows of a pool that has 997 that all reach the last stage.
    """
    scenario = Scenario(
        name="three_cnn",
        title="three CNNs of about 0.15, 2 and 12 ms per row, random weights",
        members=tuple(network.name for network in networks),
        imposed=True,
    )
    return Recipe(
        scenario=scenario,
        pool=pool,
        make=partial(_make, networks=networks, recorded=recorded),
        rows_at=rows_at,
        settings=repr((networks, recorded)),
    )


def sized_three_cnn() -> Recipe:
    """The scenario with networks as wide as this machine needs; it is measured when they are made."""
    return replace(three_cnn(), fitted=_fitted)


def _fitted(cache: Path) -> Recipe:
    factor = kept_factor(cache / "three_cnn-size.json", _largest_ms, wanted_ms=_LARGEST_MS)
    networks = [
        replace(one, layers=tuple((widened(channels, factor), stride) for channels, stride in one.layers))
        for one in NETWORKS
    ]
    return three_cnn(NETWORKS if factor == 1 else tuple(networks))


def _largest_ms() -> float:
    large = NETWORKS[-1]
    return ms_per_row(_session(_model(large, _kernels(large, np.random.default_rng(large.seed)))))


def rows_at(numbers: Sequence[int]) -> Rows:
    """Rows by number, float32 (n, 3, 32, 32)."""
    return np.concatenate([varied_rows(IMAGE, 1, seed=_ROWS_SEED + number) for number in numbers])


def _make(repository: Path, *, networks: Sequence[Network], recorded: int) -> CascadeSpec:
    for network in networks:
        model = network_model(network)
        data = model.SerializeToString(deterministic=True)
        write_member(repository, data, _manifest(network, model, data))
    names = [network.name for network in networks]
    return imposed_cascade(repository, names, rows_at, name="committee", recorded=recorded, exit_share=EXIT_SHARE)


def network_model(network: Network) -> onnx.ModelProto:
    """The network with a head that answers like a trained one: some rows surely, others not."""
    rng = np.random.default_rng(network.seed)
    kernels = _kernels(network, rng)
    # Negative numbers, so that no row of the pool is among those the head is fitted on.
    rows = np.concatenate([varied_rows(IMAGE, 1, seed=_ROWS_SEED - 1 - index) for index in range(_HEAD_ROWS)])
    session = _session(_model(network, kernels))
    pooled = np.concatenate([session.run(None, {IMAGE.name: part})[0] for part in np.split(rows, 8)])
    return _model(network, kernels, _head(pooled.astype(np.float64), rng))


# Weights float32 (c, k) and bias float32 (k,).
Head = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def _head(pooled: npt.NDArray[np.float64], rng: np.random.Generator) -> Head:
    """From what reaches the head, float64 (n, c)."""
    centre, width = pooled.mean(axis=0), pooled.std(axis=0) + 1e-6
    weights = rng.normal(size=(pooled.shape[1], CLASSES)) / width[:, None]
    logits = (pooled - centre) @ weights
    low, high = 0.0, 1.0

    def is_unsure(scale: float) -> bool:
        return bool(np.median(softmax((logits * scale).astype(np.float32)).max(axis=1)) < _MEDIAN_TOP)

    while is_unsure(high):
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if is_unsure(middle) else (low, middle)
    weights *= high
    return weights.astype(np.float32), (-centre @ weights).astype(np.float32)


def _kernels(network: Network, rng: np.random.Generator) -> list[npt.NDArray[np.float32]]:
    sizes = [IMAGE.dims[0], *(channels for channels, _ in network.layers)]
    return [
        (rng.normal(size=(into, before, 3, 3)) * np.sqrt(2 / (9 * before))).astype(np.float32)
        for before, into in itertools.pairwise(sizes)
    ]


def _model(
    network: Network, kernels: Sequence[npt.NDArray[np.float32]], head: Head | None = None
) -> onnx.ModelProto:
    """The network with a head, or without one, ending in the features."""
    nodes: list[Any] = []
    weights = [numpy_helper.from_array(kernel, f"kernel_{index}") for index, kernel in enumerate(kernels)]
    last = IMAGE.name
    for index, (_, stride) in enumerate(network.layers):
        given, steps = [last, f"kernel_{index}"], [stride, stride]
        last = f"relu_{index}"
        nodes.append(helper.make_node("Conv", given, [f"conv_{index}"], pads=[1, 1, 1, 1], strides=steps))
        nodes.append(helper.make_node("Relu", [f"conv_{index}"], [last]))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    result, size = "features", network.layers[-1][0]
    if head is not None:
        weights += [
            numpy_helper.from_array(value, name) for name, value in zip(("head", "bias"), head, strict=True)
        ]
        nodes.append(helper.make_node("Gemm", ["features", "head", "bias"], ["logits"]))
        result, size = "logits", CLASSES
    source = helper.make_tensor_value_info(IMAGE.name, TensorProto.FLOAT, ["batch", *IMAGE.dims])
    made = helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", size])
    graph = helper.make_graph(nodes, network.name, [source], [made], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    model: onnx.ModelProto = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    return model


def _manifest(network: Network, model: onnx.ModelProto, data: bytes) -> Manifest:
    return Manifest(
        name=network.name,
        file=MODEL_FILE,
        sha256=hashlib.sha256(data).hexdigest(),
        source=f"random convolutional network of the bench, seed {network.seed}",
        precision="fp32",
        opset=OPSET,
        inputs=(IMAGE,),
        output=TensorSpec(name="logits", dtype="FP32", dims=(CLASSES,)),
        output_kind="logits",
        parameters=parameters_of(model),
        macs=macs_per_row(model),
        macs_counter=COUNTER,
        random_weights=True,
        versions={"onnx": onnx.__version__},
    )


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def factor_of(measured_ms: float, wanted_ms: float) -> float:
    """The factor on multiply-accumulates, of FACTORS, that brings a measured time nearest to the wanted one."""
    return min(FACTORS, key=lambda factor: abs(math.log(wanted_ms / measured_ms / factor)))


def widened(channels: int, factor: float) -> int:
    """Channels that multiply a convolution's work by a factor, where the layers around it are widened alike."""
    return max(_CHANNELS, _CHANNELS * round(channels * math.sqrt(factor) / _CHANNELS))


def ms_per_row(session: onnxruntime.InferenceSession) -> float:
    """Milliseconds a network takes for a single row, the median of 25 runs."""
    (image,) = session.get_inputs()
    row = np.random.default_rng(0).random((1, *image.shape[1:]), np.float32)
    took = []
    for _ in range(_WARM_RUNS + _RUNS):
        start_s = time.perf_counter()
        session.run(None, {image.name: row})
        took.append(1000 * (time.perf_counter() - start_s))
    return float(np.median(took[_WARM_RUNS:]))


def kept_factor(path: Path, measure_ms: Callable[[], float], *, wanted_ms: float) -> float:
    """The factor for this machine, measured the first time and kept beside what is made with it.

    With another ONNX Runtime, or another wish for the time of a row, it is measured anew.

    Raises:
        DataError: the file holds something else.
    """
    if path.is_file():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["onnxruntime"] == onnxruntime.__version__ and kept["wanted_ms"] == wanted_ms:
                return FACTORS[FACTORS.index(kept["factor"])]
        except (ValueError, KeyError, TypeError) as error:
            got, fix = f"{type(error).__name__}: {error}", "remove it; the machine is measured again"
            raise DataError(str(path), got=got, expected="a factor", fix=fix) from error
    measured_ms = measure_ms()
    factor = factor_of(measured_ms, wanted_ms)
    document = {"factor": factor, "measured_ms": measured_ms, "wanted_ms": wanted_ms}
    write_json({**document, "onnxruntime": onnxruntime.__version__}, path)
    return factor
