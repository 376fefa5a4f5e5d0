"""The models of a repository for the embedded server: the backend of each, and the models it calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import CONFIG, config_from_path
from orchestrator.spec.triton import BACKEND_OF_FILE, ENSEMBLE, PINNED, backend_of, mentioned_models, versions_in
from orchestrator.spec.validation import NAME

SERVED = ("onnxruntime", "python")
# The same release as docker-compose.yml.
IMAGE = f"nvcr.io/nvidia/tritonserver:{PINNED}-py3"


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model folder.

    Args:
        name: of the model, which is the folder's.
        backend: Triton backend, "ensemble" for Triton's own pipelines, None where it is unknown.
        calls: models that it may call while it answers.
        own_backend: whether its folder holds its backend's library.
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
    fix = "name a model repository with `repository`"
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
    """Refuses models that the embedded server cannot run.

    Raises:
        RepositoryError: with the names of all such models.
    """
    models = tuple(models)
    # The python backend passes the model's path to a shell without quoting (see embedded.py).
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
    path = folder / CONFIG
    # Triton completes a missing one from the model file, and may know fields that the client's package does not.
    config = config_from_path(path, unknown_fields=True) if path.exists() else ModelConfig()
    backend = backend_of(config.backend, config.platform) or _backend_by_file(folder, config)
    calls: tuple[str, ...] = ()
    if backend in ("python", ENSEMBLE):
        calls = mentioned_models(folder, [name for name in names if name != folder.name])
    own = bool(config.backend) and any(folder.glob(f"**/libtriton_{config.backend}.so"))
    return ModelEntry(name=folder.name, backend=backend, calls=calls, own_backend=own)


def _backend_by_file(folder: Path, config: ModelConfig) -> str | None:
    named = [config.default_model_filename] if config.default_model_filename else []
    versions = [folder / str(version) for version in versions_in(folder)]
    for name in (*named, *BACKEND_OF_FILE):
        if any((version / name).exists() for version in versions):
            return BACKEND_OF_FILE.get(name)
    return None
