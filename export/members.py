"""Putting a member into a model repository: model file, manifest and config, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx

from export.cost import COUNTER, macs_per_row, parameters_of
from export.packing import Packed
from export.parity import Parity
from orchestrator.errors import ExportError, SpecError
from orchestrator.repository.files import disk_errors, write_all
from orchestrator.repository.render import render_member
from orchestrator.spec import Manifest, Preprocess, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import json_from_manifest

MODEL_FILE = "1/model.onnx"


def write_member(repository: Path, model: bytes, manifest: Manifest) -> Path:
    """Writes a member's folder; the manifest comes last, so an interrupted write is never taken for a member.

    Args:
        repository: model repository.
        model: serialised ONNX model.
        manifest: of it.

    Returns:
        the member's folder.
    """
    folder = repository / manifest.name
    write_all(folder, {manifest.file: model, "manifest.json": json_from_manifest(manifest)})
    render_member(folder)
    return folder


def store_member(repository: Path, stored: Packed, manifest: Manifest) -> Path:
    """Moves a packed model to its place in a member's folder: weights, model, manifest, config, in that order.

    An interruption leaves the old model with its own weights, or the new one without its manifest, which is not
    taken for a member.

    Args:
        repository: model repository, on the same disk as the packed model.
        stored: the model's files.
        manifest: of it.

    Returns:
        the member's folder.
    """
    folder = repository / manifest.name
    inside = (folder / manifest.file).parent
    with disk_errors(f"writing {folder}"):
        inside.mkdir(parents=True, exist_ok=True)
        for name in (*stored.data_files, stored.path.name):
            (stored.folder / name).replace(inside / name)
        write_all(folder, {"manifest.json": json_from_manifest(manifest)})
        for old in inside.glob("model-*.data"):
            if old.name not in stored.data_files:
                old.unlink()
    render_member(folder)
    return folder


def require_ours(repository: Path, names: Iterable[str], *, force: bool) -> None:
    """Refuses, before any work, to write over models that were not exported here.

    Args:
        repository: model repository to write into; made if it is not there.
        names: members about to be written.
        force: write over them all the same.

    Raises:
        ExportError: a folder of that name holds a model without a manifest.
        RepositoryError: the repository cannot be written.
    """
    with disk_errors(f"repository {repository}"):
        repository.mkdir(parents=True, exist_ok=True)
        foreign = [
            name
            for name in names
            if (repository / name / MODEL_FILE).exists() and not (repository / name / "manifest.json").exists()
        ]
    if foreign and not force:
        raise ExportError(
            f"repository {repository}",
            got=f"models without a manifest: {', '.join(foreign)}",
            expected="members exported here, or none",
            fix="choose another --output, or write over them with --force",
        )


def require_own(repository: Path, sources: Mapping[str, str], *, force: bool) -> None:
    """Refuses, before any work, to write over a model that another source or somebody else made.

    Args:
        repository: model repository to write into; made if it is not there.
        sources: member about to be written -> its source.
        force: write over it all the same.

    Raises:
        ExportError: a folder of that name holds another model.
        RepositoryError: the repository cannot be written.
    """
    with disk_errors(f"repository {repository}"):
        repository.mkdir(parents=True, exist_ok=True)
        taken = {} if force else {n: t for n, s in sources.items() if (t := _other(repository / n, s)) is not None}
    if taken:
        raise ExportError(
            f"repository {repository}",
            got=", ".join(f"{text} called {name}" for name, text in taken.items()),
            expected="no such model, or an earlier export of the same source",
            fix="choose another --name or --output, or write over it with --force",
        )


def _other(folder: Path, source: str) -> str | None:
    """What lies in a member's folder instead of an export of that source, None where nothing does."""
    if not folder.exists() or not any(path.is_file() for path in folder.rglob("*")):
        return None
    try:
        manifest = manifest_from_path(folder / "manifest.json")
    except SpecError:
        return "a model that was not exported here"
    return None if manifest.options.get("source") == source else f"a member from {manifest.source}"


def manifest_of(
    name: str,
    model: onnx.ModelProto,
    data: bytes,
    *,
    source: str,
    input_spec: TensorSpec,
    output_spec: TensorSpec,
    parity: Parity,
    training: dict[str, object],
    labels: tuple[str, ...],
    preprocess: Preprocess | None,
    versions: dict[str, str],
) -> Manifest:
    """The manifest of an fp32 ONNX member with logits out."""
    return Manifest(
        name=name,
        file=MODEL_FILE,
        sha256=hashlib.sha256(data).hexdigest(),
        source=source,
        precision="fp32",
        opset=next(part.version for part in model.opset_import if part.domain in ("", "ai.onnx")),
        input=input_spec,
        output=output_spec,
        output_kind="logits",
        parameters=parameters_of(model),
        macs=macs_per_row(model),
        macs_counter=COUNTER,
        labels=labels,
        preprocess=preprocess,
        parity={**dataclasses.asdict(parity), "batches": list(parity.batches)},
        training=dict(training),
        versions=versions,
    )


def up_to_date(repository: Path, name: str, training: dict[str, object]) -> bool:
    """Whether a member lies there already, made with the same settings and not touched since."""
    try:
        manifest = manifest_from_path(repository / name / "manifest.json")
        data = (repository / name / manifest.file).read_bytes()
    except (SpecError, OSError):
        return False
    return manifest.training == training and manifest.sha256 == hashlib.sha256(data).hexdigest()
