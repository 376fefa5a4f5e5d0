"""Which version of a model a plan means, and the plan with that written down."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.index import (
    MANIFEST,
    external_files,
    model_file,
    onnx_from_path,
    readable_config,
    versions_served,
)
from orchestrator.spec import CascadeSpec, Lead, Member, manifest_from_path
from orchestrator.spec.planned_models import data_files_of
from orchestrator.spec.triton import MODEL_FILES, versions_in


def planned_version(planned: Member | Lead, folder: Path, config: ModelConfig | None) -> int | None:
    """The version that a plan means: the one it names, else the newest served one with the planned file.

    Args:
        planned: what the plan says of the model.
        folder: of the model.
        config: its configuration.

    Returns:
        the newest served one where none has that file or no hash is planned; None where none is served.

    Raises:
        RepositoryError: a file cannot be read.
    """
    if planned.version is not None:
        return planned.version
    served = versions_served(folder, config)[::-1]
    fitting = (
        version for version in served if planned.sha256 in (None, sha256_of_version(folder, config, version))
    )
    return next(fitting, next(iter(served), None))


def sha256_of_version(folder: Path, config: ModelConfig | None, version: int) -> str | None:
    """Hash of a version's model file, None where it has none.

    Raises:
        RepositoryError: the file cannot be read.
    """
    path = model_file(folder, config, version=version)
    return sha256_of_path(path) if path is not None and path.is_file() else None


def pinned_spec(spec: CascadeSpec, repository: Path) -> CascadeSpec:
    """The plan with the version of every model it calls, and the files beside model files, as they lie there.

    What the plan says already is kept: `check` tells where it does not fit. Members that were not exported get the
    hashes of the files that are there, where those alone are what the server runs.

    Raises:
        RepositoryError: a file cannot be read.
    """
    stages = tuple(
        dataclasses.replace(stage, members=tuple(_pinned_member(one, repository) for one in stage.members))
        for stage in spec.stages
    )
    return dataclasses.replace(spec, stages=stages, lead=_pinned_lead(spec.lead, repository))


def _pinned_member(member: Member, repository: Path) -> Member:
    folder = repository / member.name
    config = readable_config(folder)
    version = planned_version(member, folder, config)
    sha256, data_files = member.sha256, member.data_files or _data_files(member, folder)
    path = None if version is None else model_file(folder, config, version=version)
    is_adopted = sha256 is None and not (folder / MANIFEST).exists()
    if is_adopted and path is not None and _is_whole_model(path, config):
        sha256, data_files = sha256_of_path(path), data_files or _files_beside(path)
    return dataclasses.replace(member, version=version, sha256=sha256, data_files=data_files)


def _pinned_lead(lead: Lead | None, repository: Path) -> Lead | None:
    if lead is None:
        return None
    folder = repository / lead.name
    config = readable_config(folder)
    version = planned_version(lead, folder, config)
    # A lead is made from the plan, which `check` compares: the file that is there is the one that is meant.
    sha256 = lead.sha256 or (None if version is None else sha256_of_version(folder, config, version))
    return dataclasses.replace(lead, version=version, sha256=sha256)


def _is_whole_model(path: Path, config: ModelConfig | None) -> bool:
    """Whether a model is this file and weights beside it, and the runtime takes no other for it.

    A Python model is whatever its code reads, and one of several engines is chosen where it is served. The runtime
    reads no configuration: it looks for files of the usual names.
    """
    if path.suffix == ".py" or (config is not None and config.cc_model_filenames) or not path.is_file():
        return False
    folder = path.parent.parent
    versions = [folder / str(version) for version in versions_in(folder)]
    usual = {name for name in MODEL_FILES.values() for one in versions if (one / name).exists()}
    return usual <= {path.name}


def _files_beside(path: Path) -> dict[str, str]:
    """Hashes of the files that hold a model's weights beside it, by path in the version folder."""
    names = {"model.bin"} if path.name == MODEL_FILES["openvino"] else set[str]()
    if path.suffix == ".onnx":
        try:
            names = external_files(onnx_from_path(path))
        except RepositoryError:  # `check` says what is wrong with it
            return {}
    paths = [PurePosixPath(name) for name in sorted(names)]
    return {
        str(name): sha256_of_path(path.parent / name)
        for name in paths
        if not name.is_absolute() and ".." not in name.parts and (path.parent / name).is_file()
    }


def _data_files(member: Member, folder: Path) -> dict[str, str]:
    """Of a plan that is older than the field."""
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return {}
    return data_files_of(manifest.data_files) if manifest.sha256 == member.sha256 else {}
