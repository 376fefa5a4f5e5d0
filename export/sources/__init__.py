"""Where trained models come from: `kind:what`, one module per kind."""

import importlib
from collections.abc import Callable

from export.sources.base import ExportOptions, LoadedModel, SourceRef, nearest
from orchestrator.errors import ExportError

__all__ = ["KINDS", "ExportOptions", "LoadedModel", "SourceRef", "identify"]

# kind -> its form in words, the module that reads it and the function there. Each module imports a framework of
# its own, which takes seconds and may not be installed, so a module is imported when its kind is named.
KINDS: dict[str, tuple[str, str, str]] = {
    "hf": ("hf:<hub id or folder>", "hf", "identify_hf"),
    "zoo": ("zoo:<name>, or the name alone", "zoo_names", "identify_zoo"),
    "timm": ("timm:<name>", "torch_zoos", "identify_timm"),
    "torchvision": ("torchvision:<name>", "torch_zoos", "identify_torchvision"),
    "torch": ("torch:<module>:<callable>", "python_callable", "identify_callable"),
    "onnx": ("onnx:<path>", "onnx_file", "identify_onnx"),
}


def identify(text: str, options: ExportOptions) -> SourceRef:
    """Which weights a source means: `kind:what`, or a name of the zoo.

    Raises:
        ExportError: the kind, the model or its files are not there; the message says what to do.
    """
    kind, colon, what = text.partition(":")
    if not colon:
        kind, what = "zoo", text
    if kind not in KINDS:
        forms = ", ".join(form for form, _, _ in KINDS.values())
        raise ExportError(f"source {text}", got=f"kind {kind!r}", expected=forms, fix=nearest(kind, KINDS))
    form, module, function = KINDS[kind]
    if colon and not what:
        raise ExportError(f"source {text}", got="nothing after the colon", expected=form)
    read: Callable[[str, ExportOptions], SourceRef] = getattr(
        importlib.import_module(f"export.sources.{module}"), function
    )
    return read(what, options)
