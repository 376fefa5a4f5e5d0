"""An existing ONNX file, brought to the form of a member; the original is kept to compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from export.compat import agree, at_common_opset, with_one_import
from export.images import IMAGE, PREFIX
from export.parity import session_of, varied_rows
from export.sources import ExportOptions, LoadedModel, Rows, SourceRef, member_name
from export.sources import onnx_tensors as tensors
from export.sources.onnx_several import FileInputs, takes_several
from export.sources.onnx_tensors import ADDED, FileInput, FileOutput
from export.tensor_rows import AnyRows, TensorRows
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs import editing
from orchestrator.graphs.editing import DEFAULT_DOMAINS, all_graphs, all_nodes, all_tensors, opset_of
from orchestrator.repository.files import disk_errors, sha256_of_path
from orchestrator.spec import TensorSpec
from orchestrator.spec.triton import runtime_of

INPUT, OUTPUT = "image", "logits"
# Rows that show what a file answers, and that a conversion is judged on; parity takes more.
_ROWS = 4
_AGAIN = "copy or export it again"
# Dynamic quantisation: their scale is that of the largest value in the batch.
_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


def identify_onnx(what: str, options: ExportOptions) -> SourceRef:
    """Which weights `onnx:<path>` means; ExportError where a file is missing, outside its folder, or not ONNX."""
    path, subject = Path(what), f"onnx:{what}"
    if not path.is_file():
        raise ExportError(subject, got="no such file", expected="an .onnx file")
    graph = _read(path, subject)
    try:
        files = [path, *_external(graph, path, subject)]
    except (ValueError, TypeError) as error:
        got = f"weights beside it that cannot be found ({error})"
        raise ExportError(subject, got=got, fix=_AGAIN) from error
    with disk_errors(subject):
        hashes = {file.name: sha256_of_path(file) for file in files}
    # No processing is asked for here: `load` says so with everything else that is wrong.
    return SourceRef(
        text=subject,
        name=member_name(path.name),
        files=hashes,
        load=lambda: load_onnx(path, subject, options, output_name=options.output_name),
        image_px=options.image_px,
    )


def _read(path: Path, subject: str) -> onnx.ModelProto:
    with disk_errors(subject):
        try:
            model = onnx.load(str(path), load_external_data=False)
        except DecodeError as error:
            raise ExportError(subject, got="no ONNX model, or a part of one", fix=_AGAIN) from error
    if not model.graph.output or not model.graph.node:
        raise ExportError(subject, got="an ONNX model without outputs or nodes", fix=_AGAIN)
    return model


def _external(model: onnx.ModelProto, path: Path, subject: str) -> list[Path]:
    """Files that hold a model's weights; a file outside the model's folder is refused."""
    folder = path.parent.resolve()
    files = []
    for location in sorted({ExternalDataInfo(t).location for t in all_tensors(model) if uses_external_data(t)}):
        file = (path.parent / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            got = f"weights in {location}, outside its folder"
            raise ExportError(subject, got=got, expected="files beside it")
        if not file.is_file():
            got = f"no file {location}, which holds its weights"
            raise ExportError(subject, got=got, fix="copy it beside the model")
        files.append(file)
    return files


def load_onnx(path: Path, subject: str, options: ExportOptions, *, output_name: str | None) -> LoadedModel:
    """The model of a file, whose scores are the output of that name; None where it has only one, or says which."""
    if options.random_weights:
        raise ExportError(subject, got="`random_weights`", expected="the weights of the file", fix="leave it out")
    model, session = _whole(path, subject)
    output = tensors.output_of(model, session.get_outputs(), output_name, subject)
    if takes_several(model, options):
        return _load_several(model, session, output, options, subject)
    source = tensors.input_of(model, options, subject)
    dims = source.member_dims
    processing = options.processing(subject, channels=dims[0] if len(dims) == 3 else 3)
    session = _asking(model, session, output, subject)
    rows = varied_rows(TensorSpec(name=INPUT, dtype=source.member_dtype, dims=dims), _ROWS, seed=3)

    def ask(rows: Rows) -> Any:
        """What the file as it came, under its own names, gives for the member's rows."""
        return session.run([output.name], {source.name: source.file_rows(rows)})[0]

    answer = _answer(ask, rows, subject=subject, name=output.name, dynamic=_dynamic(model))
    found = _facts(model, [source.name], output)
    keep = options.keep_opset
    brought, changes = _as_member(
        model, source, output, rows=rows, answer=answer, subject=subject, keep_opset=keep
    )
    return LoadedModel(
        proto=brought,
        dims=dims,
        dtype=source.member_dtype,
        processing=processing,
        labels=output.labels,
        reference=lambda rows: ask(rows).reshape(len(rows), -1),
        versions={"producer": f"{model.producer_name} {model.producer_version}".strip()},
        original={**found, "changes": changes},
    )


