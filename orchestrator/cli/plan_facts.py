"""How recorded members are asked: as manifests say, configurations, or the server that was recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, SpecError
from orchestrator.planner.records import Records
from orchestrator.repository.completion import UNKNOWN_INPUT, UNKNOWN_OUTPUT, facts_of_manifest
from orchestrator.repository.member_facts import MemberFacts, Tensor, Tensors, facts_from_folder, fits
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec

# Letters of a wrong value that an error shows.
WRONG_VALUE_LETTERS = 80


def member_facts(
    records: Records, repository: Path, manifests: Mapping[str, Manifest], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, MemberFacts]:
    """What is known of every recorded member.

    Args:
        records: of the members.
        repository: where configurations are looked for.
        manifests: of the members that have one.
        known: what the records' meta says of members.

    Raises:
        DataError: what the records say of a member is no tensor, or not what its configuration says.
        RepositoryError: a configuration cannot be read.
    """
    facts = {}
    for name in records.outputs:
        if name in manifests:
            facts[name] = facts_of_manifest(manifests[name])
            continue
        recorded = _recorded(name, known.get(name, {}), classes=records.classes)
        found = facts_from_folder(repository / name) if (repository / name).is_dir() else recorded
        _require_same_output(name, recorded, found)
        values = {field.name: getattr(found, field.name) for field in dataclasses.fields(MemberFacts)}
        missing = [field for field, value in values.items() if value is None]
        completed = dataclasses.replace(found, **{field: getattr(recorded, field) for field in missing})
        facts[name] = dataclasses.replace(completed, inputs=_with_row_dims(completed.inputs, recorded.inputs))
    return facts


def _with_row_dims(inputs: Tensors | None, recorded: Tensors | None) -> Tensors | None:
    """Inputs with the recorded rows' shape where a configuration leaves it open."""
    if inputs is None or recorded is None:
        return inputs
    return {
        name: recorded[name] if name in recorded and fits(one.dims, recorded[name].dims) else one
        for name, one in inputs.items()
    }


def _recorded(name: str, said: Mapping[str, Any], *, classes: int) -> MemberFacts:
    output = said.get("output")
    if output is not None and (not isinstance(output, str) or not output):
        what = f"records, meta of {name}, output"
        raise DataError(what, got=repr(output)[:WRONG_VALUE_LETTERS], expected="the name of a tensor")
    return MemberFacts(
        inputs=_recorded_input(name, said.get("input")),
        outputs=None if output is None else {output: Tensor(name=output, dtype="FP32", dims=(classes,))},
        max_batch_size=_recorded_count(name, "max_batch_size", said, low=0),
        instances=_recorded_count(name, "instances", said, low=1),
    )


def _recorded_input(name: str, value: object) -> dict[str, Tensor] | None:
    if value is None:
        return None
    try:
        fields: dict[str, Any] = dict(value)  # type: ignore[call-overload]
        spec = TensorSpec(**{**fields, "dims": tuple(fields["dims"])})
    except (KeyError, TypeError, ValueError, SpecError) as error:
        expected = '{"name": "x", "dtype": "FP32", "dims": [4]}'
        raise DataError(
            f"records, meta of {name}, input", got=repr(value)[:WRONG_VALUE_LETTERS], expected=expected
        ) from error
    return {spec.name: Tensor(name=spec.name, dtype=spec.dtype, dims=spec.dims)}


def _recorded_count(name: str, field: str, said: Mapping[str, Any], *, low: int) -> int | None:
    value = said.get(field)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
        expected = f"a whole number of at least {low}"
        raise DataError(
            f"records, meta of {name}, {field}", got=repr(value)[:WRONG_VALUE_LETTERS], expected=expected
        )
    return value


def _require_same_output(name: str, recorded: MemberFacts, found: MemberFacts) -> None:
    lacking = set(recorded.outputs or ()) - set(found.outputs or recorded.outputs or ())
    if lacking:
        raise DataError(
            f"records of {name}",
            got=f"scores from its output {', '.join(lacking)}",
            expected=f"one of {', '.join(found.outputs or ())}, as its configuration has them",
            fix="record again, or name the repository that was recorded with --repository",
        )


def serving_notes(spec: CascadeSpec, facts: Mapping[str, MemberFacts], repository: Path) -> list[str]:
    """What keeps a plan from being served as it is, so that nobody learns it from `render` first."""
    unlimited = [name for name, one in facts.items() if one.max_batch_size == 0]
    notes = []
    if unlimited:
        names = ", ".join(unlimited)
        notes.append(
            f"{names} takes no batches (max_batch_size 0): no cascade can ask it until its config says one"
        )
    unknown = [
        one.name for one in spec.members if one.output == UNKNOWN_OUTPUT and facts[one.name].outputs is None
    ]
    sizes = {name: tensor.dims for name, one in facts.items() for tensor in (one.inputs or {}).values()}
    if unknown:
        where = f"no manifest of {', '.join(unknown)} in {repository}, nor a config.pbtxt that names their tensors"
        fix = "name their repository with --repository, or render the plan where they are"
        notes.append(f"{where}: the plan does not know them; {fix}")
    elif spec.input == UNKNOWN_INPUT and any(-1 in dims for dims in sizes.values()):
        listed = ", ".join(f"{name} {list(dims)}" for name, dims in sizes.items())
        notes.append(f"rows may have any size ({listed}): give the plan's input fixed dims before you render it")
    return notes
