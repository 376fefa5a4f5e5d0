"""Where trained models come from: `kind:what`, one module per kind."""

from __future__ import annotations

from collections.abc import Callable

from export.sources.base import Asked, Identity, Loaded, nearest
from orchestrator.errors import ExportError

__all__ = ["KINDS", "Asked", "Identity", "Loaded", "identify"]


def _hf(what: str, asked: Asked) -> Identity:
    from export.sources.hf import identify_hf

    return identify_hf(what, asked)


def _zoo(what: str, asked: Asked) -> Identity:
    from export.sources.zoo_names import identify_zoo

    return identify_zoo(what, asked)


def _timm(what: str, asked: Asked) -> Identity:
    from export.sources.torch_zoos import identify_timm

    return identify_timm(what, asked)


def _torchvision(what: str, asked: Asked) -> Identity:
    from export.sources.torch_zoos import identify_torchvision

    return identify_torchvision(what, asked)


def _torch(what: str, asked: Asked) -> Identity:
    from export.sources.python_callable import identify_callable

    return identify_callable(what, asked)


def _onnx(what: str, asked: Asked) -> Identity:
    from export.sources.onnx_file import identify_onnx

    return identify_onnx(what, asked)


# Imported when used: each kind brings its own framework.
KINDS: dict[str, tuple[str, Callable[[str, Asked], Identity]]] = {
    "hf": ("hf:<hub id or folder>", _hf),
    "zoo": ("zoo:<name>, or the name alone", _zoo),
    "timm": ("timm:<name>", _timm),
    "torchvision": ("torchvision:<name>", _torchvision),
    "torch": ("torch:<module>:<callable>", _torch),
    "onnx": ("onnx:<path>", _onnx),
}


def identify(text: str, asked: Asked) -> Identity:
    """Which weights a source means.

    Args:
        text: `kind:what`, or a name of the zoo.
        asked: the options.

    Raises:
        ExportError: the kind, the model or its files are not there; the message says what to do.
    """
    kind, colon, what = text.partition(":")
    if not colon:
        return _zoo(text, asked)
    if kind not in KINDS:
        forms = ", ".join(form for form, _ in KINDS.values())
        raise ExportError(f"source {text}", got=f"kind {kind!r}", expected=forms, fix=nearest(kind, KINDS))
    if not what:
        raise ExportError(f"source {text}", got="nothing after the colon", expected=KINDS[kind][0])
    return KINDS[kind][1](what, asked)
