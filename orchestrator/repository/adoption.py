"""What a plan does not know of its members, filled in from their own files.

Records may come from anywhere, so a plan can be made where the members are not. What it then says of its input and
of their outputs stands for "not known", and no model is asked before it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.index import MANIFEST
from orchestrator.repository.member_facts import MemberFacts, facts_from_folder
from orchestrator.repository.tensors import Tensor
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, TensorSpec, manifest_from_path
from orchestrator.spec.inputs import INPUT_DTYPES

UNKNOWN_INPUT = InputSpec(name="input", dtype="FP32", dims=(1,))
UNKNOWN_OUTPUT = "output"


def facts_of_member(folder: Path) -> MemberFacts:
    """How a member is asked: as its manifest says, else as its other files do.

    Raises:
        SpecError: the manifest is wrong.
        RepositoryError: another file cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        return facts_from_folder(folder)
    return facts_of_manifest(manifest_from_path(folder / MANIFEST))


def facts_of_manifest(manifest: Manifest) -> MemberFacts:
    """How an exported member is asked; its instances are left to its configuration."""
    return MemberFacts(
        inputs={manifest.input.name: _tensor(manifest.input)},
        outputs={manifest.output.name: _tensor(manifest.output)},
        max_batch_size=manifest.max_batch_size,
        instances=None,
    )


def adopted_spec(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> CascadeSpec:
    """A plan with what it does not know of its members, and no larger batches than they take.

    Args:
        spec: the plan.
        facts: of its members by name; one that is left out stays as it is.

    Raises:
        RepositoryError: none, or several, of a member's outputs may be the one that is not known.
    """
    if spec.input == UNKNOWN_INPUT:
        spec = dataclasses.replace(spec, input=_input_of(facts.values()))
    stages = tuple(
        dataclasses.replace(
            stage,
            members=tuple(
                _adopted(member, facts[member.name], spec) if member.name in facts else member
                for member in stage.members
            ),
        )
        for stage in spec.stages
    )
    return dataclasses.replace(spec, stages=stages)


def require_known_input(spec: CascadeSpec, facts: Mapping[str, MemberFacts]) -> None:
    """Refuses a plan that does not know its input where its members take rows of any shape.

    Their configurations would agree with whatever stands there.

    Raises:
        RepositoryError: naming what they take.
    """
    taken = {name: tensor for name, one in facts.items() if (tensor := _only_input(one)) is not None}
    if spec.input == UNKNOWN_INPUT and any(-1 in tensor.dims for tensor in taken.values()):
        listed = ", ".join(f"{name} {one.name} {one.dtype}{list(one.dims)}" for name, one in taken.items())
        raise RepositoryError(
            f"plan {spec.name}, input",
            got=f"members that take rows of any shape ({listed})",
            expected="fixed dims in cascade.json",
            fix='write them there, such as "input": {"name": "x", "dtype": "FP32", "dims": [4]}',
        )


def _input_of(known: Iterable[MemberFacts]) -> InputSpec:
    """The input of the first member whose rows have a fixed shape."""
    for facts in known:
        tensor = _only_input(facts)
        if tensor is not None and tensor.dtype in INPUT_DTYPES and tensor.dims and min(tensor.dims) > 0:
            return InputSpec(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims)
    return UNKNOWN_INPUT


def _only_input(facts: MemberFacts) -> Tensor | None:
    inputs = list((facts.inputs or {}).values())
    return inputs[0] if len(inputs) == 1 else None


def _adopted(member: Member, facts: MemberFacts, spec: CascadeSpec) -> Member:
    tensor = _only_input(facts)
    own_name = None if tensor is None or tensor.name == spec.input.name else tensor.name
    return dataclasses.replace(
        member,
        input=member.input or own_name,
        output=_output(member, facts, classes=spec.classes),
        max_batch_size=min(member.max_batch_size, facts.max_batch_size or member.max_batch_size),
        instances=facts.instances or member.instances,
    )


def _output(member: Member, facts: MemberFacts, *, classes: int) -> str:
    if member.output != UNKNOWN_OUTPUT or facts.outputs is None:
        return member.output
    # A model may have an output that is really called so.
    if facts.may_hold_scores(member.output, classes):
        return member.output
    found = facts.scores(classes)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{one.name} {one.dtype}{list(one.dims)}" for one in facts.outputs.values())
    raise RepositoryError(
        f"member {member.name}",
        got=f"outputs {listed or 'none'}",
        expected=f"one of {classes} floating-point scores",
        fix=f"name it when recording (--output-tensor {member.name}=NAME), or as its `output` in the records' meta"
        if found
        else None,
    )


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(name=spec.name, dtype=spec.dtype, dims=spec.dims)
