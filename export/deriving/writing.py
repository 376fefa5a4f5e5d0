"""The one writer of models that derive tensors: model file, files beside it, manifest and configuration."""

import hashlib
import importlib.metadata
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.members import check_overwrite
from orchestrator.errors import SpecError
from orchestrator.repository.files import write_all
from orchestrator.repository.render import render_member
from orchestrator.spec.deriving import DerivingManifest, PaddedTensor, deriving_from_path, json_from_deriving
from orchestrator.spec.manifest import MANIFEST, TensorSpec

SERVED = Path(__file__).parent / "served"  # files that are copied into the models' folders
VERSION = "1"  # folder of the only version
_UNFILLED = "SETTINGS: dict = {}  # the export fills them in\n"


@dataclass(frozen=True, kw_only=True)
class DerivingModel:
    """A model to write."""

    name: str
    derives: str  # one of `KINDS`
    source: str
    inputs: tuple[str, ...]  # names of its tensors, each STRING [1]
    outputs: tuple[PaddedTensor, ...]
    files: Mapping[str, bytes]  # name in the version folder -> content; derive.py among them
    packages: Sequence[str]  # that the server needs besides numpy, as pip calls them
    options: Mapping[str, Any]  # arguments of its `load`
    said: str  # what it does with rows, in words
    max_batch_size: int
    parity: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What model.py is told."""
        return {
            "name": self.name,
            "inputs": list(self.inputs),
            "packages": [f"{name}=={version}" for name, version in self._versions().items()],
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()},
            "options": dict(self.options),
        }

    def _versions(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in self.packages}

    def manifest(self, model: bytes) -> DerivingManifest:
        """The manifest that goes with the model file."""
        return DerivingManifest(
            name=self.name,
            derives=self.derives,
            file=f"{VERSION}/model.py",
            sha256=hashlib.sha256(model).hexdigest(),
            source=self.source,
            inputs=tuple(TensorSpec(name=name, dtype="STRING", dims=(1,)) for name in self.inputs),
            outputs=self.outputs,
            max_batch_size=self.max_batch_size,
            data_files={f"{VERSION}/{name}": digest for name, digest in self.settings()["files"].items()},
            packages=self._versions(),
            options=dict(self.options),
            parity=dict(self.parity),
        )


def check_place(repository: Path, name: str, derives: str, *, force: bool) -> None:
    """Raises ExportError where a folder of that name holds another model than an earlier one of this kind."""

    def foreign(folder: Path) -> str | None:
        if not any(path.is_file() for path in folder.rglob("*")):
            return None
        try:
            found = deriving_from_path(folder / MANIFEST)
        except SpecError:
            return "another model"
        return None if found.derives == derives else f"a model that derives {found.derives}"

    expected = f"no such model, or an earlier one that derives {derives}"
    check_overwrite(repository, [name], foreign=foreign, expected=expected, force=force)


def write_deriving(repository: Path, made: DerivingModel, *, force: bool) -> tuple[DerivingManifest, bool]:
    """Writes a model's folder, what it loads before what names it; gives its manifest and whether it is new.

    Raises ExportError for a name that is taken, RepositoryError where the disk refuses.
    """
    check_place(repository, made.name, made.derives, force=force)
    folder = repository / made.name
    template = (SERVED / "model.py").read_text(encoding="utf-8")
    head, found, tail = template.partition(_UNFILLED)
    assert found
    filled = f"SETTINGS: dict = {pprint.pformat(made.settings(), width=115, sort_dicts=False)}\n"
    model = f"{head}{filled}{tail}".encode()
    manifest = made.manifest(model)
    files = {f"{VERSION}/{name}": data for name, data in made.files.items()}
    done = write_all(folder, {**files, manifest.file: model, MANIFEST: json_from_deriving(manifest)})
    done += render_member(folder, force=force)
    return manifest, bool(done.written)
