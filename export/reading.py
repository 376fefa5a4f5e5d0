"""Members read back from a repository, to make other members of; every fault of what lies there is one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from orchestrator.errors import ExportError, SpecError
from orchestrator.repository.files import disk_errors, sha256_of_path
from orchestrator.repository.index import model_folders
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.validation import NAME

MANIFEST = "manifest.json"


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
