"""Trained models from any source into members: network, image processing, proof, manifest.

Members of one committee fit each other: one image size, one set of classes, one name each. Everything here raises
RepositoryError where the repository cannot be written.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export import members
from export.compat import portable
from export.cost.counting import COUNTER, macs_per_row, parameters_of, preprocess_macs_per_row
from export.cost.lengths import FITTED, length_of, macs_in_a_run
from export.images import preprocess_only, with_preprocess
from export.members import EXTERNAL_OVER_BYTES, MODEL_FILE, PackedModel
from export.output import (
    AUTO,
    ObservedReference,
    label_options,
    output_kind_of,
    rename_if_current,
    require_one_per_class,
    require_same_classes,
)
from export.parity import (
    MIN_ROWS,
    image_parity,
    in_the_same_order,
    length_parity,
    original_of,
    parity_of,
    pillow_processed,
    varied_rows,
)
from export.precision.derive import export_precision, require_sense
from export.precision.overflow import processor_flags_of
from export.proof import prove_model, refresh_member
from export.runtimes import installed_version
from export.sources import ExportOptions, LoadedModel, SourceRef, identify
from export.tensor_rows import AnyRows, TensorRows, made_up_rows, rows_of_lengths
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.graphs.editing import opset_of
from orchestrator.spec import Manifest, Preprocess, RowLength, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.output_kind import EXCLUSIVE
from orchestrator.spec.validation import NAME

EXPORT_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class MemberExport:
    """One member to export."""

    name: str
    source: SourceRef
    options: ExportOptions  # of its source
    image_px: tuple[int, int] | None = None  # (height, width) of the committee's images; None for its own size
    parity_rows: int = MIN_ROWS  # rows compared with the original
    max_batch_size: int = 64
    external_over_bytes: int = EXTERNAL_OVER_BYTES  # weights of more than that go into a file of their own
    runtimes: tuple[str, ...] = ()  # versions of ONNX Runtime that it is proven on, besides the installed one

    def settings(self) -> dict[str, Any]:
        """Everything that decides the member's files, as its manifest keeps it; `runtimes` decide none."""
        asked = self.options
        return {
            "format": EXPORT_FORMAT,
            "source": self.source.text,
            "files": dict(self.source.files),
            "resolution_px": asked.resolution_px,
            "image_px": list(self.image_px) if self.image_px else None,
            "random_weights": asked.random_weights,
            "seed": asked.seed,
            "mean": list(asked.mean) if asked.mean else None,
            "std": list(asked.std) if asked.std else None,
            "dims": list(asked.dims) if asked.dims else None,
            "output_kind": asked.output_kind,
            "output_name": asked.output_name,
            # Left out where they are not given, so that members of earlier exports stay current.
            **({"keep_opset": True} if asked.keep_opset else {}),
            **({"macs": asked.macs} if asked.macs is not None else {}),
            **({"max_length": asked.max_length} if asked.max_length is not None else {}),
            **({"inputs": dict(asked.inputs)} if asked.inputs else {}),
            **({"pads": dict(asked.pads)} if asked.pads else {}),
            **label_options(asked.labels),
            "parity_rows": self.parity_rows,
            "max_batch_size": self.max_batch_size,
        }


