"""Folders of models: a local one as it is, or the files of a hub repository fetched into the hub's cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import ExportError
from orchestrator.repository.files import sha256_of_path

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# Safetensors come first. A .bin is a pickle, which transformers reads with weights_only, refusing code.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def folder_of(what: str, *, progress: Callable[[str], None], with_weights: bool) -> Path:
    """The folder with a model's files.

    Args:
        what: a local folder, or a hub id such as "google/vit-base-patch16-224".
        progress: told when something is fetched.
        with_weights: False when the weights will be drawn at random.

    Raises:
        ExportError: there is no such folder, and the hub cannot be options.
    """
    path = Path(what)
    if path.is_dir():
        return path
    if path.exists() or what.startswith((".", "/", "~")) or what.count("/") > 1:
        got = "a file" if path.exists() else "no such folder"
        raise ExportError(f"hf:{what}", got=got, expected=f"a folder with {CONFIG}, {PROCESSOR} and {WEIGHTS[0]}")
    return _fetched(what, progress, with_weights)


def _fetched(hub_id: str, progress: Callable[[str], None], with_weights: bool) -> Path:
    # Optional: a local folder needs none.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    progress(f"fetching {hub_id}")
    try:
        # Small files first: they tell which weights there are, so that only one form of them is fetched.
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json"]))
        if not with_weights:
            return folder
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", pattern]))
            if any(folder.glob(pattern)):
                break
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ExportError(
            f"hf:{hub_id}",
            got=f"no local folder of that name, and the hub did not give its files ({type(error).__name__})",
            expected=f"{CONFIG}, {PROCESSOR} and {WEIGHTS[0]}",
            fix=f"where there is a network run `hf download {hub_id} {CONFIG} {PROCESSOR} {WEIGHTS[0]} "
            "--local-dir FOLDER`, bring FOLDER here and use hf:FOLDER",
        ) from error
    return folder


def weight_files(folder: Path, subject: str) -> Sequence[Path]:
    """The files that hold a folder's weights, in the form that is read.

    Raises:
        ExportError: there are none.
    """
    for name in WEIGHTS:
        if not (folder / name).is_file():
            continue
        if not name.endswith(".index.json"):
            return [folder / name]
        shards = sorted(folder.glob("model-*.safetensors" if "safetensors" in name else "pytorch_model-*.bin"))
        if not shards:
            raise ExportError(subject, got=f"{name} without the files it lists", fix="copy them beside it")
        return [folder / name, *shards]
    found = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file())[:6]) or "nothing"
    raise ExportError(
        subject,
        got=f"no weights, only {found}",
        expected=" or ".join((WEIGHTS[0], WEIGHTS[2])),
        fix="copy them there, or use `random_weights` for cost and speed work",
    )


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """File name -> sha256."""
    return {path.name: sha256_of_path(path) for path in files}
