"""An ONNX model as the files it is stored in: one, or a small one and its weights beside it.

Protobuf cannot hold more than 2 GB, so larger models keep their weights in a file named by its content: an old
model file goes on pointing at its own weights until the new one takes its place.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from orchestrator.errors import ExportError
from orchestrator.files import nearest_existing
from orchestrator.graphs.editing import all_tensors
from orchestrator.repository.files import disk_errors, sha256_of_path

MODEL = "model.onnx"
# Below protobuf's limit with room for the graph itself.
EXTERNAL_OVER_BYTES = 1_900_000_000
# Left free on the disk after a model is written.
_MARGIN_BYTES = 64 << 20
_WORK = ".committee-export-"


@dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A stored model.

    Args:
        folder: that holds the files.
        sha256: of the model file.
        data_files: name of each file of weights -> sha256.
    """

    folder: Path
    sha256: str
    data_files: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / MODEL


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
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def require_room(folder: Path, size_bytes: int) -> None:
    """Raises ExportError where a disk has no room for that many bytes."""
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < size_bytes + _MARGIN_BYTES:
        raise ExportError(
            f"writing to {folder}",
            got=f"{free >> 20} MiB free",
            expected=f"{(size_bytes + _MARGIN_BYTES) >> 20} MiB",
            fix="make room, or choose another `output`",
        )


@contextmanager
def packed(
    model: onnx.ModelProto, beside: Path, *, over_bytes: int = EXTERNAL_OVER_BYTES
) -> Iterator[PackedModel]:
    """The model's files in a temporary folder on their disk; files that are not moved go with the block.

    Args:
        model: its weights in memory; they stay there.
        beside: a folder on that disk, made if it is not there.
        over_bytes: weights of more than that go into a file of their own.

    Raises:
        ExportError: the disk is too full.
        RepositoryError: it cannot be written.
    """
    size = sum(len(weight.raw_data) for weight in all_tensors(model))
    require_room(beside, size)
    with disk_errors(f"writing to {beside}"), _work_folder(beside) as folder:
        if size <= over_bytes:
            data = model.SerializeToString(deterministic=True)
            (folder / MODEL).write_bytes(data)
            yield PackedModel(folder=folder, sha256=hashlib.sha256(data).hexdigest())
            return
        yield _with_weights_beside(model, folder)


def _with_weights_beside(model: onnx.ModelProto, folder: Path) -> PackedModel:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(
        copy, str(folder / MODEL), save_as_external_data=True, all_tensors_to_one_file=True, location="weights",
        size_threshold=1024,
    )  # fmt: skip
    digest = sha256_of_path(folder / "weights")
    name = f"model-{digest[:12]}.data"
    (folder / "weights").rename(folder / name)
    small = onnx.load(str(folder / MODEL), load_external_data=False)
    for weight in all_tensors(small):
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = name
    data = small.SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(data)
    return PackedModel(folder=folder, sha256=hashlib.sha256(data).hexdigest(), data_files={name: digest})