def export_member(
    repository: Path,
    plan: MemberExport,
    *,
    force: bool,
    progress: Callable[[str], None],
    beside: Manifest | None = None,
) -> str:
    """Exports a member unless it is there already; `force` also writes over a model that was not exported here.

    `beside` is another member of the same committee, whose classes it must share. Gives "exported", "up to date",
    "proven" where it was up to date but not yet proven on all of the plan's runtimes, or "named" where only the
    names of its classes are others.

    Raises ExportError where the source, the export or its proof failed; what was there before is untouched.
    """
    check_source(repository, plan, force=force)
    name, settings = plan.name, plan.settings()
    renamed = not force and rename_if_current(
        repository, name, plan.options.labels, options=settings, beside=beside
    )
    if not force and members.is_current(repository / name, settings):
        return refresh_member(repository, name, versions=plan.runtimes, renamed=renamed, progress=progress)

    def say(text: str) -> None:
        progress(f"{name}: {text}")

    say(f"reading {plan.source.text}")
    loaded = plan.source.load()
    _require_fitting_options(loaded, plan.options, subject=plan.source.text)
    if plan.options.labels is not None:
        loaded = dataclasses.replace(loaded, labels=plan.options.labels)
    tensors = tuple(kind.spec for kind in loaded.kinds)
    tensor = TensorSpec(name=loaded.input_name, dtype=loaded.dtype, dims=loaded.dims)
    if loaded.processing is not None:
        image_px = plan.image_px or loaded.processing.image_px()
        assert image_px is not None
        tensor = TensorSpec(name="image", dtype="UINT8", dims=(loaded.processing.channels, *image_px))
        loaded = in_the_same_order(loaded, varied_rows(tensor, 4, seed=1))
    tensors = tensors or (tensor,)
    spread = _spread(loaded, plan, tensor)
    say("exporting to ONNX")
    model = portable(_network(loaded))
    if loaded.processing is not None:
        model = with_preprocess(model, loaded.processing, height_px=tensor.dims[1], width_px=tensor.dims[2])
    with members.packed(model, repository, over_bytes=plan.external_over_bytes) as stored:
        manifest = _manifest(plan, loaded, model, stored, tensors, spread=spread, progress=say)
        if beside is not None:
            require_same_classes(manifest, beside)
        members.write_member(repository, stored, manifest)
    return "exported"


def check_source(repository: Path, plan: MemberExport, *, force: bool) -> None:
    """Raises ExportError where a folder of that name holds a model that is not from the same source."""
    members.check_overwrite(
        repository,
        [plan.name],
        foreign=members.foreign_member(lambda manifest: manifest.options.get("source") == plan.source.text),
        expected="no such model, or an earlier export of the same source",
        force=force,
    )


def _require_fitting_options(loaded: LoadedModel, asked: ExportOptions, *, subject: str) -> None:
    """Raises ExportError for an option that would change nothing: of pictures for tokens, or the other way."""
    of_pictures, of_lengths = ("resolution_px", "mean", "std", "dims"), ("max_length", "pads")
    if loaded.network is not None and loaded.kinds:
        wrong, what = of_pictures, "tensors of tokens"
    elif not loaded.kinds:
        # The only input of most sources is called image; those that take another name have it by now.
        is_named = loaded.input_name in asked.inputs.values()
        wrong, what = (*of_lengths, *(() if is_named else ("inputs",))), "rows of fixed shape"
    else:
        return
    for name in wrong:
        if getattr(asked, name):
            raise ExportError(f"{subject} `{name}`", got=f"it for a model that takes {what}", expected="none")


def _spread(loaded: LoadedModel, plan: MemberExport, tensor: TensorSpec) -> dict[str, float]:
    if not plan.options.random_weights or loaded.network is None:
        return {}
    # PyTorch is optional.
    from export.from_torch import spread_scores

    # For the statistics and the spread.
    rows = _made_up(loaded, tensor, 20, seed=plan.options.seed)
    if isinstance(rows, TensorRows):
        return spread_scores(loaded.network, *rows.arrays.values(), seed=plan.options.seed)
    if loaded.processing is not None:
        rows = pillow_processed(loaded.processing, rows)
    return spread_scores(loaded.network, rows.astype(np.float32), seed=plan.options.seed)


def _made_up(loaded: LoadedModel, tensor: TensorSpec, n: int, *, seed: int) -> AnyRows:
    """Made-up rows of a member's only tensor, or of all of them."""
    if loaded.kinds:
        return made_up_rows(loaded.kinds, n, longest=loaded.longest, seed=seed)
    if loaded.rows is not None:
        return loaded.rows(n, seed)
    return varied_rows(tensor, n, seed=seed)


