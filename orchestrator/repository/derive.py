"""Plans whose tensors a model of the repository makes, where requests would have to bring them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import RepositoryError
from orchestrator.repository.members import MemberFacts, facts_from_folder, fits
from orchestrator.spec import CascadeSpec, Derived, DerivedTensor, InputSpec, RowTensor
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path, is_deriving
from orchestrator.spec.manifest import MANIFEST, Tensor
from orchestrator.spec.request import plan_dtype


def derived_spec(
    spec: CascadeSpec, repository: Path, models: Sequence[str], *, skip_unread: bool = False
) -> CascadeSpec:
    """The plan with inputs that these models make derived instead, and with the inputs of these models.

    The models may read each other's tensors, in whatever order they are named. One that makes nothing that is read
    is left out where such ones are to be skipped. The plan's inputs must be known, see `adopted_spec`.

    Raises:
        RepositoryError: a model is missing, no file says what it reads and makes, or it makes nothing that the
            plan has as an input.
        SpecError: the manifest of a model is wrong, or its tensors do not fit the plan's.
    """
    # What members read goes into their maps, because the plan's inputs are about to change.
    spec = spec.with_members(lambda one: dataclasses.replace(one, inputs=spec.tensors_of(one)))
    left = {name: _facts(repository, name) for name in dict.fromkeys(models)}
    while left:
        given = {one.name for one in spec.inputs}
        name = next((name for name, (facts, _) in left.items() if given & set(facts.outputs or ())), None)
        if name is None:
            if not skip_unread:
                _refuse_unread(spec, left)
            break
        spec = _with_model(spec, name, *left.pop(name))
    return spec


def _facts(repository: Path, name: str) -> tuple[MemberFacts, DerivingManifest | None]:
    """What the configuration of a model says, completed from its manifest; that is None where it has none."""
    folder, what = repository / name, f"`derive` {name}"
    if not folder.is_dir():
        raise RepositoryError(what, got=f"no such model in {repository}", expected="a model that derives tensors")
    path, facts, manifest = folder / MANIFEST, facts_from_folder(folder), None
    if path.is_file() and is_deriving(path):
        manifest = deriving_from_path(path)
        if manifest.pads_left:
            fix = "export it again with `tokenizer.padding_side=right`, if its model allows that"
            raise RepositoryError(what, got="padding on the left", expected="on the right", fix=fix)
        known = MemberFacts(
            inputs={one.name: one for one in manifest.inputs},
            outputs={one.name: one for one in manifest.outputs},
            max_batch_size=manifest.max_batch_size,
            instances=None,
        )
        facts = facts.completed_from(known)
    if facts.inputs is None or facts.outputs is None:
        raise RepositoryError(what, got=f"no manifest and no config.pbtxt in {folder} that name its tensors")
    return facts, manifest


def _refuse_unread(spec: CascadeSpec, models: Mapping[str, tuple[MemberFacts, object]]) -> None:
    name, (facts, _) = next(iter(models.items()))
    got, expected = ", ".join(facts.outputs or ()), ", ".join(one.name for one in spec.inputs)
    raise RepositoryError(
        f"`derive` {name}", got=f"outputs {got}", expected=f"one of the plan's inputs {expected}"
    )


def _with_model(
    spec: CascadeSpec, name: str, facts: MemberFacts, manifest: DerivingManifest | None
) -> CascadeSpec:
    made = [one for one in spec.inputs if one.name in (facts.outputs or {})]
    known = {key: one for key, one in spec.tensors.items() if one not in made}
    is_exported = manifest is not None
    reads = (facts.inputs or {}).values()
    sources = {one.name: _source(one, known, name, is_exported=is_exported) for one in reads}
    new = [one for one in sources.values() if isinstance(one, InputSpec)]
    inputs = {one.name: one for one in (*spec.inputs, *new) if one not in made}
    pads = {} if manifest is None else {one.name: one.pad or 0 for one in manifest.outputs}
    model = Derived(
        name=name,
        inputs={tensor: source.name for tensor, source in sources.items()},
        outputs=tuple(_derived(one, pads.get(one.name, 0)) for one in made),
        max_batch_size=facts.max_batch_size or 1,
        sha256=None if manifest is None else manifest.sha256,
    )
    return dataclasses.replace(spec, inputs=tuple(inputs.values()), derived=(*spec.derived, model))


def _derived(tensor: InputSpec, pad: float) -> DerivedTensor:
    """An input of the plan as the output of a model that pads it so, where the plan does not say."""
    pad = tensor.pad or (0 if tensor.length_axis is None else pad)
    return DerivedTensor(name=tensor.name, dtype=tensor.dtype, dims=tensor.dims, pad=pad, buckets=tensor.buckets)


def _source(tensor: Tensor, known: Mapping[str, RowTensor], model: str, *, is_exported: bool) -> RowTensor:
    """The tensor of the plan that a model's tensor gets: that of its name, else one like it, else a new input.

    Exported models have names that say what they read, so of those no other name is taken for the same thing.
    """
    dtype = plan_dtype(tensor.dtype)
    alike = [one for one in known.values() if one.dtype == dtype and fits(one.dims, tensor.dims)]
    source = known.get(tensor.name)
    if source is not None and source not in alike:
        got, expected = (f"{one.dtype} {list(one.dims)}" for one in (tensor, source))
        what = f"`derive` {model}, input {tensor.name}"
        raise RepositoryError(what, got=got, expected=f"{expected}, which the plan has under that name")
    if source is None and len(alike) == 1 and not is_exported:
        return alike[0]
    return source or InputSpec(name=tensor.name, dtype=dtype, dims=tensor.dims)
