"""The pool a plan chooses from: recorded members, with what manifests, configurations and records say of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError, SpecError
from orchestrator.planner.plan import (
    USUAL_BATCH,
    costs_from_path,
    meta_of_members,
    pool_spec,
    recorded_member,
)
from orchestrator.planner.records import Records
from orchestrator.repository.derive import derived_spec
from orchestrator.repository.index import class_names_by_member, common_names
from orchestrator.repository.members import (
    MemberFacts,
    adopted_spec,
    facts_from_folder,
    facts_of_manifest,
    fits,
)
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, TensorSpec, manifest_from_path
from orchestrator.spec.answer import first_misplaced
from orchestrator.spec.cascade import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from orchestrator.spec.manifest import MANIFEST, Tensor
from orchestrator.spec.output_kind import ScoreEvidence

# Letters of wrong class names, and of another wrong value, that an error shows.
WRONG_NAMES_LETTERS = 40
WRONG_VALUE_LETTERS = 80
# What a manifest says of its member under the same name as the records' meta.
FROM_MANIFEST = ("output_kind", "sha256", "data_files")


def restricted(records: Records, members: str | None) -> Records:
    """The records of the named members, each recorded and named once; all where nothing is named."""
    if members is None:
        return records
    names = [name.strip() for name in members.split(",") if name.strip()]
    missing = [name for name in names if name not in records.outputs]
    if missing or not names:
        got = f"no outputs of {', '.join(missing)}" if missing else "no names"
        raise DataError("plan --members", got=got, expected=f"some of {', '.join(records.outputs)}")
    if len(set(names)) < len(names):
        raise DataError("plan --members", got=members, expected="each member once")
    return dataclasses.replace(
        records,
        outputs={name: records.outputs[name] for name in names},
        cost={name: records.cost[name] for name in names},
    )


@dataclass(frozen=True, kw_only=True)
class MemberPool:
    """The members to choose from, as stages of a cascade; those that were never trained, by their manifests."""

    spec: CascadeSpec
    random_weights: tuple[str, ...]
    notes: tuple[str, ...]


def pool_from_records(
    records: Records, repository: Path, *, name: str, cost: Path | None, derive: Sequence[str] = ()
) -> MemberPool:
    """All recorded members, with what their manifests, configurations and records say of them.

    Members without a manifest are taken as their configuration in the repository describes them, else as the
    records do: outputs may come from anywhere. Without a cost profile, `cost`, they are the records' own. `derive`
    names models of the repository that make tensors which members read.

    Raises:
        DataError: members that no plan can name, outputs that are not what they are said to be.
        RepositoryError: a member's configuration cannot be read, or does not tell which output has the scores.
    """
    known = meta_of_members(records)
    manifests = {
        member: manifest_from_path(repository / member / MANIFEST)
        for member in records.outputs
        if (repository / member / MANIFEST).is_file()
    }
    _same_files(manifests, known)
    costs, unit = (records.cost, records.cost_unit) if cost is None else costs_from_path(cost, records.outputs)
    facts = member_facts(records, repository, manifests, known)
    members = []
    for member in records.outputs:
        said, size = known.get(member, {}), facts[member].max_batch_size or USUAL_BATCH
        if member in manifests:
            one = manifests[member]
            said = {"output": one.output.name, **{key: getattr(one, key) for key in FROM_MANIFEST}}
        members.append(recorded_member(member, records, said, cost=costs[member], max_batch_size=size))
    dense = manifests and all(one.takes_one_dense_tensor for one in manifests.values())
    takes = _input(next(iter(manifests.values()))) if dense else UNKNOWN_INPUT
    base = pool_spec(members, records, name=name, cost_unit=unit, takes=takes)
    recorded = [] if derive else _recorded_derived(records)
    there = [model for model in recorded if (repository / model / MANIFEST).is_file()]
    away = [
        f"{model} made tensors of the records, and has no manifest in {repository}: requests must bring them, or "
        "the plan needs an entry under `derived`"
        for model in recorded
        if model not in there
    ]
    spec = adopted_spec(base, facts)
    if derive or there:
        spec = derived_spec(spec, repository, derive or there, skip_unread=not derive)
    spec = dataclasses.replace(spec, labels=_class_names(spec.members, records, repository))
    return MemberPool(
        spec=spec,
        # Records of outputs that were computed elsewhere do not say which members are random; manifests do.
        random_weights=tuple(member for member, manifest in manifests.items() if manifest.random_weights),
        notes=tuple(_kind_notes(members, records) + serving_notes(spec, facts, repository) + away),
    )


def _kind_notes(members: Sequence[Member], records: Records) -> list[str]:
    """Notes on scores that are called logits and do not look like logits."""
    notes = []
    for one in members:
        seen = ScoreEvidence().with_scores(records.outputs[one.name])
        if one.output_kind == "logits" and seen.contradicts("logits"):
            looks = "sigmoids, which fit no cascade" if seen.fills_unit_interval else seen.looks
            notes.append(f"{one.name} gives {seen}, and is said to give logits: they look like {looks}")
    return notes


def _same_files(manifests: dict[str, Manifest], known: dict[str, dict[str, Any]]) -> None:
    for member, manifest in manifests.items():
        facts = known.get(member, {})
        recorded = (facts.get("sha256", manifest.sha256), facts.get("data_files", manifest.data_files))
        if recorded != (manifest.sha256, manifest.data_files):
            raise DataError(f"records of {member}", got="another model file", fix="record again")


def _recorded_derived(records: Records) -> list[str]:
    """The models that made tensors when the records were made."""
    names = records.meta.get("derived", {})
    if not isinstance(names, dict):
        raise DataError("records, meta derived", got=repr(names)[:WRONG_VALUE_LETTERS], expected="an object")
    return list(names)


def _input(manifest: Manifest) -> InputSpec:
    tensor = manifest.input
    return InputSpec(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims, preprocess=manifest.preprocess)


def _class_names(members: Sequence[Member], records: Records, repository: Path) -> tuple[str, ...] | None:
    """What the members call the classes now, else what they were called when the records were made."""
    stated = class_names_by_member(repository, {one.name: one.output for one in members})
    names = common_names(stated, classes=records.classes)
    recorded = _recorded_names(records)
    if names is None or recorded is None:
        return recorded if names is None else names
    place = first_misplaced(names, recorded)
    if place is not None and records.meta.get("labels_by") == "name":
        raise DataError(
            "records",
            got=f"labels that went by class names, {recorded[place]!r} for class {place}",
            expected=f"{names[place]!r}, which the members call it now",
            fix="correct the names of the members, or record again",
        )
    return names


def _recorded_names(records: Records) -> tuple[str, ...] | None:
    names = records.meta.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != records.classes or not all(isinstance(n, str) for n in names):
        expected = f"a list of {records.classes} texts, one per class"
        raise DataError("records, meta class_names", got=ascii(names)[:WRONG_NAMES_LETTERS], expected=expected)
    return tuple(names)


def member_facts(
    records: Records, repository: Path, manifests: Mapping[str, Manifest], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, MemberFacts]:
    """What manifests, configurations and `known`, of the records' meta, say of every recorded member.

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
        found = found.completed_from(recorded)
        # The recorded rows' shape, where a configuration leaves it open.
        rows, inputs = recorded.inputs or {}, dict(found.inputs or {})
        inputs |= {key: rows[key] for key in inputs.keys() & rows.keys() if fits(inputs[key].dims, rows[key].dims)}
        facts[name] = found if found.inputs is None else dataclasses.replace(found, inputs=inputs)
    return facts


