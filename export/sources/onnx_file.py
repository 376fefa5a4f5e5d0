"""An ONNX file that somebody already has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, version_converter
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from export.packing import MAX_IR_VERSION, OPSET
from export.parity import session_of
from export.sources.base import Asked, Identity, Loaded, Rows, member_name
from orchestrator.errors import ExportError
from orchestrator.repository.files import disk_errors, sha256_of_path

_TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
}
INPUT, OUTPUT = "image", "logits"


def identify_onnx(what: str, asked: Asked) -> Identity:
    """Which weights `onnx:<path>` means.

    Raises:
        ExportError: the file or one that holds its weights is missing, outside its folder, or not ONNX.
    """
    path, subject = Path(what), f"onnx:{what}"
    if not path.is_file():
        raise ExportError(subject, got="no such file", expected="an .onnx file")
    graph = _read(path, subject)
    try:
        files = [path, *_external(graph, path, subject)]
    except (ValueError, TypeError) as error:
        raise ExportError(
            subject, got=f"weights beside it that cannot be found ({error})", fix="copy or export it again"
        ) from error
    with disk_errors(subject):
        hashes = {file.name: sha256_of_path(file) for file in files}
    # No processing is asked for here: `load` says so with everything else that is wrong.
    return Identity(
        text=subject,
        name=member_name(path.name),
        files=hashes,
        load=lambda: _load(path, subject, asked),
        image_px=asked.image_px,
    )


def _read(path: Path, subject: str) -> onnx.ModelProto:
    with disk_errors(subject):
        try:
            model = onnx.load(str(path), load_external_data=False)
        except DecodeError as error:
            raise ExportError(
                subject, got="no ONNX model, or a part of one", fix="copy or export it again"
            ) from error
    if not model.graph.output or not model.graph.node:
        raise ExportError(subject, got="an ONNX model without outputs or nodes", fix="copy or export it again")
    return model


def _external(model: onnx.ModelProto, path: Path, subject: str) -> list[Path]:
    """Files beside the model that hold its weights; none may lie elsewhere, whoever wrote the model."""
    folder = path.parent.resolve()
    files = []
    for location in sorted(
        {str(ExternalDataInfo(t).location) for t in _tensors(model.graph) if uses_external_data(t)}
    ):
        file = (path.parent / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ExportError(
                subject, got=f"weights in {location}, outside its folder", expected="files beside it"
            )
        if not file.is_file():
            raise ExportError(
                subject, got=f"no file {location}, which holds its weights", fix="copy it beside the model"
            )
        files.append(file)
    return files


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += _tensors(attribute.g) if attribute.HasField("g") else []
    return found


def _load(path: Path, subject: str, asked: Asked) -> Loaded:
    model = _read(path, subject)
    try:
        load_external_data_for_model(model, str(path.parent))
        # By path, so that models over 2 GB, which protobuf cannot serialise, are checked too.
        onnx.checker.check_model(str(path), full_check=True)
    # The checker's and the shape inference's errors, a file cut short, and onnx's own refusals.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ExportError(
            subject, got=f"a model that is not whole ({first})", fix="copy or export it again"
        ) from error
    model = _at_pinned_opset(model, subject)
    dims, dtype = _input(model, subject)
    output = _output(model, subject, asked.output_name)
    _rename(model)
    processing = asked.processing(subject, channels=dims[0] if len(dims) == 3 else 3)
    if processing is not None and (len(dims) != 3 or dtype != "FP32"):
        raise ExportError(
            subject,
            got=f"input {dtype} {list(dims)}",
            expected="FP32 (channels, height, width) behind --mean and --std",
        )
    if asked.random_weights:
        raise ExportError(subject, got="--random-weights", expected="the weights of the file", fix="leave it out")
    return Loaded(
        proto=model,
        dims=dims,
        dtype=dtype,
        processing=processing,
        reference=_original(path, output, subject),
        versions={"producer": f"{model.producer_name} {model.producer_version}".strip()},
    )


def _at_pinned_opset(model: onnx.ModelProto, subject: str) -> onnx.ModelProto:
    """The model at the opset of all members; an older one that cannot be brought there stays, runtimes read it.

    Raises:
        ExportError: a newer one that cannot be brought there.
    """
    found = max((part.version for part in model.opset_import if part.domain in ("", "ai.onnx")), default=OPSET)
    if found != OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        # Whatever the converter's C++ side raises, and models over 2 GB, which it cannot take.
        except Exception as error:
            if found > OPSET:
                raise ExportError(
                    subject,
                    got=f"opset {found}, which cannot be brought to {OPSET}",
                    expected=f"opset {OPSET} or less, which the pinned runtimes read",
                    fix=f"export it again with opset {OPSET}",
                ) from error
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    return model


def _input(model: onnx.ModelProto, subject: str) -> tuple[tuple[int, ...], str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ExportError(subject, got=f"{len(inputs)} inputs ({names})", expected="one")
    kind = inputs[0].type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
    what = f"{subject} input {inputs[0].name}"
    if kind.elem_type not in _TYPES:
        raise ExportError(what, got=TensorProto.DataType.Name(kind.elem_type), expected=", ".join(_TYPES.values()))
    if len(sizes) < 2:
        raise ExportError(what, got=f"shape {sizes}", expected="a batch axis first, then the dims of a row")
    if sizes[0] >= 0:
        raise ExportError(
            what,
            got=f"a batch axis fixed at {sizes[0]}",
            expected="a free one",
            fix="export it again with a dynamic first axis",
        )
    if any(size < 1 for size in sizes[1:]):
        raise ExportError(what, got=f"dims {sizes[1:]}", expected="fixed sizes after the batch axis")
    kept = [value for value in model.graph.input if value.name == inputs[0].name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return tuple(sizes[1:]), _TYPES[kind.elem_type]


def _output(model: onnx.ModelProto, subject: str, wanted: str | None) -> str:
    names = [value.name for value in model.graph.output]
    if wanted is None and len(names) > 1:
        raise ExportError(
            subject, got=f"outputs {', '.join(names)}", expected="one", fix="choose with --output-name"
        )
    if wanted is not None and wanted not in names:
        raise ExportError(f"{subject} --output-name", got=wanted, expected=" or ".join(names))
    kept = [value for value in model.graph.output if value.name == (wanted or names[0])]
    rank = len(kept[0].type.tensor_type.shape.dim)
    if rank != 2:
        raise ExportError(f"{subject} output {kept[0].name}", got=f"{rank} axes", expected="2, rows and classes")
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return str(kept[0].name)


def _original(path: Path, output: str, subject: str) -> Callable[[Rows], Rows]:
    """The file as it came, under its own names, before anything was done to it."""
    session = session_of(path, subject)
    return lambda rows: session.run([output], {session.get_inputs()[0].name: rows})[0]


def _rename(model: onnx.ModelProto) -> None:
    """Gives input and output the names that all members share, so that requests are forwarded without a copy."""
    new = {model.graph.input[0].name: INPUT, model.graph.output[0].name: OUTPUT}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} - set(new)
    for name in taken & set(new.values()):
        new[name] = f"{name}_inner"
    _rename_in(model.graph, new)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = new.get(value.name, value.name)


def _rename_in(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = new.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_in(attribute.g, new)