def _network(loaded: LoadedModel) -> onnx.ModelProto:
    if loaded.proto is not None:
        return loaded.proto
    # Optional: an ONNX file needs none.
    import torch

    from export.from_torch import onnx_from_torch, require_answer

    assert loaded.network is not None
    if loaded.kinds:
        # Another length than number of rows: the exporter takes equal sizes for one.
        rows = rows_of_lengths(loaded.kinds, np.array([min(loaded.longest, size) for size in (7, 5, 3)]))
        tensors = {name: torch.from_numpy(one) for name, one in rows.arrays.items()}
        require_answer(loaded.network, *tensors.values())
        return onnx_from_torch(loaded.network, tensors, varying=rows.pad)
    # Two different rows: constants would let the exporter believe that rows are alike.
    example = torch.randn(2, *loaded.dims, generator=torch.Generator().manual_seed(0))
    require_answer(loaded.network, example)
    return onnx_from_torch(loaded.network, example)


def _manifest(
    plan: MemberExport,
    loaded: LoadedModel,
    model: onnx.ModelProto,
    stored: PackedModel,
    tensors: tuple[TensorSpec, ...],
    *,
    spread: dict[str, float],
    progress: Callable[[str], None],
) -> Manifest:
    asked, subject, tensor = plan.options, plan.source.text, tensors[0]
    rows = _made_up(loaded, tensor, plan.parity_rows, seed=1)
    in_graph: dict[str, Any] = {}
    if loaded.processing is not None:
        assert not isinstance(rows, TensorRows)
        progress("comparing the image processing")
        in_graph = image_parity(loaded, rows)
    output = _output_of(model, subject, loaded.labels)
    original = ObservedReference(original_of(loaded, tensor))
    least = min(MIN_ROWS, plan.parity_rows)
    lengths: dict[str, Any] = {}
    if isinstance(rows, TensorRows) and rows.pad:
        # First: where padding moves the answers, no comparison in batches can hold.
        progress("comparing rows with padding and without")
        lengths = length_parity(stored.path, original_of(loaded, tensor), loaded, rows, subject=subject)
    parity = parity_of(
        stored.path,
        original,
        rows,
        input_name=tensor.name,
        min_rows=least,
        subject=subject,
        remedy=loaded.remedy,
        progress=progress,
    ).as_json()
    parity |= lengths
    kind = output_kind_of(model, original.evidence, asked=_stated_kind(asked, loaded), subject=subject)
    ask = original_of(loaded, tensor)
    proofs = prove_model(subject, stored.path, ask, rows, versions=plan.runtimes, progress=progress)
    length = _length(model, loaded, given=asked.macs)
    macs, preprocess_macs, counter = _cost(model, loaded, tensor, given=asked.macs, length=length)
    return Manifest(
        name=plan.name,
        file=MODEL_FILE,
        sha256=stored.sha256,
        data_files={f"1/{name}": digest for name, digest in stored.data_files.items()},
        source=subject,
        precision="fp32",
        opset=opset_of(model),
        inputs=tensors,
        output=output,
        output_kind=kind,
        parameters=parameters_of(model),
        macs=macs,
        preprocess_macs=preprocess_macs,
        macs_counter=counter,
        labels=loaded.labels,
        max_batch_size=plan.max_batch_size,
        random_weights=asked.random_weights,
        preprocess=_client_side(loaded, tensor),
        parity=parity,
        training={"random_top_probability": spread} if spread else {},
        resolution_px=loaded.dims[-1] if loaded.processing is not None else None,
        in_graph=in_graph,
        original=dict(loaded.original),
        length=length,
        columns=loaded.columns,
        options=plan.settings(),
        versions={**loaded.versions, "onnx": onnx.__version__, "onnxruntime": installed_version()},
        processor_flags=processor_flags_of(model),
        runtimes={version: proof.as_json() for version, proof in proofs.items()},
    )