def _load_several(
    model: onnx.ModelProto, session: Any, output: FileOutput, options: ExportOptions, subject: str
) -> LoadedModel:
    source = FileInputs(model, options, subject)
    session = _asking(model, session, output, subject)
    rows = source.rows(_ROWS)

    def ask(rows: Any) -> Any:
        """What the file as it came, under its own names, gives for the member's rows."""
        return session.run([output.name], dict(source.file_rows(rows).arrays))[0]

    answer = _answer(ask, rows, subject=subject, name=output.name, dynamic=_dynamic(model))
    found = _facts(model, [kind.spec.name for kind in source.theirs], output)
    given = {name: value for value in model.graph.input if (name := value.name) in source.inside()}
    changes = _prepared(model, list(given.values()), output, answer)
    file_rows = source.file_rows(rows)
    brought, converted = at_common_opset(model, file_rows, subject=subject, keep_opset=options.keep_opset)
    inside = {**source.inside(), output.name: f"{ADDED}file_output"}
    ours = {kind.spec.name for kind in source.ours}
    editing.rename_tensors(brought.graph, inside, reserved={*ours, OUTPUT}, reserved_prefixes=(ADDED,))
    names = source.declare(brought.graph)
    tensors.adapt_output(brought.graph, inside[output.name], answer)
    editing.rename_tensors(brought.graph, {**names, brought.graph.output[0].name: OUTPUT})
    return LoadedModel(
        proto=brought,
        kinds=source.ours,
        longest=source.longest,
        labels=output.labels,
        reference=lambda rows: ask(rows).reshape(len(rows), -1),
        versions={"producer": f"{model.producer_name} {model.producer_version}".strip()},
        original={**found, "changes": [*changes, *converted, *source.changes(), *output.changes(answer)]},
    )


def _asking(model: onnx.ModelProto, session: Any, output: FileOutput, subject: str) -> Any:
    """A session of the file that gives the tensor with the scores, from then on the model's only output."""
    tensors.declare_output(model.graph, output.name)
    if output.name in [one.name for one in session.get_outputs()]:
        return session
    return session_of(_serialised(model, subject), subject)


def _dynamic(model: onnx.ModelProto) -> list[str]:
    return sorted({node.op_type for node in all_nodes(model)} & set(_DYNAMIC))


def _whole(path: Path, subject: str) -> tuple[onnx.ModelProto, Any]:
    """The model with its weights, and a session of the file as it came."""
    model = _read(path, subject)
    try:
        load_external_data_for_model(model, str(path.parent))
    # A file of weights cut short, places in it that are none, and onnx's own refusals.
    except Exception as error:
        raise _not_whole(subject, first_line(error)) from error
    fault = _fault(path)
    try:
        session = session_of(path, subject)
    except ExportError as error:
        _require_known(model, subject)
        if fault is None:
            raise
        raise _not_whole(subject, fault) from error
    if fault is not None:
        # ONNX Runtime is less strict: it takes nodes in any order, and overlooks what a file says of its shapes.
        editing.sorted_nodes(model.graph)
        for graph in (model.graph, *all_graphs(model.graph.node)):
            del graph.value_info[:]
    return model, session


def _fault(path: Path) -> str | None:
    """What the ONNX checker says against a file, None where it is content."""
    try:
        # By path, so that models over 2 GB, which protobuf cannot serialise, are checked too.
        onnx.checker.check_model(str(path), full_check=True)
    # The checker's and the shape inference's errors share no base.
    except Exception as error:
        return first_line(error)
    return None


def _not_whole(subject: str, fault: str) -> ExportError:
    return ExportError(subject, got=f"a model that is not whole ({fault})", fix=_AGAIN)


def _require_known(model: onnx.ModelProto, subject: str) -> None:
    """Raises ExportError where a file is newer than the ONNX Runtime that is installed."""
    version, opset = onnxruntime.__version__, opset_of(model) or 0
    runtime = runtime_of(version)
    if runtime is not None and (model.ir_version > runtime.ir_version or opset > runtime.opset):
        got = f"file version {model.ir_version} and opset {opset}"
        expected = f"at most {runtime.ir_version} and {runtime.opset}, as ONNX Runtime {version} reads"
        raise ExportError(subject, got=got, expected=expected, fix="export it again with opset 18")


