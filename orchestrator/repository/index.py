"""The content of a repository: its models, their versions, files and plans."""

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.graphs.averaging import averaging_name, spec_from_averaging
from orchestrator.pbtxt import CONFIG, config_from_path, json_from_config
from orchestrator.repository.files import disk_errors
from orchestrator.spec import CascadeSpec, cascade_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.triton import (
    BACKEND_OF_FILE,
    backend_of,
    served_versions,
    usual_file,
    versions_in,
)


def model_folders(repository: Path) -> dict[str, Path]:
    """The models of a repository by name.

    Raises:
        RepositoryError: the folder is missing, no folder, not readable, or holds no model.
    """
    what = f"model repository {repository}"
    if not repository.exists():
        raise RepositoryError(f"{what} does not exist", fix="name an existing folder with `repository`")
    if not repository.is_dir():
        raise RepositoryError(what, got="a file", expected="a folder with one folder per model")
    with disk_errors(what):
        folders = {path.name: path for path in sorted(repository.iterdir()) if path.is_dir()}
    if not folders:
        raise RepositoryError(f"{what} is empty", expected="one folder per model", fix="export or copy members")
    return folders


def require_members(spec: CascadeSpec, repository: Path) -> None:
    """Raises RepositoryError naming every member the repository does not hold."""
    folders = model_folders(repository)
    missing = [name for name in spec.models if name not in folders]
    if missing:
        raise RepositoryError(
            f"{spec.name}: members missing from {repository}",
            got=", ".join(missing),
            expected=f"members among {', '.join(folders)}",
            fix="export or copy them there, or plan with others",
        )


def config_of(folder: Path) -> ModelConfig | None:
    """The model's configuration, or None where it has none.

    Raises:
        RepositoryError: it is malformed.
    """
    path = folder / CONFIG
    return config_from_path(path) if path.exists() else None


def readable_config(folder: Path) -> ModelConfig | None:
    """The model's configuration, or None where it has none or a malformed one, which `check` reports."""
    try:
        return config_of(folder)
    except RepositoryError:
        return None


def policy_of(config: ModelConfig | None) -> dict[str, Any]:
    """A configuration's version policy as JSON values, see `served_versions`; empty where it has none."""
    if config is None:
        return {}
    return dict(json_from_config(config).get("version_policy", {}))


def versions_served(folder: Path, config: ModelConfig | None = None) -> tuple[int, ...]:
    """The versions in a model folder that Triton serves, ascending; see `served_versions`.

    Raises:
        RepositoryError: the folder cannot be read.
    """
    with disk_errors(f"model folder {folder}"):
        return served_versions(policy_of(config), versions_in(folder))


def served_version(folder: Path, config: ModelConfig | None = None) -> int | None:
    """The version that answers requests which name none: the highest that the configuration allows."""
    return max(versions_served(folder, config), default=None)


def model_file(folder: Path, config: ModelConfig | None, *, version: int | None = None) -> Path | None:
    """The file that the server loads, whether it exists or not; None where that is unknown.

    Without a configuration, or with one that names no backend, the files that exist decide the backend. Without a
    version, the one that answers requests without a version is taken.
    """
    version = served_version(folder, config) if version is None else version
    if version is None:
        return None
    inside = folder / str(version)
    backend = "" if config is None else backend_of(config.backend, config.platform)
    named = "" if config is None else config.default_model_filename or usual_file(backend)
    if config is not None and config.cc_model_filenames:
        # One engine per kind of GPU; only the serving machine knows which one it loads.
        named = next(iter(sorted(config.cc_model_filenames.values())))
    if named:
        return inside / named
    present = (inside / name for name in BACKEND_OF_FILE if (inside / name).exists())
    return None if backend else next(present, None)


def plan_path(folder: Path) -> Path | None:
    """cascade.json of the served version, else of the highest version that has one; None for other models."""
    version = served_version(folder, readable_config(folder))
    paths = [] if version is None else [folder / str(version) / PLAN]
    paths += sorted(folder.glob(f"*/{PLAN}"), reverse=True)
    return next((path for path in paths if path.is_file()), None)


def onnx_from_path(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file, without weights that lie in other files.

    Raises:
        RepositoryError: the file cannot be read as ONNX.
    """
    what = f"model file {path}"
    with disk_errors(what):
        try:
            model = onnx.load(str(path), load_external_data=False)
        except DecodeError as error:
            raise RepositoryError(what, got="no ONNX model", fix="export it again") from error
    if not model.graph.output:
        # An empty or truncated file can parse as an empty message.
        raise RepositoryError(what, got="an ONNX model without outputs", fix="export it again")
    return model


def external_files(model: onnx.ModelProto) -> set[str]:
    """Files beside an ONNX model that hold its weights, as paths relative to its folder."""
    return {str(ExternalDataInfo(t).location) for t in model.graph.initializer if uses_external_data(t)}


def ensemble_spec(folders: dict[str, Path], name: str) -> CascadeSpec | None:
    """The plan of a rendered ensemble, from the metadata of its averaging model; None for any other model.

    Raises:
        RepositoryError: the averaging model cannot be read.
        SpecError: the plan in it is wrong.
    """
    folder = folders.get(averaging_name(name))
    if folder is None:
        return None
    path = model_file(folder, config_of(folder))
    if path is None or path.suffix != ".onnx" or not path.is_file():
        return None
    return spec_from_averaging(onnx_from_path(path), subject=str(path))


def plans_in(repository: Path) -> tuple[list[CascadeSpec], list[CascadeSpec]]:
    """The plans of every cascade and every rendered ensemble of a repository.

    Raises:
        RepositoryError: the repository or one of its models cannot be read.
        SpecError: a plan is wrong.
    """
    folders = model_folders(repository)
    cascades, ensembles = [], []
    for name, folder in folders.items():
        path = plan_path(folder)
        if path is not None:
            cascades.append(cascade_from_path(path))
            continue
        spec = ensemble_spec(folders, name)
        if spec is not None:
            ensembles.append(spec)
    return cascades, ensembles
