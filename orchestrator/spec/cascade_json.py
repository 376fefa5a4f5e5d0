"""The only reader and writer of cascade.json: format 2, and format 1 as it always was."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError, shown
from orchestrator.spec.cascade import (
    MEMBER_TIMEOUT_MS,
    PLAN,
    CascadeSpec,
    Fit,
    FusedPrefix,
    Gear,
    Gears,
    Limits,
    Member,
    Stage,
)
from orchestrator.spec.derived import Derived, DerivedTensor
from orchestrator.spec.documents import json_from_text, text_from_json, text_of_file
from orchestrator.spec.request import InputSpec, Preprocess
from orchestrator.spec.validation import VALUES, Convert, Faults, array_of, built, object_of

FORMAT = 2


def _stages(path: str, value: object, faults: Faults) -> Any:
    """Reads stages; all but the last must state a threshold: a stage without one would silently never exit."""
    for index, part in enumerate(value[:-1] if isinstance(value, list) else ()):
        if isinstance(part, dict) and "threshold" not in part:
            faults.add(f"{path}[{index}].threshold", "missing, expected a number, or null for never")
    return array_of(object_of(Stage, members=array_of(object_of(Member))))(path, value, faults)


_TENSOR = {"dims": VALUES, "buckets": VALUES}
_CONVERT: dict[str, Convert] = {
    "inputs": array_of(object_of(InputSpec, **_TENSOR, preprocess=object_of(Preprocess))),
    "derived": array_of(object_of(Derived, outputs=array_of(object_of(DerivedTensor, **_TENSOR)))),
    "stages": _stages,
    "labels": VALUES,
    "limits": object_of(Limits),
    "fit": object_of(Fit, accuracy_ci95=VALUES, exit_share=VALUES),
    "fused_prefix": object_of(FusedPrefix),
    "gears": object_of(Gears, cheaper=array_of(object_of(Gear, thresholds=VALUES, exit_share=VALUES))),
}


def cascade_from_json(text: str, subject: str = PLAN) -> CascadeSpec:
    """The cascade that a whole cascade.json describes; `subject` names it in errors, usually by its path.

    Raises:
        SpecError: with every fault found, keyed by field.
    """
    value = json_from_text(text, subject)
    number = value.pop("format", None) if isinstance(value, dict) else FORMAT
    if number not in (1, FORMAT) or isinstance(number, bool):
        # The fields of another format would only produce misleading faults, so the rest is not read.
        newer = isinstance(number, int) and number > FORMAT
        fix = "install a newer committee" if newer else "write it again with `committee plan`"
        raise SpecError(subject, {"format": f"got {shown(number)}, expected {FORMAT}"}, fix=fix)
    if number == FORMAT:
        return built(CascadeSpec, value, subject, _CONVERT)
    value = _from_format_1(value, subject)
    try:
        return built(CascadeSpec, value, subject, _CONVERT)
    except SpecError as error:
        faults = {_in_format_1(name): text for name, text in error.faults.items()}
        raise SpecError(subject, faults, fix=error.fix) from None


def _from_format_1(value: dict[str, Any], subject: str) -> dict[str, Any]:
    """A document of format 1 as one of format 2: there was one input, and `lead` was the fused prefix."""
    if newer := {"inputs", "derived", "fused_prefix"} & set(value):
        raise SpecError(subject, dict.fromkeys(newer, f"unknown field, expected format {FORMAT}"))
    value = {_FORMAT_1.get(key, key): part for key, part in value.items()}
    if "inputs" in value:
        value["inputs"] = [value["inputs"]]
    source = value.get("inputs", [None])[0]
    stages = value["stages"] if isinstance(value.get("stages"), list) else []
    for stage in (one for one in stages if isinstance(one, dict) and isinstance(one.get("members"), list)):
        for member in (one for one in stage["members"] if isinstance(one, dict)):
            own = member.pop("input", None)
            if own is not None:
                member["inputs"] = {own: source.get("name")} if isinstance(own, str) and source else own
    return value


_FORMAT_1 = {"input": "inputs", "lead": "fused_prefix"}  # key in format 1 -> key now


def _in_format_1(field: str) -> str:
    """How format 1 calls a field of format 2."""
    for old, new in _FORMAT_1.items():
        field = re.sub(rf"\b{new}(\[0\])?", old, field)
    return field


def cascade_from_path(path: Path | str) -> CascadeSpec:
    """The cascade a file describes; see `cascade_from_json` for the errors."""
    return cascade_from_json(text_of_file(Path(path), str(path)), str(path))


def json_from_cascade(spec: CascadeSpec) -> str:
    """The text of cascade.json; equal specs give equal bytes, and reading it back gives an equal spec."""
    value = {"format": FORMAT, **dataclasses.asdict(spec)}
    _leave_out(value, "derived", "fused_prefix", "gears", "in_process", "header_pattern")
    for tensor in value["inputs"]:
        _leave_out(tensor, "pad", "buckets", "preprocess")
    for model in value.get("derived", ()):
        model["model"] = model.pop("name")
        _leave_out(model, "inputs", "version", "sha256")
        for tensor in model["outputs"]:
            tensor["from"] = tensor.pop("source")
            _leave_out(tensor, "from", "pad", "buckets")
    for member in (member for stage in value["stages"] for member in stage["members"]):
        _leave_out(member, "inputs", "version", "data_files")
    _leave_out(value.get("fused_prefix", {}), "version", "sha256")
    _leave_out(value["limits"], "max_deferred_bytes")
    if value["limits"]["member_timeout_ms"] == MEMBER_TIMEOUT_MS:
        del value["limits"]["member_timeout_ms"]
    return text_from_json(value)


def _leave_out(value: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in value and not value[name]:
            del value[name]
