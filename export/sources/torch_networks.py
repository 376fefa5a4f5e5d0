"""PyTorch networks of timm, of torchvision, and of a module of the user's own."""

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from export.images import Processing
from export.sources import ExportOptions, LoadedModel, Rows, SourceRef, member_name, nearest
from orchestrator.errors import ExportError, first_line
from orchestrator.repository.files import sha256_of_path


def identify_timm(what: str, options: ExportOptions, *, timm: Any = None) -> SourceRef:
    """Which weights `timm:<name>` means: the pretrained ones of that tag.

    The name may have a tag. A test hands over a package of its own; None imports timm.

    Raises:
        ExportError: timm is not installed or knows no such model, or its weights cannot be had.
    """
    fix = "pip install timm, with the torchvision that fits your torch"
    timm = timm or _package("timm", f"timm:{what}", fix=fix)
    if not timm.is_model(what.partition(".")[0]):
        raise ExportError(f"timm:{what}", got="no such model", fix=nearest(what, timm.list_models()))
    return SourceRef(
        text=f"timm:{what}",
        name=member_name(what.replace(".", "_")),
        files={"timm": timm.__version__, "name": what, "random": str(options.random_weights)},
        load=lambda: _timm_load(timm, what, options),
        image_px=lambda: _timm_processing(timm, timm.get_pretrained_cfg(what).to_dict(), options).image_px(),
    )


def _package(module: str, what: str, *, fix: str) -> Any:
    """An optional package. A torchvision that does not fit torch fails with a RuntimeError, also inside timm."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        got = f"no usable {module.partition('.')[0]} ({error})"
        raise ExportError(what, got=got, expected="one that fits your torch", fix=fix) from error


def _timm_load(timm: Any, what: str, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    try:
        model = timm.create_model(what, pretrained=not options.random_weights).eval()
    # Hub, disk and weight errors share no base.
    except Exception as error:
        raise ExportError(
            f"timm:{what}",
            got=f"weights that cannot be had ({type(error).__name__})",
            expected="the published ones",
            fix=f"where there is a network run `hf download timm/{what} --local-dir FOLDER`, bring FOLDER "
            "into the hub's cache here, or use `random_weights`",
        ) from error
    processing = _timm_processing(timm, model.pretrained_cfg, options)
    sides = processing.network_px()
    assert sides is not None
    config = timm.data.resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    own = processing == processing_from_timm(config)
    transform = timm.data.create_transform(**config, is_training=False) if own else None
    return LoadedModel(
        network=model,
        dims=(processing.channels, *sides),
        processing=processing,
        own_processor=None if transform is None else lambda rows: transformed(transform, rows),
        own_processor_name="" if transform is None else "timm transform",
        versions={"torch": torch.__version__, "timm": timm.__version__},
    )


def _timm_processing(timm: Any, pretrained_cfg: Any, options: ExportOptions) -> Processing:
    by_hand = options.processing("timm")
    if by_hand is not None:
        return by_hand
    processing = processing_from_timm(timm.data.resolve_data_config({}, pretrained_cfg=pretrained_cfg))
    return processing.at(options.resolution_px) if options.resolution_px else processing


def processing_from_timm(config: dict[str, Any]) -> Processing:
    """The processing of a timm data config: resize the shorter side to size / crop_pct, then crop."""
    channels, height, width = config["input_size"]
    share = float(config.get("crop_pct") or 0.875)
    squash = config.get("crop_mode") == "squash"
    return Processing(
        resize_px=(int(height / share), int(width / share)) if squash else None,
        shortest_px=None if squash else int(height / share),
        filter=str(config.get("interpolation", "bilinear")).replace("random", "bilinear"),
        crop_px=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels=channels,
    )


def transformed(transform: Any, rows: Rows) -> Rows:
    """Images through a torchvision-like transform of one PIL image; uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    return np.stack([transform(Image.fromarray(np.moveaxis(row, 0, -1))).numpy() for row in rows])


def identify_torchvision(what: str, options: ExportOptions, *, models: Any = None) -> SourceRef:
    """Which weights `torchvision:<name>` means: the default ones.

    Names are those of `list_models`. A test hands over `models`; None imports torchvision's.

    Raises:
        ExportError: torchvision is not usable or knows no such model, or its weights cannot be had.
    """
    fix = "pip install torchvision, or use the same network of transformers: hf:<id>"
    models = models or _package("torchvision.models", f"torchvision:{what}", fix=fix)
    if what not in models.list_models():
        raise ExportError(f"torchvision:{what}", got="no such model", fix=nearest(what, models.list_models()))
    weights = models.get_model_weights(what).DEFAULT
    return SourceRef(
        text=f"torchvision:{what}",
        name=member_name(what),
        files={"weights": str(weights), "random": str(options.random_weights)},
        load=lambda: _torchvision_load(models, what, weights, options),
        image_px=lambda: _torchvision_processing(weights.transforms(), options).image_px(),
    )


def _torchvision_load(models: Any, what: str, weights: Any, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    try:
        model = models.get_model(what, weights=None if options.random_weights else weights).eval()
    # URLError, OSError and RuntimeError, depending on where the download stops.
    except Exception as error:
        raise ExportError(
            f"torchvision:{what}",
            got=f"weights that cannot be had ({type(error).__name__})",
            expected=f"{weights.url.rpartition('/')[2]} in the torch hub cache",
            fix=f"bring that file to {torch.hub.get_dir()}/checkpoints, or use `random_weights`",
        ) from error
    transform = weights.transforms()
    processing = _torchvision_processing(transform, options)
    own = processing == processing_from_torchvision(transform)
    sides = processing.network_px()
    assert sides is not None
    return LoadedModel(
        network=model,
        dims=(3, *sides),
        processing=processing,
        own_processor=(lambda rows: transformed(transform, rows)) if own else None,
        own_processor_name="torchvision transforms" if own else "",
        labels=tuple(weights.meta["categories"]) or None,
        versions={"torch": torch.__version__},
    )


def _torchvision_processing(transform: Any, options: ExportOptions) -> Processing:
    by_hand = options.processing("torchvision")
    if by_hand is not None:
        return by_hand
    processing = processing_from_torchvision(transform)
    return processing.at(options.resolution_px) if options.resolution_px else processing


def processing_from_torchvision(transform: Any) -> Processing:
    """The processing of a torchvision classification preset."""
    return Processing(
        shortest_px=int(transform.resize_size[0]),
        filter=str(transform.interpolation.value),
        crop_px=(int(transform.crop_size[0]),) * 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


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
