"""A repository that is in order, and every way to spoil it that the check must report."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from orchestrator.repository.check import CheckReport
from orchestrator.repository.render import ensemble_from_cascade, render, render_ensemble
from orchestrator.spec import CascadeSpec
from tests.repository.builders import add_member, linear_model, spec_of

Spoil = Callable[[Path], object]


def build(repository: Path) -> CascadeSpec:
    """Two members, a cascade of them and their ensemble."""
    spec = spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2))
    render(spec, repository)
    render_ensemble(ensemble_from_cascade(spec, "together"), repository)
    return spec


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new, 1))


def add(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def edit_plan(repository: Path, change: Callable[[dict], object]) -> None:
    path = repository / "cascade" / "1" / "cascade.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2))


def has(report: CheckReport, model: str, field: str, *words: str, notes: bool = False) -> bool:
    found = report.notes if notes else report.faults
    return any(
        one.model == model and one.field == field and all(word in one.text for word in words) for one in found
    )


def free_classes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a class axis that neither its output nor its operators fix."""
    graph = model.graph
    graph.node[0].output[0] = "before"
    graph.node.append(onnx.helper.make_node("Shape", ["before"], ["shape"]))
    graph.node.append(onnx.helper.make_node("Reshape", ["before", "shape"], ["logits"]))
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    return model


def gone(path: str) -> Spoil:
    return lambda r: shutil.rmtree(r / path) if (r / path).is_dir() else (r / path).unlink()


def written(path: str, content: str | bytes) -> Spoil:
    return lambda r: (r / path).write_bytes(content.encode() if isinstance(content, str) else content)


def edited(path: str, old: str, new: str) -> Spoil:
    return lambda r: edit(r / path, old, new)


def added(path: str, line: str) -> Spoil:
    return lambda r: add(r / path, line)


def planned(**changes: object) -> Spoil:
    return lambda r: edit_plan(r, lambda value: value.update(changes))


def first_member(**changes: object) -> Spoil:
    return lambda r: edit_plan(r, lambda value: value["stages"][0]["members"][0].update(changes))


def small_is(model: onnx.ModelProto) -> Spoil:
    return lambda r: (r / "small" / "1" / "model.onnx").write_bytes(model.SerializeToString())


