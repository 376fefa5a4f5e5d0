"""The models of a repository as the embedded server needs to know them: who runs each, and whom it calls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.spec.triton import PINNED, mentioned_models, versions_in
from orchestrator.spec.validation import NAME

SERVED = ("onnxruntime", "python")
ENSEMBLE = "ensemble"
# The same release as docker-compose.yml.
IMAGE = f"nvcr.io/nvidia/tritonserver:{PINNED}-py3"
# Triton picks the backend by the model file's name when the configuration does not say (core's
# model_config_utils.cc); older configurations name a platform instead.
_BY_FILE = {
    "model.onnx": "onnxruntime",
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.py": "python",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.dali": "dali",
}
_BY_PLATFORM = {
    "onnxruntime_onnx": "onnxruntime",
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
    "ensemble": ENSEMBLE,
}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model folder.

    Args:
        name: of the model, which is the folder's.
        backend: who runs it, "ensemble" for Triton's own pipelines, None when nothing says.
        calls: models it may ask while it answers.
        own_backend: the folder carries its backend along.
    """

    name: str
    backend: str | None
    calls: tuple[str, ...] = ()
    own_backend: bool = False


def scan_repository(repository: Path) -> tuple[ModelEntry, ...]:
    """Every model of a repository, by name.

    Raises:
        RepositoryError: the folder is missing, not readable or empty, or a config.pbtxt is malformed.
    """
    fix = "name a model repository with --repository"
    expected = "a folder with one sub-folder per model"
    try:
        folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError as error:
        raise RepositoryError(f"{repository} does not exist", expected=expected, fix=fix) from error
    except NotADirectoryError as error:
        raise RepositoryError(f"{repository}", got="a file", expected=expected, fix=fix) from error
    except OSError as error:
        fix = "give this user read access to it"
        raise RepositoryError(f"{repository}", got=error.strerror, expected=expected, fix=fix) from error
    if not folders:
        raise RepositoryError(f"{repository}", got="no model in it", expected=expected, fix=fix)
    names = [folder.name for folder in folders]
    try:
        return tuple(_entry(folder, names) for folder in folders)
    except OSError as error:
        fix = "give this user read access to everything in it"
        raise RepositoryError(f"{error.filename}", got=error.strerror, expected="to read it", fix=fix) from error


def check_models(models: Iterable[ModelEntry], repository: Path) -> None:
    """Returns when the embedded server can run every model.

    Raises:
        RepositoryError: naming every model it cannot run.
    """
    models = tuple(models)
    # The python backend hands the model's path to a shell without quotes (see embedded.py).
    unsafe = [model.name for model in models if not NAME.match(model.name)]
    if unsafe:
        expected = "model folders named with letters, digits, '_', '.' and '-'"
        got = ", ".join(repr(name) for name in unsafe)
        raise RepositoryError(f"{repository}", got=got, expected=expected, fix="rename them")
    lacking = [model for model in models if not (model.own_backend or model.backend in (None, ENSEMBLE, *SERVED))]
    if lacking:
        raise RepositoryError(
            f"{repository}",
            got=", ".join(f"model {model.name} with backend {model.backend}" for model in lacking),
            expected=f"backends the embedded server has ({', '.join(SERVED)}, and ensembles)",
            fix=f"serve them with NVIDIA's image, {IMAGE}: make compose && docker compose up -d triton",
        )


def _entry(folder: Path, names: list[str]) -> ModelEntry:
    config = _config(folder / "config.pbtxt")
    backend = config.backend or _BY_PLATFORM.get(config.platform, config.platform)
    backend = backend or _backend_by_file(folder, config)
    calls: tuple[str, ...] = ()
    if backend in ("python", ENSEMBLE):
        calls = mentioned_models(folder, [name for name in names if name != folder.name])
    own = bool(config.backend) and any(folder.glob(f"**/libtriton_{config.backend}.so"))
    return ModelEntry(name=folder.name, backend=backend, calls=calls, own_backend=own)


def _config(path: Path) -> ModelConfig:
    config = ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config, allow_unknown_field=True)
    except FileNotFoundError:
        return config  # Triton completes it from the model file
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{path}", got=error, expected="a readable text file") from error
    except text_format.ParseError as error:
        place = f"{path} line {error.GetLine()}" if error.GetLine() else f"{path}"
        got = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise RepositoryError(place, got=got, expected="protobuf text of a model configuration") from error
    return config


def _backend_by_file(folder: Path, config: ModelConfig) -> str | None:
    names = [config.default_model_filename, *_BY_FILE] if config.default_model_filename else list(_BY_FILE)
    versions = [folder / str(version) for version in versions_in(folder)]
    present = next((name for name in names if any((version / name).exists() for version in versions)), None)
    return None if present is None else _BY_FILE.get(present)
