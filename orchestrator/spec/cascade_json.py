"""The only reader and the only writer of cascade.json."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.cascade import FORMAT, CascadeSpec, Fit, FusedPrefix, Limits, Member, Stage
from orchestrator.spec.gears import Gear, Gears
from orchestrator.spec.inputs import InputSpec, Preprocess
from orchestrator.spec.validation import Faults, array_of, build, json_from_text, object_of, plain, text_of_file

PLAN = "cascade.json"  # in the version folder of a cascade

_numbers = array_of(plain)
_member = object_of(Member)
_stage = object_of(Stage, {"members": array_of(_member)})


def _stages(path: str, value: object, faults: Faults) -> Any:
    """Reads stages; all but the last must state a threshold: a stage without one would silently never exit."""
    if isinstance(value, list):
        for index, part in enumerate(value[:-1]):
            if isinstance(part, dict) and "threshold" not in part:
                faults.add(f"{path}[{index}].threshold", "missing, expected a number, or null for never")
    return array_of(_stage)(path, value, faults)


_input = object_of(InputSpec, {"dims": _numbers, "preprocess": object_of(Preprocess)})
_fit = object_of(Fit, {"accuracy_ci95": _numbers, "exit_share": _numbers})
_gear = object_of(Gear, {"thresholds": _numbers, "exit_share": _numbers})
_cascade = partial(
    build,
    CascadeSpec,
    convert={
        "input": _input,
        "stages": _stages,
        "labels": _numbers,
        "limits": object_of(Limits),
        "fit": _fit,
        "lead": object_of(FusedPrefix),
        "gears": object_of(Gears, {"cheaper": array_of(_gear)}),
    },
)


def cascade_from_json(text: str, subject: str = PLAN) -> CascadeSpec:
    """The cascade a JSON text describes.

    Args:
        text: a whole cascade.json.
        subject: what to call it in errors, usually its path.

    Raises:
        SpecError: with every fault found, keyed by field.
    """
    value = json_from_text(text, subject)
    if not isinstance(value, dict):
        raise SpecError(subject, {"document": f"got {type(value).__name__}, expected an object"})
    number = value.pop("format", None)
    if number != FORMAT or isinstance(number, bool):
        # The fields of another format would only produce misleading faults, so the rest is not read.
        message = f"got {number!r}, expected {FORMAT}"
        newer = isinstance(number, int) and number > FORMAT
        fix = "install a newer committee" if newer else "write it again with `committee plan`"
        raise SpecError(subject, {"format": message}, fix=fix)
    faults = Faults(subject)
    spec = _cascade("", value, faults)
    faults.close()
    if spec is None:
        raise SpecError(subject, {"document": "cannot be read"})
    return spec


def cascade_from_path(path: Path | str) -> CascadeSpec:
    """The cascade a file describes; see `cascade_from_json` for the errors."""
    return cascade_from_json(text_of_file(Path(path), str(path)), str(path))


def json_from_cascade(spec: CascadeSpec) -> str:
    """The text of cascade.json; equal specs give equal bytes, and reading it back gives an equal spec."""
    keys = {field.name: field.metadata.get("key", field.name) for field in dataclasses.fields(spec)}
    value = {"format": FORMAT, **{keys[name]: part for name, part in dataclasses.asdict(spec).items()}}
    for name in ("lead", "gears", "header_pattern"):
        if value[name] is None:
            del value[name]
    for member in (member for stage in value["stages"] for member in stage["members"]):
        _leave_out(member, "version", "data_files")
    _leave_out(value.get("lead", {}), "version", "sha256")
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _leave_out(value: dict[str, Any], *names: str) -> None:
    """Leaves out empty fields that are younger than format 1, because older readers refuse them."""
    for name in names:
        if name in value and not value[name]:
            del value[name]