def with_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a softmax behind its output."""
    (last,) = [node for node in model.graph.node if node.output[0] == "logits"]
    last.output[0] = "inside"
    model.graph.node.append(onnx.helper.make_node("Softmax", ["inside"], ["logits"], axis=1))
    return model


OTHER_KIND = ('string_value: "logits"', 'string_value: "probabilities"')
# every fault: how to bring it about, and where the report must show it
FAULTS: dict[str, tuple[Spoil, str, str, tuple[str, ...]]] = {
    "plan cut short": (written("cascade/1/cascade.json", '{"format": 1, "name": "cas'),
        "cascade", "cascade.json document", ("line 1",)),
    "plan empty": (written("cascade/1/cascade.json", ""),
        "cascade", "cascade.json document", ("one complete JSON document",)),
    "plan not text": (written("cascade/1/cascade.json", b"\xff\xfe"),
        "cascade", "cascade.json file", ("not UTF-8",)),
    "plan gone": (gone("cascade/1/cascade.json"), "cascade", "cascade.json", ("missing beside model.py",)),
    "plan of a newer format": (planned(format=3),
        "cascade", "cascade.json format", ("got 3, expected 2", "install a newer committee")),
    "plan of an older format": (planned(format=0),
        "cascade", "cascade.json format", ("got 0, expected 2", "committee plan")),
    "one threshold too many": (lambda r: edit_plan(r, lambda v: v["stages"][1].update(threshold=0.5)),
        "cascade", "cascade.json stages", ("got 2 thresholds for 2 stages, expected 1",)),
    "threshold NaN": (lambda r: edit_plan(r, lambda v: v["stages"][0].update(threshold=float("nan"))),
        "cascade", "cascade.json document", ("got NaN",)),
    "labels that are no text": (planned(labels=[0, 1, 2]),
        "cascade", "cascade.json labels", ("got 0, expected text",)),
    "plan names a member that is not there": (first_member(name="tiny"),
        "cascade", "member tiny", ("no such model, the repository has large, small",)),
    "plan of another name": (planned(name="other"),
        "cascade", "cascade.json name", ("got other, expected the folder's name cascade",)),
    "plan in a version that is not served": (lambda r: (r / "cascade/2").mkdir(),
        "cascade", "cascade.json", ("lies in version 1, but Triton serves version 2",)),
    "plan changed after rendering": (lambda r: edit_plan(r, lambda v: v["limits"].update(max_batch_size=99)),
        "cascade", "config.pbtxt max_batch_size", ("got max_batch_size: 32", "99", "render again")),
    "plan batch above the member's": (first_member(max_batch_size=9),
        "cascade", "member small", ("max_batch_size 9 in the plan", "at most its config's 8")),
    "plan with another input dtype": (lambda r: edit_plan(r, lambda v: v["inputs"][0].update(dtype="UINT8")),
        "cascade", "member large", ("input x is FP32, expected the plan's UINT8",)),
    "plan with another input shape": (lambda r: edit_plan(r, lambda v: v["inputs"][0].update(dims=[2, 2])),
        "cascade", "member large", ("dims [4], expected the plan's [2, 2]",)),
    "plan with other classes": (planned(classes=4, labels=list("abcd")),
        "cascade", "member small", ("dims [3], expected [4]",)),
    "plan with an unknown output": (first_member(output="scores"),
        "cascade", "member small", ("got output scores in the plan, expected one of logits",)),
    "plan with an unknown input": (first_member(inputs={"pixels": "x"}),
        "cascade", "member small", ("got input pixels in the plan, expected one of x",)),
    "plan with the other output kind": (first_member(output_kind="probabilities"),
        "cascade", "member small", ("output_kind probabilities", "expected logits")),
    "plan with another output kind than a config without manifest": (
        lambda r: (gone("small/manifest.json")(r), edit(r / "small/config.pbtxt", *OTHER_KIND)),
        "cascade", "member small", ("output_kind logits", "expected probabilities as its config.pbtxt says")),
    "config with the other output kind": (
        edited("small/config.pbtxt", *OTHER_KIND),
        "small", "config.pbtxt parameter output_kind", ("got probabilities, expected logits of its manifest",)),
    "alternative config with the other output kind": (
        edited("small/configs/gpu.pbtxt", *OTHER_KIND),
        "small", "configs/gpu.pbtxt parameter output_kind", ("differs from config.pbtxt",)),
    "softmax that the manifest does not know of": (small_is(with_softmax(linear_model(1))),
        "small", "manifest.json output_kind", ("got logits, but the graph ends in Softmax",)),
    "member weights changed": (small_is(linear_model(7)),
        "cascade", "member small", ("the thresholds were fitted on", "plan again")),
    "member weights changed, by its manifest": (small_is(linear_model(7)),
        "small", "manifest.json sha256", ("another file than was exported",)),
    "member gone": (gone("small"), "cascade", "member small", ("no such model",)),
    "member config gone": (gone("small/config.pbtxt"), "cascade", "member small", ("no config.pbtxt",)),
    "member config malformed": (written("small/config.pbtxt", 'name: "small"\nbackend: onnx\n'),
        "small", "config.pbtxt", ("at line 2",)),
    "member config of another name": (edited("small/config.pbtxt", 'name: "small"', 'name: "tiny"'),
        "small", "config.pbtxt name", ("got tiny, expected the folder's name small",)),
    "member without batches": (edited("small/config.pbtxt", "max_batch_size: 8", "max_batch_size: 0"),
        "cascade", "member small", ("max_batch_size 0",)),
    "member decoupled": (added("small/config.pbtxt", "model_transaction_policy { decoupled: true }"),
        "cascade", "member small", ("decoupled",)),
    "member with state": (edited("small/config.pbtxt", "dynamic_batching", "sequence_batching"),
        "cascade", "member small", ("sequence of requests",)),
    "member model file gone": (gone("small/1/model.onnx"), "small", "model file", ("1/model.onnx is missing",)),
    "member version gone": (gone("small/1"), "small", "version", ("no version folder",)),
    "member model file cut short": (
        lambda r: (r / "small/1/model.onnx").write_bytes((r / "small/1/model.onnx").read_bytes()[:40]),
        "small", "model file", ("export it again",)),
    "member model file empty": (written("small/1/model.onnx", b""), "small", "model file", ("without outputs",)),
    "member graph with another output": (small_is(linear_model(1, output="scores")),
        "small", "config.pbtxt output logits", ("expected one of scores",)),
    "member graph with another input": (small_is(linear_model(1, input="pixels")),
        "small", "config.pbtxt input", ("lacks pixels",)),
    "member graph with other classes": (small_is(linear_model(1, classes=5)),
        "small", "config.pbtxt output logits", ("got dims [3], expected [5]",)),
    "member graph with free classes": (small_is(free_classes(linear_model(1))),
        "small", "config.pbtxt output logits", ("got dims [3], expected [-1]",)),
    "member config with free classes": (
        edited("small/config.pbtxt", "TYPE_FP32\n  dims: 3", "TYPE_FP32\n  dims: -1"),
        "small", "config.pbtxt output logits", ("got dims [-1], expected [3]",)),
    "member config with a free input": (
        edited("small/config.pbtxt", "TYPE_FP32\n  dims: 4", "TYPE_FP32\n  dims: -1"),
        "small", "config.pbtxt input x", ("got dims [-1], expected [4]",)),
    "member graph of a fixed batch": (small_is(linear_model(1, batch=1)),
        "small", "model file input x", ("batch axis fixed at 1",)),
    "member config with another dtype": (edited("small/config.pbtxt", "TYPE_FP32", "TYPE_FP16"),
        "small", "config.pbtxt input x", ("got FP16, expected FP32",)),
    "member input without a name": (edited("small/config.pbtxt", 'name: "x"', 'name: ""'),
        "small", "config.pbtxt input", ("expected one of x",)),
    "member output of integers": (edited("small/config.pbtxt", "TYPE_FP32\n  dims: 3", "TYPE_INT32\n  dims: 3"),
        "cascade", "member small", ("output logits is INT32, expected FP32",)),
    "member GPU config of another shape": (
        edited("small/configs/gpu.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
        "small", "configs/gpu.pbtxt max_batch_size", ("differs from config.pbtxt",)),
    "member GPU config malformed": (written("small/configs/gpu.pbtxt", "{"),
        "small", "configs/gpu.pbtxt", ("at line 1",)),
    "manifest broken": (written("small/manifest.json", "[]"),
        "small", "manifest.json format", ("expected an object",)),
    "manifest of another member": (edited("small/manifest.json", '"name": "small"', '"name": "tiny"'),
        "small", "manifest.json name", ("got tiny, expected small",)),
    "manifest of another file": (edited("small/manifest.json", "1/model.onnx", "1/model.plan"),
        "small", "manifest.json file", ("1/model.plan is missing",)),
    "manifest with other labels": (
        edited("small/manifest.json", '"labels": null', '"labels": ["cow", "bee", "ant"]'),
        "cascade", "member small", ("labels",)),
    "cascade config gone": (gone("cascade/config.pbtxt"), "cascade", "config.pbtxt", ("missing; render again",)),
    "cascade config malformed": (written("cascade/config.pbtxt", "backend python"),
        "cascade", "config.pbtxt", ("at line 1",)),
    "cascade on the GPU": (edited("cascade/config.pbtxt", "KIND_CPU", "KIND_GPU"),
        "cascade", "config.pbtxt instance_group", ("KIND_GPU", "KIND_CPU")),
    "cascade with a cache": (added("cascade/config.pbtxt", "response_cache { enable: true }"),
        "cascade", "config.pbtxt response_cache", ("expected nothing",)),
    "cascade with warm-up": (added("cascade/config.pbtxt", 'model_warmup { name: "w" batch_size: 1 }'),
        "cascade", "config.pbtxt model_warmup", ("expected nothing",)),
    "labels gone": (gone("cascade/labels.txt"), "cascade", "labels.txt", ("render again",)),
    "labels in another order": (written("cascade/labels.txt", "bee\nant\ncow\n"),
        "cascade", "labels.txt", ("not the plan's labels",)),
    "shim gone": (gone("cascade/1/model.py"), "cascade", "model file", ("1/model.py is missing",)),
    "shim of another version": (edited("cascade/1/model.py", "importlib.import_module", "__import__"),
        "cascade", "model.py", ("is not the file this version of committee writes",)),
    "ensemble step gone": (gone("together_mean"), "together", "step together_mean", ("no such model",)),
    "ensemble member gone": (gone("large"), "together", "member large", ("no such model",)),
    "ensemble rewired": (edited("together/config.pbtxt", 'key: "scores_0"', 'key: "scores_9"'),
        "together", "config.pbtxt ensemble_scheduling", ("render again",)),
    "ensemble batch limit": (edited("together_mean/config.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
        "together_mean", "config.pbtxt max_batch_size", ("got max_batch_size: 4", "8")),
    "averaging model broken": (written("together_mean/1/model.onnx", b"\x00" * 30),
        "together_mean", "model file", ("export it again",)),
    "a folder that is no model": (lambda r: (r / "notes").mkdir(), "notes", "version", ("no version folder",)),
}  # fmt: skip

# Faults that do not hide one another: each spoils a place of its own.
TOGETHER = [
    "plan batch above the member's", "member config of another name", "member GPU config malformed",
    "cascade on the GPU", "labels in another order", "shim of another version", "ensemble batch limit",
    "a folder that is no model", "manifest with other labels",
]  # fmt: skip
