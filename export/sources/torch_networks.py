"""PyTorch networks of timm, of torchvision, and of a module of the user's own."""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable
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
    """Which weights `timm:<name>` means: the pretrained ones of that tag; the name may have a tag.

    A test hands over a package of its own; None imports timm. Raises ExportError where there are no such weights.
    """
    subject = f"timm:{what}"
    timm = timm or _package("timm", subject, fix="pip install timm, with the torchvision that fits your torch")
    if not timm.is_model(what.partition(".")[0]):
        raise ExportError(subject, got="no such model", fix=nearest(what, timm.list_models()))
    config_of = functools.partial(timm.data.resolve_data_config, {})

    def load() -> LoadedModel:
        model = _made(
            lambda: timm.create_model(what, pretrained=not options.random_weights),
            options,
            subject=subject,
            expected="the published ones",
            fix=f"where there is a network run `hf download timm/{what} --local-dir FOLDER`, bring FOLDER "
            "into the hub's cache here, or use `random_weights`",
        )
        config = config_of(pretrained_cfg=model.pretrained_cfg)
        return _loaded(
            model,
            processing_from_timm(config),
            options,
            transform_of=lambda: timm.data.create_transform(**config, is_training=False),
            transform_name="timm transform",
            versions={"torch": torch.__version__, "timm": timm.__version__},
        )

    def own() -> Processing:
        return processing_from_timm(config_of(pretrained_cfg=timm.get_pretrained_cfg(what).to_dict()))

    return SourceRef(
        text=subject,
        name=member_name(what.replace(".", "_")),
        files={"timm": timm.__version__, "name": what, "random": str(options.random_weights)},
        load=load,
        image_px=lambda: _processing(own(), options, "timm").image_px(),
    )


def identify_torchvision(what: str, options: ExportOptions, *, models: Any = None) -> SourceRef:
    """Which weights `torchvision:<name>` means: the default ones. Names are those of `list_models`.

    A test hands over `models`; None imports torchvision's. Raises ExportError where there are no such weights.
    """
    subject = f"torchvision:{what}"
    fix = "pip install torchvision, or use the same network of transformers: hf:<id>"
    models = models or _package("torchvision.models", subject, fix=fix)
    if what not in models.list_models():
        raise ExportError(subject, got="no such model", fix=nearest(what, models.list_models()))
    weights = models.get_model_weights(what).DEFAULT
    transform = weights.transforms()
    own = processing_from_torchvision(transform)

    def load() -> LoadedModel:
        model = _made(
            lambda: models.get_model(what, weights=None if options.random_weights else weights),
            options,
            subject=subject,
            expected=f"{weights.url.rpartition('/')[2]} in the torch hub cache",
            fix=f"bring that file to {torch.hub.get_dir()}/checkpoints, or use `random_weights`",
        )
        return _loaded(
            model,
            own,
            options,
            transform_of=lambda: transform,
            transform_name="torchvision transforms",
            labels=tuple(weights.meta["categories"]) or None,
            versions={"torch": torch.__version__},
        )

    return SourceRef(
        text=subject,
        name=member_name(what),
        files={"weights": str(weights), "random": str(options.random_weights)},
        load=load,
        image_px=lambda: _processing(own, options, "torchvision").image_px(),
    )


def _package(module: str, what: str, *, fix: str) -> Any:
    """An optional package. A torchvision that does not fit torch fails with a RuntimeError, also inside timm."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        got = f"no usable {module.partition('.')[0]} ({error})"
        raise ExportError(what, got=got, expected="one that fits your torch", fix=fix) from error


def _made(make: Callable[[], Any], options: ExportOptions, *, subject: str, expected: str, fix: str) -> Any:
    """A published network, in evaluation mode."""
    torch.manual_seed(options.seed)
    try:
        return make().eval()
    # Hub, download, disk and weight errors share no base.
    except Exception as error:
        got = f"weights that cannot be had ({type(error).__name__})"
        raise ExportError(subject, got=got, expected=expected, fix=fix) from error


def _processing(own: Processing, options: ExportOptions, package: str) -> Processing:
    """The processing given by hand, else the network's own, at the side that was asked for."""
    by_hand = options.processing(package)
    return by_hand or (own.at(options.resolution_px) if options.resolution_px else own)


