"""How recorded members are asked: as manifests say, configurations, or the server that was recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, SpecError
from orchestrator.planner.records import Records
from orchestrator.repository.adoption import UNKNOWN_INPUT, UNKNOWN_OUTPUT, facts_of_manifest
from orchestrator.repository.member_facts import MemberFacts, facts_from_folder
from orchestrator.repository.tensors import Tensor
from orchestrator.spec import CascadeSpec, Manifest, TensorSpec


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
        facts[name] = dataclasses.replace(found, **{field: getattr(recorded, field) for field in missing})
    return facts


def _recorded(name: str, said: Mapping[str, Any], *, classes: int) -> MemberFacts:
    output = said.get("output")
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
        raise DataError(f"records, meta of {name}, input", got=repr(value)[:80], expected=expected) from error
    return {spec.name: Tensor(name=spec.name, dtype=spec.dtype, dims=spec.dims)}


def _recorded_count(name: str, field: str, said: Mapping[str, Any], *, low: int) -> int | None:
    value = said.get(field)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
        expected = f"a whole number of at least {low}"
        raise DataError(f"records, meta of {name}, {field}", got=repr(value)[:80], expected=expected)
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


def unknown_notes(spec: CascadeSpec, facts: Mapping[str, MemberFacts], repository: Path) -> list[str]:
    """What has to be filled in before a plan can be served, where neither files nor records say it."""
    members = [
        one.name for one in spec.members if one.output == UNKNOWN_OUTPUT and facts[one.name].outputs is None
    ]
    fix = "name their repository with --repository, or render the plan where they are"
    if members:
        where = f"no manifest of {', '.join(members)} in {repository}, nor a config.pbtxt that names their tensors"
        return [f"{where}: the plan does not know them; {fix}"]
    if spec.input == UNKNOWN_INPUT:
        named = {name: one.inputs for name, one in facts.items() if one.inputs}
        if any(-1 in tensor.dims for inputs in named.values() for tensor in inputs.values()):
            listed = ", ".join(named)
            return [f"rows of {listed} may have any size: give the plan's input fixed dims before you render it"]
        return [f"the plan does not know what its members take in; {fix}"]
    return []
