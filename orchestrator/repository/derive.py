"""Plans whose tensors a model of the repository makes, where requests would have to bring them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.members import MemberFacts, adopted_spec, facts_from_folder, facts_of_member
from orchestrator.spec import CascadeSpec, Derived, DerivedTensor, InputSpec
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path, is_deriving
from orchestrator.spec.manifest import MANIFEST, Tensor
from orchestrator.spec.request import plan_dtype


def derived_spec(spec: CascadeSpec, repository: Path, models: Sequence[str]) -> CascadeSpec:
    """The plan with inputs that these models make derived instead, and with the inputs of these models.

    Raises:
        RepositoryError: a model is missing, has no configuration, or makes nothing that the plan has as an input.
    """
    spec = adopted_spec(spec, {one.name: facts_of_member(repository / one.name) for one in spec.members})
    for name in models:
        spec = _with_model(_mapped(spec), name, _facts(repository / name), _manifest(repository / name / MANIFEST))
    return spec


def _mapped(spec: CascadeSpec) -> CascadeSpec:
    """The plan with what members read in their maps, because its inputs are about to change."""
    return spec.with_members(lambda one: dataclasses.replace(one, inputs=spec.tensors_of(one)))


def _manifest(path: Path) -> DerivingManifest | None:
    """What the export says of the model; None for one that was not exported."""
    if not path.is_file() or not is_deriving(path):
        return None
    manifest = deriving_from_path(path)
    if manifest.pads_left:
        what, fix = f"deriving model {manifest.name}", "export it again with `tokenizer.padding_side=right`"
        raise RepositoryError(what, got="padding on the left", expected="on the right", fix=fix)
    return manifest


def _facts(folder: Path) -> MemberFacts:
    facts = facts_from_folder(folder) if folder.is_dir() else None
    if facts is None or facts.inputs is None or facts.outputs is None:
        got = "no such model" if facts is None else "no config.pbtxt that names its tensors"
        raise RepositoryError(f"deriving model {folder.name} in {folder.parent}", got=got)
    return facts


def _with_model(
    spec: CascadeSpec, name: str, facts: MemberFacts, manifest: DerivingManifest | None
) -> CascadeSpec:
    outputs = facts.outputs or {}
    made = [one for one in spec.inputs if one.name in outputs]
    if not made:
        got, expected = ", ".join(outputs), ", ".join(one.name for one in spec.inputs)
        what = f"deriving model {name}"
        raise RepositoryError(what, got=f"outputs {got}", expected=f"one of the plan's inputs {expected}")
    left = {one.name: one for one in spec.inputs if one not in made}
    reads = {}
    for tensor in (facts.inputs or {}).values():
        source = _source(tensor, left)
        reads[tensor.name] = source.name
        left.setdefault(source.name, source)
    pads = {} if manifest is None else {one.name: one.pad or 0 for one in manifest.outputs}
    model = Derived(
        name=name,
        inputs=reads,
        outputs=tuple(
            DerivedTensor(
                name=one.name,
                dtype=one.dtype,
                dims=one.dims,
                pad=one.pad or pads.get(one.name, 0),
                buckets=one.buckets,
            )
            for one in made
        ),
        max_batch_size=facts.max_batch_size or 1,
        sha256=None if manifest is None else manifest.sha256,
    )
    return dataclasses.replace(spec, inputs=tuple(left.values()), derived=(*spec.derived, model))


def _source(tensor: Tensor, known: dict[str, InputSpec]) -> InputSpec:
    """The input that a model's tensor gets: that of its name, else the only one like it, else a new one."""
    dtype = plan_dtype(tensor.dtype)
    alike = [one for one in known.values() if (one.dtype, one.dims) == (dtype, tensor.dims)]
    if tensor.name in known:
        return known[tensor.name]
    return alike[0] if len(alike) == 1 else InputSpec(name=tensor.name, dtype=dtype, dims=tensor.dims)