def _loaded(
    model: nn.Module,
    own: Processing,
    options: ExportOptions,
    *,
    transform_of: Callable[[], Any],
    transform_name: str,
    versions: dict[str, str],
    labels: tuple[str, ...] | None = None,
) -> LoadedModel:
    """A published network with its image processing, and its own transform where that is what it goes through."""
    processing = _processing(own, options, transform_name.partition(" ")[0])
    sides = processing.network_px()
    assert sides is not None
    transform = transform_of() if processing == own else None
    return LoadedModel(
        network=model,
        dims=(processing.channels, *sides),
        processing=processing,
        own_processor=None if transform is None else lambda rows: _transformed(transform, rows),
        own_processor_name="" if transform is None else transform_name,
        labels=labels,
        versions=versions,
    )


def _transformed(transform: Any, rows: Rows) -> Rows:
    """Images through a transform of one PIL image; uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    return np.stack([transform(Image.fromarray(np.moveaxis(row, 0, -1))).numpy() for row in rows])


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

    Raises ExportError where one of them is not there, or the input's dims are not known.
    """
    subject = f"torch:{what}"
    module_name, _, name = what.partition(":")
    if not name:
        raise ExportError(subject, got=what, expected="torch:<module>:<callable>")
    try:
        module = importlib.import_module(module_name)
    # Whatever the user's module raises while it is imported.
    except Exception as error:
        got = f"a module that does not import ({type(error).__name__}: {error})"
        fix = "run from the folder that holds it, or set PYTHONPATH"
        raise ExportError(subject, got=got, fix=fix) from error
    make = getattr(module, name, None)
    if not callable(make):
        known = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise ExportError(subject, got=f"no callable {name}", fix=nearest(name, known))
    if options.dims is None and options.mean is None:
        expected = "`dims` 3,32,32, or `mean`, `std` and `resolution_px`"
        raise ExportError(subject, got="no input size", expected=expected)
    try:
        code = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    except (OSError, TypeError):
        code = ""
    files = {"code": code, "seed": str(options.seed)}
    if options.weights is not None:
        if not options.weights.is_file():
            raise ExportError(f"{subject} `weights` {options.weights}", got="no such file")
        files[options.weights.name] = sha256_of_path(options.weights)
    return SourceRef(
        text=subject,
        name=name.lower(),
        files=files,
        load=lambda: _called(make, subject, options),
        image_px=options.image_px,
    )


def _called(make: Any, subject: str, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    try:
        network = make()
    except (Exception, SystemExit) as error:
        got = f"{type(error).__name__}: {error}"
        raise ExportError(subject, got=got, expected="a call without arguments") from error
    if not isinstance(network, nn.Module):
        raise ExportError(subject, got=type(network).__name__, expected="a torch.nn.Module")
    if options.weights is not None and not options.random_weights:
        _fill(network, options.weights, subject)
    channels = options.dims[0] if options.dims else len(options.mean or (0, 0, 0))
    processing = options.processing(subject, channels=channels)
    # Without a processing `dims` was given, see above; with one it ends at the size of the resize.
    dims = options.dims if processing is None else (channels, *(processing.network_px() or ()))
    assert dims is not None
    versions = {"torch": torch.__version__}
    return LoadedModel(network=network.eval(), dims=dims, processing=processing, versions=versions)


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
        got = f"weights that do not load ({first_line(error)})"
        expected = "a state dict of this network, as .safetensors or saved by torch.save"
        raise ExportError(f"{subject} `weights` {path}", got=got, expected=expected) from error
