"""Models that make tensors which members read, such as tokenizers: what a plan says of them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.spec import CascadeSpec, InputSpec
from orchestrator.spec.derived import Derived, DerivedTensor
from orchestrator.spec.deriving import DerivingManifest, deriving_from_path
from orchestrator.spec.manifest import MANIFEST


def with_derived(
    spec: CascadeSpec, names: Sequence[str], repository: Path, *, skip_unread: bool = False
) -> CascadeSpec:
    """A plan whose requests bring what the deriving models of a repository read, and not what these make.

    Its members must not say yet what they read. Raises DataError where a model has no manifest, or makes nothing
    that a member reads unless such ones are to be skipped, SpecError where the manifest is wrong or a member's.
    """
    for name in names:
        path = repository / name / MANIFEST
        if not path.is_file():
            fix = "write it with `python -m export tokenizer`, or write `derived` into cascade.json by hand"
            raise DataError(f"`derive` {name}", got=f"no {path}", expected="a model that derives tensors", fix=fix)
        manifest = deriving_from_path(path)
        if manifest.pads_left:
            fix = "export it again with `tokenizer.padding_side=right`, if its model allows that"
            raise DataError(f"`derive` {name}", got="padding on the left", expected="on the right", fix=fix)
        known = {one.name: one for one in spec.inputs}
        made = {one.name for one in manifest.outputs}
        if skip_unread and not made & set(known):
            continue
        if not made & set(known):
            got, expected = f"a model that makes {', '.join(made)}", f"some of {', '.join(known)}"
            raise DataError(f"`derive` {name}", got=got, expected=f"{expected}, which members read")
        read = {one.name: InputSpec(name=one.name, dtype=one.dtype, dims=one.dims) for one in manifest.inputs}
        inputs = [*({**read, **known}[key] for key in dict.fromkeys([*known, *read]) if key not in made)]
        model = _derived(manifest, known)
        spec = dataclasses.replace(spec, inputs=tuple(inputs), derived=(*spec.derived, model))
    return spec


def _derived(manifest: DerivingManifest, known: dict[str, InputSpec]) -> Derived:
    """The model; how its tensors are padded and grouped is for the members that read them to say."""
    outputs = []
    for one in manifest.outputs:
        tensor = DerivedTensor(name=one.name, dtype=one.dtype, dims=one.dims, pad=one.pad or 0)
        reader = known.get(one.name)
        if reader is not None and reader.buckets:
            tensor = dataclasses.replace(tensor, pad=reader.pad, buckets=reader.buckets)
        outputs.append(tensor)
    return Derived(
        name=manifest.name,
        sha256=manifest.sha256,
        inputs={one.name: one.name for one in manifest.inputs},
        outputs=tuple(outputs),
        max_batch_size=manifest.max_batch_size,
    )