def _serialised(model: onnx.ModelProto, subject: str) -> bytes:
    try:
        return model.SerializeToString()
    # Protobuf's error for more than 2 GB differs by version.
    except Exception as error:
        got, expected = "a tensor inside a model over 2 GB as output", "one of the file's own outputs"
        raise ExportError(subject, got=got, expected=expected) from error


def _answer(ask: Callable[[Any], Rows], rows: AnyRows, *, subject: str, name: str, dynamic: Sequence[str]) -> Rows:
    """What the file gives for some rows, (n, ...); `dynamic` are its operators that scale a batch as a whole.

    Refuses what are no scores, and other scores from time to time or from batch to batch.
    """
    what = f"{subject}, the original"
    try:
        answer, again = ask(rows), ask(rows)
        tensors.require_scores(answer, rows=len(rows), subject=subject, name=name)
        alone = np.concatenate([ask(rows[place : place + 1]) for place in range(len(rows))])
    except ExportError:
        raise
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        arrays = rows.arrays.values() if isinstance(rows, TensorRows) else [rows]
        shown = " and ".join(f"{one.dtype} {['n', *one.shape[1:]]}" for one in arrays)
        got = f"{first_line(error)} on made-up rows {shown}"
        raise ExportError(what, got=got, expected="scores (rows, classes)") from error
    expected, got, fix = "the same in any batch", "", ""
    if not agree(again, answer):
        got, expected = "other scores each time it is asked", "the same for the same rows"
        fix = "export it again without operators that draw random numbers"
    elif not agree(alone, answer):
        got = "other scores for a row alone than in a batch"
        fix = "export it again so that no operator works across the batch axis"
        if dynamic:
            got += f", which {' and '.join(dynamic)} scales as a whole"
            fix = (
                "quantise it statically: export its fp32 form, then `python -m export precision MEMBER --to int8`"
            )
    if got:
        raise ExportError(what, got=got, expected=expected, fix=fix)
    return answer


def _facts(model: onnx.ModelProto, inputs: Sequence[str], output: FileOutput) -> dict[str, Any]:
    """Facts about the file as it came."""
    used = {node.domain for node in all_nodes(model)}
    parts = [part for part in model.opset_import if part.domain in used]
    opsets = {"ai.onnx" if part.domain in DEFAULT_DOMAINS else part.domain: part.version for part in parts}
    return {"ir_version": model.ir_version, "opsets": opsets, "input": ", ".join(inputs), "output": output.asked}


def _as_member(
    model: onnx.ModelProto,
    source: FileInput,
    output: FileOutput,
    *,
    rows: Rows,
    answer: Rows,
    subject: str,
    keep_opset: bool,
) -> tuple[onnx.ModelProto, list[str]]:
    """The network with the tensors that all members share, and what was changed, in words."""
    given = [value for value in model.graph.input if value.name == source.name]
    changes = _prepared(model, given, output, answer)
    brought, converted = at_common_opset(model, source.file_rows(rows), subject=subject, keep_opset=keep_opset)
    graph = brought.graph
    # An exported member has the exporter's image processing already; other files only use its names by chance.
    ours = source.dtype == "UINT8" and any(IMAGE in node.output for node in graph.node)
    inside = {source.name: f"{ADDED}file_input", output.name: f"{ADDED}file_output"}
    editing.rename_tensors(
        graph, inside, reserved={INPUT, OUTPUT}, reserved_prefixes=(ADDED,) if ours else (ADDED, PREFIX)
    )
    source.adapt(graph, inside[source.name])
    tensors.adapt_output(graph, inside[output.name], answer)
    # Requests are forwarded without a copy where all members use the same names.
    editing.rename_tensors(graph, {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT})
    return brought, [*changes, *converted, *source.changes(), *output.changes(answer)]


def _prepared(
    model: onnx.ModelProto, given: Sequence[onnx.ValueInfoProto], output: FileOutput, answer: Rows
) -> list[str]:
    """Leaves a model, in place, the inputs that are given and what the scores need; says what else was changed."""
    kept = list(given)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    tensors.declare_output(model.graph, output.name, answer)
    dense = editing.make_dense(model.graph)
    editing.keep_needed(model.graph)
    with_one_import(model)
    return [f"{dense} sparse weight{'s' * (dense > 1)} made dense"] if dense else []