def _recorded(name: str, facts: Mapping[str, Any], *, classes: int) -> MemberFacts:
    output = facts.get("output")
    if output is not None and (not isinstance(output, str) or not output):
        raise _strange(name, "output", output, "the name of a tensor")
    return MemberFacts(
        inputs=_recorded_inputs(name, facts),
        outputs=None if output is None else {output: Tensor(name=output, dtype="FP32", dims=(classes,))},
        max_batch_size=_recorded_count(name, "max_batch_size", facts, low=0),
        instances=_recorded_count(name, "instances", facts, low=1),
    )


def _recorded_inputs(name: str, facts: Mapping[str, Any]) -> dict[str, Tensor] | None:
    values = facts.get("inputs", None if facts.get("input") is None else [facts["input"]])
    if values is None:
        return None
    if not isinstance(values, list):
        raise _strange(name, "inputs", values, "a list of tensors")
    return {key: tensor for value in values for key, tensor in _recorded_input(name, value).items()}


def _recorded_input(name: str, value: Any) -> dict[str, Tensor]:
    try:
        spec = TensorSpec(**{**value, "dims": tuple(value["dims"])})
    except (KeyError, TypeError, ValueError, SpecError) as error:
        raise _strange(name, "input", value, '{"name": "x", "dtype": "FP32", "dims": [4]}') from error
    return {spec.name: Tensor(name=spec.name, dtype=spec.dtype, dims=spec.dims)}


def _recorded_count(name: str, field: str, facts: Mapping[str, Any], *, low: int) -> int | None:
    value = facts.get(field)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < low):
        raise _strange(name, field, value, f"a whole number of at least {low}")
    return value


def _strange(name: str, field: str, value: object, expected: str) -> DataError:
    return DataError(f"records, meta of {name}, {field}", got=repr(value)[:WRONG_VALUE_LETTERS], expected=expected)


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
    notes = []
    if unlimited := ", ".join(name for name, one in facts.items() if one.max_batch_size == 0):
        why = "no cascade can ask it until its config says one"
        notes.append(f"{unlimited} takes no batches (max_batch_size 0): {why}")
    unknown = [
        one.name for one in spec.members if one.output == UNKNOWN_OUTPUT and facts[one.name].outputs is None
    ]
    sizes = {name: tensor.dims for name, one in facts.items() for tensor in (one.inputs or {}).values()}
    if unknown:
        where = f"no manifest of {', '.join(unknown)} in {repository}, nor a config.pbtxt that names their tensors"
        fix = "name their repository with --repository, or render the plan where they are"
        notes.append(f"{where}: the plan does not know them; {fix}")
    elif UNKNOWN_INPUT in spec.inputs and any(-1 in dims for dims in sizes.values()):
        listed = ", ".join(f"{name} {list(dims)}" for name, dims in sizes.items())
        notes.append(f"rows may have any size ({listed}): give the plan's input fixed dims before you render it")
    return notes
