"""A framework model as an ONNX model with a dynamic batch axis."""

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from export.members import EXTERNAL_OVER_BYTES
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs.combining import IR_VERSION, OPSET


def onnx_from_torch(
    model: nn.Module,
    example: torch.Tensor | Mapping[str, torch.Tensor],
    *,
    varying: Collection[str] = (),
    input_name: str = "image",
    output_name: str = "logits",
) -> onnx.ModelProto:
    """The model as ONNX, checked, without the exporter's notes; weights of any size are in it.

    The model is in evaluation mode and has one tensor out. Examples of several tensors are by their names, in the
    model's order; the first axis behind the batch is free for those that are `varying`. An example has at least
    two rows, and a length of at least two, so that neither axis is taken for a constant 1.

    Raises:
        ExportError: the exporter cannot put the model into a graph.
    """
    tensors = example if isinstance(example, Mapping) else {input_name: example}
    with tempfile.TemporaryDirectory(prefix="committee-export-") as folder:
        # Through a file: a model over 2 GB cannot be serialised in one piece, and its checker wants a path.
        path = Path(folder) / "model.onnx"
        with _quiet():
            program = _exported(model, tensors, varying, output_name)
            size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
            program.save(str(path), external_data=size > EXTERNAL_OVER_BYTES)
        proto = onnx.load(str(path))
        for weight in proto.graph.initializer:
            # Loading sets data_location on every tensor, which would make equal models differ.
            weight.ClearField("data_location")
        proto.ir_version = min(proto.ir_version, IR_VERSION)
        _strip_notes(proto)
        onnx.checker.check_model(str(path), full_check=True)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: it logs what it then handles or raises, and prints graphs that it cannot follow."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)


def require_answer(model: nn.Module, *example: torch.Tensor) -> None:
    """Raises ExportError where a network fails on an input or gives no scores: shorter than the exporter's."""
    shapes = [" x ".join(map(str, one.shape[1:])) for one in example]
    try:
        with torch.inference_mode():
            said = model(*example)
    # Whatever the network raises on an input it cannot take.
    except Exception as error:
        raise ExportError(
            "the network",
            got=f"{type(error).__name__}: {first_line(error)}",
            expected=f"an answer to rows of {' and '.join(shapes)}",
            fix="choose another `resolution_px` or `dims`" if len(example) == 1 else None,
        ) from error
    if not isinstance(said, torch.Tensor) or said.ndim != 2 or len(said) != len(example[0]):
        got = f"shape {list(said.shape)}" if isinstance(said, torch.Tensor) else type(said).__name__
        raise ExportError("the network's output", got=got, expected="one tensor (rows, classes)")


def _exported(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], varying: Collection[str], output_name: str
) -> torch.onnx.ONNXProgram:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple({0: batch, 1: length} if name in varying else {0: batch} for name in tensors)
    # A model that takes any number of tensors has one argument for all of them.
    starred = any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(model.forward).parameters.values())
    try:
        program = torch.onnx.export(
            model,
            tuple(tensors.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(tensors),
            output_names=[output_name],
            dynamic_shapes=(shapes,) if starred else shapes,
            optimize=True,
            verbose=False,
        )
    # The exporter's errors and whatever the model itself raises; their text can be pages long.
    except Exception as error:
        cause = error.__cause__ or error
        raise ExportError(
            "export to ONNX",
            got=f"{type(cause).__name__}: {first_line(cause)}",
            expected="a network that torch.export can follow, with a free batch axis",
            fix="make its shapes and branches independent of the values",
        ) from error
    assert program is not None
    return program


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Removes stack traces and comments: they name the exporter's machine and make equal models differ."""
    graph = proto.graph
    parts: tuple[Any, ...] = (
        proto,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    )
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


# Rows that go through the network together while statistics are taken; EfficientNet-B7 needs about 0.3 GB a row.
_CHUNK = 4
_TARGET = 0.5


def spread_scores(network: nn.Module, *rows: np.ndarray[Any, Any], seed: int = 0) -> dict[str, float]:
    """Changes a network in place so that its top probabilities spread; returns their quantiles.

    The network, in evaluation mode before and after, gives logits of what it takes: one array of at least 16
    varied rows per argument, float32 (n, c, h, w) of images. Raises ExportError where it has no linear head, or
    answers every row alike.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in rows]
    parts = list(zip(*(torch.split(one, _CHUNK) for one in tensors), strict=True))
    torch.manual_seed(seed)
    for module in network.modules():
        # Convolutions with a bias are not normalised, such as the gates of squeeze-and-excitation. Drawn wide they
        # saturate, and gates that are open or shut in every block leave one row with all the signal.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight)
    _learn_statistics(network, parts)
    head = _head(network)
    with torch.inference_mode():
        logits = torch.cat([network(*part) for part in parts]).double()
    centred = logits - logits.mean(dim=0)
    if not torch.isfinite(centred).all() or centred.abs().max() < 1e-6:
        raise ExportError("random weights", got="the same answer for every row", fix="try another `seed`")
    scale = _scale(centred)
    with torch.no_grad():
        # logits' = scale * (logits - mean): the weights take the scale, the bias the shift.
        head.weight.mul_(scale)
        assert head.bias is not None
        old = head.bias.double()
        head.bias.copy_(((old - logits.mean(dim=0)) * scale).to(head.bias.dtype))
    top = torch.softmax(centred * scale, dim=1).max(dim=1).values
    return {f"q{round(100 * q):02d}": round(float(torch.quantile(top, q)), 4) for q in (0.05, 0.5, 0.95)}


def _scale(centred: torch.Tensor) -> float:
    """The factor at which the median top probability is _TARGET."""

    def falls_short(scale: float) -> bool:
        return float(torch.softmax(centred * scale, dim=1).max(dim=1).values.median()) < _TARGET

    low, high = 0.0, 1.0
    while falls_short(high) and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if falls_short(middle) else (low, middle)
    return high


def _learn_statistics(network: nn.Module, parts: Sequence[tuple[torch.Tensor, ...]]) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        # Resets scale and shift too: some libraries draw them near zero, and the signal dies.
        norm.reset_parameters()
        # With None the statistics are the mean over all batches.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for part in parts:
            network(*part)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def _head(network: nn.Module) -> nn.Linear:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ExportError("random weights", got="a network without a linear head", expected="a classifier")
    head = linear[-1]
    if head.bias is None:
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    return head
