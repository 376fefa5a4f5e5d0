"""A network of the user's own: a function or class in a module of theirs that makes it."""

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from export.sources.base import ExportOptions, LoadedModel, SourceRef, nearest
from orchestrator.errors import ExportError, first_line
from orchestrator.repository.files import sha256_of_path


def identify_callable(what: str, options: ExportOptions) -> SourceRef:
    """Which network `torch:<module>:<callable>` means; the module is imported, the callable not yet called.

    Raises:
        ExportError: the module or the callable is not there, or the input's dims are not known.
    """
    subject = f"torch:{what}"
    module_name, colon, name = what.partition(":")
    if not colon or not name:
        raise ExportError(subject, got=what, expected="torch:<module>:<callable>")
    try:
        module = importlib.import_module(module_name)
    # Whatever the user's module raises while it is imported.
    except Exception as error:
        raise ExportError(
            subject,
            got=f"a module that does not import ({type(error).__name__}: {error})",
            fix="run from the folder that holds it, or set PYTHONPATH",
        ) from error
    make = getattr(module, name, None)
    if not callable(make):
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise ExportError(subject, got=f"no callable {name}", fix=nearest(name, known))
    if options.dims is None and options.mean is None:
        raise ExportError(
            subject, got="no input size", expected="`dims` 3,32,32, or `mean`, `std` and `resolution_px`"
        )
    files = {"code": _sha256_of_code(module), "seed": str(options.seed)}
    if options.weights is not None:
        if not options.weights.is_file():
            raise ExportError(f"{subject} `weights` {options.weights}", got="no such file")
        files[options.weights.name] = sha256_of_path(options.weights)
    return SourceRef(
        text=subject,
        name=name.lower(),
        files=files,
        load=lambda: _load(make, subject, options),
        image_px=options.image_px,
    )


def _sha256_of_code(module: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _load(make: Any, subject: str, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    try:
        network = make()
    except (Exception, SystemExit) as error:
        raise ExportError(
            subject, got=f"{type(error).__name__}: {error}", expected="a call without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise ExportError(subject, got=type(network).__name__, expected="a torch.nn.Module")
    if options.weights is not None and not options.random_weights:
        _fill(network, options.weights, subject)
    channels = options.dims[0] if options.dims else len(options.mean or (0, 0, 0))
    processing = options.processing(subject, channels=channels)
    # Without a processing `dims` was given, see above; with one it ends at the size of the resize.
    dims = options.dims if processing is None else (channels, *(processing.network_px() or ()))
    assert dims is not None
    return LoadedModel(
        network=network.eval(),
        dims=dims,
        processing=processing,
        versions={"torch": torch.__version__},
    )


def _fill(network: nn.Module, path: Path, subject: str) -> None:
    """Loads a state dict without running code that the file may carry."""
    try:
        if path.suffix == ".safetensors":
            # Optional: other files need none.
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    # safetensors, pickle and torch each have their own errors for a damaged or foreign file.
    except Exception as error:
        raise ExportError(
            f"{subject} `weights` {path}",
            got=f"weights that do not load ({first_line(error)})",
            expected="a state dict of this network, as .safetensors or saved by torch.save",
        ) from error