def _length(model: onnx.ModelProto, loaded: LoadedModel, *, given: float | None) -> RowLength | None:
    """What is known of rows whose length varies; work that was given is that of every length."""
    pad = {kind.spec.name: kind.pad for kind in loaded.kinds if kind.varies}
    if not pad:
        return None
    if given is not None:
        return RowLength(longest=loaded.longest, pad=pad, macs_at=loaded.longest, macs_coefficients=(given, 0, 0))
    return length_of(model, loaded.kinds, longest=loaded.longest)


def _stated_kind(asked: ExportOptions, loaded: LoadedModel) -> str:
    """What the user says of the scores, else what the source says."""
    return loaded.output_kind if asked.output_kind == AUTO else asked.output_kind


def _cost(
    model: onnx.ModelProto,
    loaded: LoadedModel,
    tensor: TensorSpec,
    *,
    given: float | None,
    length: RowLength | None,
) -> tuple[float, float, str]:
    """MACs of the network and of the image processing per row, and the counter of the first."""
    if length is not None:
        return length.macs(length.macs_at), 0.0, "given with --macs" if given is not None else COUNTER + FITTED
    if given is not None:
        if loaded.processing is None:
            return given, 0.0, "given with --macs"
        alone = preprocess_only(loaded.processing, height_px=tensor.dims[1], width_px=tensor.dims[2])
        return given, preprocess_macs_per_row(alone), "given with --macs"
    if loaded.macs is not None:
        return loaded.macs, 0.0, loaded.macs_counter
    try:
        if loaded.kinds:
            return macs_in_a_run(model, loaded.kinds), 0.0, COUNTER
        return macs_per_row(model), preprocess_macs_per_row(model), COUNTER
    except ExportError as error:
        fix = "give the multiply-accumulates of one row with `macs`"
        raise ExportError(error.what, got=error.got, expected=error.expected, fix=fix) from error


def _output_of(model: onnx.ModelProto, subject: str, labels: tuple[str, ...] | None) -> TensorSpec:
    tensor, types = model.graph.output[0].type.tensor_type, onnx.TensorProto
    dims, what = tensor.shape.dim, f"{subject} output"
    if len(dims) == 2 and dims[1].dim_value == 1:
        expected = f"a column per class, at least 2: {EXCLUSIVE}"
        fix = "export two columns, such as the logits 0 and x of a yes-or-no score x"
        raise ExportError(what, got="one column, a yes-or-no score or a regression", expected=expected, fix=fix)
    if len(dims) != 2 or dims[1].dim_value < 2:
        shape = [dim.dim_value or dim.dim_param or "?" for dim in dims]
        raise ExportError(what, got=f"shape {shape}", expected="[rows, classes] with at least 2 classes, fixed")
    require_one_per_class(subject, labels, dims[1].dim_value)
    dtypes: dict[int, str] = {types.FLOAT: "FP32", types.FLOAT16: "FP16", types.DOUBLE: "FP64"}
    if tensor.elem_type not in dtypes:
        got = f"scores of type {types.DataType.Name(tensor.elem_type)}"
        raise ExportError("output", got=got, expected=" or ".join(dtypes.values()))
    return TensorSpec(name="logits", dtype=dtypes[tensor.elem_type], dims=(int(dims[1].dim_value),))


def _client_side(loaded: LoadedModel, tensor: TensorSpec) -> Preprocess | None:
    """What a client does to a picture: decode it and bring it to the committee's size."""
    if loaded.processing is None:
        return None
    channels, height, width = tensor.dims
    keeps_shape = loaded.processing.shortest_px is not None
    return Preprocess(
        mode="RGB" if channels == 3 else "L",
        height_px=height,
        width_px=width,
        resize_px=min(height, width) if keeps_shape else None,
    )


