"""Which version of a model a plan means, and the plan with that written down."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import SpecError
from orchestrator.repository.files import sha256_of_path
from orchestrator.repository.on_disk import MANIFEST, model_file, readable_config, versions_served
from orchestrator.spec import CascadeSpec, Lead, Member, manifest_from_path
from orchestrator.spec.planned_models import data_files_of


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

    What the plan says already is kept: `check` tells where it does not fit.

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
    version = planned_version(member, folder, readable_config(folder))
    return dataclasses.replace(
        member, version=version, data_files=member.data_files or _data_files(member, folder)
    )


def _pinned_lead(lead: Lead | None, repository: Path) -> Lead | None:
    if lead is None:
        return None
    folder = repository / lead.name
    config = readable_config(folder)
    version = planned_version(lead, folder, config)
    # A lead is made from the plan, which `check` compares: the file that is there is the one that is meant.
    sha256 = lead.sha256 or (None if version is None else sha256_of_version(folder, config, version))
    return dataclasses.replace(lead, version=version, sha256=sha256)


def _data_files(member: Member, folder: Path) -> dict[str, str]:
    """Of a plan that is older than the field."""
    try:
        manifest = manifest_from_path(folder / MANIFEST)
    except SpecError:
        return {}
    return data_files_of(manifest.data_files) if manifest.sha256 == member.sha256 else {}
