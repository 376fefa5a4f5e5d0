"""Members of a repository: reading what was exported, what may be written over, packing and writing.

Protobuf cannot hold more than 2 GB, so larger models keep their weights in a file named by its content: an old
model file goes on pointing at its own weights until the new one takes its place. Everything here raises
RepositoryError where the disk refuses, and SpecError for a wrong manifest.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from orchestrator.errors import ExportError, SpecError, first_line
from orchestrator.files import nearest_existing
from orchestrator.graphs.editing import all_tensors, given_inputs
from orchestrator.repository.files import disk_errors, sha256_of_path, write_all
from orchestrator.repository.index import model_folders
from orchestrator.repository.render import render_member
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST, json_from_manifest
from orchestrator.spec.validation import NAME

MODEL_FILE = "1/model.onnx"


@dataclass(frozen=True)
class ReadMember:
    """A member's manifest and its graph, weights included."""

    manifest: Manifest
    model: onnx.ModelProto


def manifest_in(repository: Path, name: str) -> Manifest:
    """The manifest of an exported member; ExportError where there is none names those that there are."""
    folders = model_folders(repository)
    if name not in folders or not (folders[name] / MANIFEST).is_file():
        known = [other for other, folder in folders.items() if (folder / MANIFEST).is_file()]
        raise ExportError(
            f"member {name} of {repository}",
            got="no such model" if name not in folders else f"a model without {MANIFEST}",
            expected=f"one of {', '.join(known)}" if known else "an exported member, and there is none",
        )
    return manifest_from_path(folders[name] / MANIFEST)


def onnx_manifest(repository: Path, name: str) -> Manifest:
    """The manifest of an ONNX member; ExportError where its files are not those the manifest describes."""
    manifest = manifest_in(repository, name)
    folder = repository / name
    if not manifest.file.endswith(".onnx"):
        fix = "name the ONNX member it was made from"
        raise ExportError(f"member {name}", got=f"model file {manifest.file}", expected="an ONNX member", fix=fix)
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


def member_from_repository(repository: Path, name: str) -> ReadMember:
    """An exported ONNX member; ExportError where it is not the file its manifest describes, or not readable."""
    manifest = onnx_manifest(repository, name)
    return ReadMember(manifest, _model(repository / name / manifest.file, manifest))


def _model(path: Path, manifest: Manifest) -> onnx.ModelProto:
    what = f"model file {path}"
    try:
        with disk_errors(what):
            model = onnx.load(str(path))
            # By path: the checker cannot take a model of more than 2 GB out of memory.
            onnx.checker.check_model(str(path))
    # protobuf's DecodeError, the checker's ValidationError and numpy's ValueError share no base but Exception.
    except (ValueError, TypeError, onnx.checker.ValidationError, DecodeError) as error:
        expected = "an ONNX model"
        raise ExportError(what, got=first_line(error), expected=expected, fix="export the member again") from error
    inputs, wanted = ([one.name for one in side] for side in (given_inputs(model.graph), manifest.inputs))
    if sorted(inputs) != sorted(wanted):
        expected = f"{', '.join(wanted)} as in {MANIFEST}"
        raise ExportError(what, got=f"inputs {', '.join(inputs) or 'none'}", expected=expected)
    return model


def is_current(
    folder: Path, settings: dict[str, Any], *, field: str = "options", apart_from: str | None = None
) -> bool:
    """Whether the member there was made with these settings, and its files are untouched since.

    The manifest keeps them in `field`, "options" or "training"; the one called `apart_from` may differ.
    """
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return False
    made_with, wanted = (
        {key: value for key, value in one.items() if key != apart_from}
        for one in (getattr(manifest, field), settings)
    )
    files = {manifest.file: manifest.sha256, **manifest.data_files}
    return made_with == wanted and all(
        (folder / file).is_file() and sha256_of_path(folder / file) == digest for file, digest in files.items()
    )


def output_kind_option(manifest: Manifest) -> dict[str, str]:
    """The option that a derived member keeps of the original, which may be exported with another kind later."""
    return {} if manifest.output_kind == "logits" else {"output_kind": manifest.output_kind}


def check_overwrite(
    repository: Path, names: Iterable[str], *, foreign: Callable[[Path], str | None], expected: str, force: bool
) -> None:
    """Refuses, before any work, to write over models that are not the caller's own, unless with `force`.

    Whoever writes makes the repository, so that a failure leaves none. `foreign` says what lies in a folder
    instead of an earlier model of the caller, None where it may be written over: see `foreign_member`. `expected`
    is what may be, in words. Raises ExportError where a folder holds another model, or a name is none.
    """
    names = list(names)
    for name in names:
        if not NAME.match(name):
            raise ExportError("`name`", got=repr(name), expected="letters, digits, '_', '.', '-'")
    with disk_errors(f"repository {repository}"):
        place = nearest_existing(repository)
        with os.scandir(place):  # which a file refuses
            pass
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        taken = {} if force else {one: text for one in names if (text := foreign(repository / one)) is not None}
    if taken:
        raise ExportError(
            f"repository {repository}",
            got=", ".join(f"{text} called {name}" for name, text in taken.items()),
            expected=expected,
            fix="choose another `name` or `output`, or write over it with `force`",
        )