def member_exports(
    sources: Sequence[str],
    options: ExportOptions,
    *,
    resolutions: Sequence[int | None] = (None,),
    name: str | None = None,
    image_px: int | None = None,
) -> list[MemberExport]:
    """The members that sources, SOURCE or NAME=SOURCE, and resolutions give; no weights are read yet.

    `name` is that of the only member, `image_px` the side of the committee's images. A resolution of None is that
    of the options, or the network's own.

    Raises ExportError where a source is not there, or two members would share a name.
    """
    if name is not None and len(sources) * len(resolutions) > 1:
        raise ExportError("`name`", got=f"{len(sources) * len(resolutions)} members", expected="one")
    if name is not None and not NAME.match(name):
        raise ExportError("`name`", got=name, expected="letters, digits, '_', '.' and '-'")
    plans = []
    images = None if image_px is None else (image_px, image_px)
    for text in sources:
        own_name, equals, source = text.partition("=")
        if not equals or NAME.match(own_name) is None:
            own_name, source = "", text
        for side in resolutions:
            one = dataclasses.replace(options, resolution_px=side or options.resolution_px)
            found = identify(source, one)
            made = own_name or found.name
            made = f"{made}_{side}" if len(resolutions) > 1 else made
            plans.append(MemberExport(name=name or made, source=found, options=one, image_px=images))
    twice = sorted(word for word, n in Counter(plan.name for plan in plans).items() if n > 1)
    if twice:
        got = f"{', '.join(twice)} twice"
        raise ExportError("members", got=got, expected="different names", fix="name them: NAME=SOURCE")
    return plans


def export_committee(
    repository: Path,
    plans: Sequence[MemberExport],
    *,
    precisions: Sequence[str] = ("fp32",),
    calibrate: Path | None = None,
    min_agreement: float | None = None,
    force: bool,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Exports the members of one committee; returns what `export_member` says of each.

    Each of `precisions` gives a member of its own; the fp32 one, which the others are made from, is always there.
    `calibrate` are rows for int8; for `min_agreement` see `export_precision`.

    Raises ExportError where a member cannot be exported, or does not fit those before it; the ones before stay.
    """
    for plan in plans:
        check_source(repository, plan, force=force)
    lower = [word for word in precisions if word != "fp32"]
    for word in lower:
        require_sense(plans[0].name, word, calibrate)
    done: dict[str, str] = {}
    first: Manifest | None = None
    how: dict[str, Any] = {"force": force, "progress": progress}
    for plan in _with_one_image_size(plans):
        try:
            done[plan.name] = export_member(repository, plan, beside=first, **how)
            manifest = manifest_from_path(repository / plan.name / MANIFEST)
            first = first or manifest
            # A member that is up to date may be from a committee with other classes.
            require_same_classes(manifest, first)
            for word in lower:
                name, what = export_precision(
                    repository, plan.name, to=word, calibrate=calibrate, min_agreement=min_agreement, **how
                )
                done[name] = what
        except CommitteeError as error:
            raise _with_what_stays(error, done) from error
    return done


def _with_what_stays(error: CommitteeError, done: dict[str, str]) -> CommitteeError:
    """The error, with the members that were exported before it and stay."""
    written = [name for name, what in done.items() if what == "exported"]
    if not written:
        return error
    fix = f"{error.fix}; " if error.fix else ""
    fix += f"exported before it: {', '.join(written)}"
    return ExportError(error.what, got=error.got, expected=error.expected, fix=fix)


def _with_one_image_size(plans: Sequence[MemberExport]) -> list[MemberExport]:
    """The plans with the committee's image size filled in: the largest that any of them needs."""
    if all(plan.image_px is not None for plan in plans):
        return list(plans)
    needed = [size for plan in plans if (size := plan.source.image_px()) is not None]
    if not needed:
        return list(plans)
    largest = (max(height for height, _ in needed), max(width for _, width in needed))
    return [dataclasses.replace(plan, image_px=plan.image_px or largest) for plan in plans]
