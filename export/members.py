"""Members read back from a repository, to make other members of; every fault of what lies there is one line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from export.cost.counting import COUNTER, macs_per_row, parameters_of
from export.packing import PackedModel
from export.parity import Parity
from orchestrator.errors import ExportError, SpecError
from orchestrator.repository.files import disk_errors, sha256_of_path, write_all
from orchestrator.repository.index import model_folders
from orchestrator.repository.render import render_member
from orchestrator.spec import Manifest, Preprocess, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST, json_from_manifest
from orchestrator.spec.validation import NAME


@dataclass(frozen=True)
class ReadMember:
    """A member's manifest and its graph, weights included."""

    manifest: Manifest
    model: onnx.ModelProto


def manifest_in(repository: Path, name: str) -> Manifest:
    """The manifest of an exported member.

    Raises:
        ExportError: there is no such member; the ones there are are named.
        RepositoryError: the repository cannot be read.
        SpecError: the manifest is wrong.
    """
    folders = model_folders(repository)
    if name not in folders or not (folders[name] / MANIFEST).is_file():
        known = [other for other, folder in folders.items() if (folder / MANIFEST).is_file()]
        raise ExportError(
            f"member {name} of {repository}",
            got="no such model" if name not in folders else f"a model without {MANIFEST}",
            expected=f"one of {', '.join(known)}" if known else "an exported member, and there is none",
        )
    return manifest_from_path(folders[name] / MANIFEST)


def member_from_repository(repository: Path, name: str) -> ReadMember:
    """An exported ONNX member, after checking that it is the file its manifest describes.

    Raises:
        ExportError: no such member, not an ONNX one, not the described file, or not readable.
        RepositoryError: the repository cannot be read.
        SpecError: the manifest is wrong.
    """
    manifest = onnx_manifest(repository, name)
    return ReadMember(manifest, _model(repository / name / manifest.file))


def onnx_manifest(repository: Path, name: str) -> Manifest:
    """The manifest of an ONNX member, its files being those it describes.

    Raises:
        ExportError: no such member, not an ONNX one, or not the described file.
        RepositoryError: the repository cannot be read.
        SpecError: the manifest is wrong.
    """
    manifest = manifest_in(repository, name)
    folder = repository / name
    if not manifest.file.endswith(".onnx"):
        raise ExportError(
            f"member {name}",
            got=f"model file {manifest.file}",
            expected="an ONNX member",
            fix="name the ONNX member it was made from",
        )
    for file, digest in {manifest.file: manifest.sha256, **manifest.data_files}.items():
        found = sha256_of_path(folder / file)
        if found != digest:
            raise ExportError(
                f"model file {folder / file}",
                got=f"sha256 {found[:12]}...",
                expected=f"{digest[:12]}... as in {MANIFEST}",
                fix="export the member again",
            )
    return manifest


def _model(path: Path) -> onnx.ModelProto:
    what = f"model file {path}"
    try:
        with disk_errors(what):
            model = onnx.load(str(path))
            # By path: the checker cannot take a model of more than 2 GB out of memory.
            onnx.checker.check_model(str(path))
    # protobuf's DecodeError, the checker's ValidationError and numpy's ValueError share no base but this.
    except (ValueError, TypeError, onnx.checker.ValidationError, DecodeError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(what, got=first[0], expected="an ONNX model", fix="export the member again") from error
    fed = {weight.name for weight in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in fed]
    if len(inputs) != 1:
        raise ExportError(what, got=f"inputs {', '.join(inputs) or 'none'}", expected="one input")
    return model


def is_current(folder: Path, options: dict[str, Any], *, apart_from: str | None = None) -> bool:
    """Whether the member there was made with these options, and its files are untouched since.

    Args:
        folder: of the member.
        options: that decide its files.
        apart_from: an option that may differ.
    """
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return False
    files = {manifest.file: manifest.sha256, **manifest.data_files}
    made_with, wanted = ({k: v for k, v in one.items() if k != apart_from} for one in (manifest.options, options))
    return made_with == wanted and all(
        (folder / file).is_file() and sha256_of_path(folder / file) == digest for file, digest in files.items()
    )


def of_output_kind(manifest: Manifest) -> dict[str, str]:
    """What a member made of this one keeps of its output kind among its options.

    The same file may be found to give another kind than an earlier export said.
    """
    return {} if manifest.output_kind == "logits" else {"output_kind": manifest.output_kind}


def require_free(repository: Path, name: str, *, command: str, force: bool) -> None:
    """Refuses to write over a model that this command did not make.

    Args:
        repository: to be written into.
        name: of the member about to be written.
        command: whose own members may be replaced.
        force: replace any model.

    Raises:
        ExportError: the name is taken, or is none.
    """
    if not NAME.match(name):
        raise ExportError("member name", got=repr(name), expected="letters, digits, '_', '.', '-'")
    folder = repository / name
    if not any(path.is_file() for path in folder.rglob("*")):
        return
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        manifest = None
    if force or (manifest is not None and manifest.options.get("command") == command):
        return
    made = "a model that was not exported here" if manifest is None else f"a member from {manifest.source}"
    fix = "choose another --name, or write over it with --force"
    raise ExportError(f"name {name} in {repository}", got=made, expected="a free name", fix=fix)


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
    write_all(folder, {manifest.file: model, MANIFEST: json_from_manifest(manifest)})
    render_member(folder)
    return folder


def store_member(repository: Path, stored: PackedModel, manifest: Manifest) -> Path:
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
        write_all(folder, {MANIFEST: json_from_manifest(manifest)})
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
            if (repository / name / MODEL_FILE).exists() and not (repository / name / MANIFEST).exists()
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
        manifest = manifest_from_path(folder / MANIFEST)
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
        manifest = manifest_from_path(repository / name / MANIFEST)
        data = (repository / name / manifest.file).read_bytes()
    except (SpecError, OSError):
        return False
    return manifest.training == training and manifest.sha256 == hashlib.sha256(data).hexdigest()