def foreign_member(is_own: Callable[[Manifest], bool]) -> Callable[[Path], str | None]:
    """For `check_overwrite`: files are foreign unless they are of a member that the caller calls its own."""

    def foreign(folder: Path) -> str | None:
        if not any(path.is_file() for path in folder.rglob("*")):
            return None
        try:
            manifest = manifest_from_path(folder / MANIFEST)
        except SpecError:
            return "a model that was not exported here"
        return None if is_own(manifest) else f"a member from {manifest.source}"

    return foreign


def check_made_by(command: str, repository: Path, name: str, *, force: bool) -> None:
    """Raises ExportError where a folder of that name holds a model that the command did not make."""
    check_overwrite(
        repository,
        [name],
        foreign=foreign_member(lambda manifest: manifest.options.get("command") == command),
        expected=f"no such model, or an earlier one of `python -m export {command}`",
        force=force,
    )


# Below protobuf's limit with room for the graph itself.
EXTERNAL_OVER_BYTES = 1_900_000_000
# Left free on the disk after a model is written.
_MARGIN_BYTES = 64 << 20
_WORK = ".committee-export-"


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A stored model: its folder, the hash of the model file, and name -> hash of each file of weights."""

    folder: Path
    sha256: str
    data_files: dict[str, str]

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / Path(MODEL_FILE).name


@contextmanager
def _work_folder(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's disk, beside it: a server takes folders inside for models.

    Where the folder above is on another disk or cannot be written it lies inside after all. Folders of exports
    that were killed are removed on the way.
    """
    repository.mkdir(parents=True, exist_ok=True)
    above = repository.resolve().parent
    beside = above if os.access(above, os.W_OK) and above.stat().st_dev == repository.stat().st_dev else repository
    for old in beside.glob(f"{_WORK}*"):
        owner = old.name.removeprefix(_WORK).partition("-")[0]
        if owner.isdecimal() and not _runs(int(owner)):
            shutil.rmtree(old, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{_WORK}{os.getpid()}-", dir=beside) as name:
        yield Path(name)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # Any other refusal is about a process that is there.
        return not isinstance(error, ProcessLookupError)
    return True


def require_room(folder: Path, size_bytes: int) -> None:
    """Raises ExportError where a disk has no room for that many bytes."""
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < size_bytes + _MARGIN_BYTES:
        expected = f"{(size_bytes + _MARGIN_BYTES) >> 20} MiB"
        fix = "make room, or choose another `output`"
        raise ExportError(f"writing to {folder}", got=f"{free >> 20} MiB free", expected=expected, fix=fix)


@contextmanager
def packed(
    model: onnx.ModelProto, beside: Path, *, over_bytes: int = EXTERNAL_OVER_BYTES
) -> Iterator[PackedModel]:
    """The model's files in a temporary folder on their disk; files that are not moved go with the block.

    Weights of more than `over_bytes` go into a file of their own; those in memory stay there. `beside` is a folder
    on the disk, made if it is not there. Raises ExportError where the disk is too full.
    """
    size = sum(len(weight.raw_data) for weight in all_tensors(model))
    require_room(beside, size)
    with disk_errors(f"writing to {beside}"), _work_folder(beside) as folder:
        if size <= over_bytes:
            yield _written(model, folder, {})
        else:
            yield _with_weights_beside(model, folder)


def _written(model: onnx.ModelProto, folder: Path, data_files: dict[str, str]) -> PackedModel:
    data = model.SerializeToString(deterministic=True)
    stored = PackedModel(folder=folder, sha256=hashlib.sha256(data).hexdigest(), data_files=data_files)
    stored.path.write_bytes(data)
    return stored


def _with_weights_beside(model: onnx.ModelProto, folder: Path) -> PackedModel:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / "with_weights.onnx"
    onnx.save_model(copy, str(path), save_as_external_data=True, location="weights", size_threshold=1024)
    digest = sha256_of_path(folder / "weights")
    name = f"model-{digest[:12]}.data"
    (folder / "weights").rename(folder / name)
    small = onnx.load(str(path), load_external_data=False)
    path.unlink()
    for weight in all_tensors(small):
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = name
    return _written(small, folder, {name: digest})


def write_member(repository: Path, model: bytes | PackedModel, manifest: Manifest) -> Path:
    """Writes a member's folder: weights, model, manifest, config, in that order; a packed model is moved.

    An interruption leaves the old model with its own weights, or the new one without its manifest, which is not
    taken for a member.
    """
    folder = repository / manifest.name
    kept = {} if isinstance(model, bytes) else model.data_files
    if isinstance(model, bytes):
        write_all(folder, {manifest.file: model})
    with disk_errors(f"writing {folder}"):
        inside = (folder / manifest.file).parent
        inside.mkdir(parents=True, exist_ok=True)
        if not isinstance(model, bytes):
            for name in (*kept, model.path.name):
                (model.folder / name).replace(inside / name)
        write_all(folder, {MANIFEST: json_from_manifest(manifest)})
        for old in inside.glob("model-*.data"):
            if old.name not in kept:
                old.unlink()
    render_member(folder)
    return folder
