"""Where trained models come from, `kind:what`: what names their weights, and a network that can be exported.

Each kind is read by a module of its own, which is imported when the kind is named.
"""

import dataclasses
import difflib
import importlib
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from export.images import Processing
from export.tensor_rows import TensorKind
from orchestrator.errors import ExportError

# For types alone: both take time to import, and PyTorch is optional.
if TYPE_CHECKING:
    import onnx
    from torch import nn

Rows = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The user's options for a source."""

    resolution_px: int | None = None  # side of the square the network shall see; None for the model's own
    random_weights: bool = False  # leave the trained weights alone and draw new ones
    seed: int = 0  # of them
    weights: Path | None = None  # file with the weights of a `torch:` model
    mean: tuple[float, ...] | None = None  # as std: per channel on a 0-1 scale, where the source does not say
    std: tuple[float, ...] | None = None
    dims: tuple[int, ...] | None = None  # of the input, where the source does not say or leaves them free
    output_kind: str = "auto"  # "logits" or "probabilities"; "auto" where the export finds out
    output_name: str | None = None  # the output to take from an ONNX file with several, or a tensor inside it
    keep_opset: bool = False  # take an ONNX file whose opset not every supported runtime reads
    macs: float | None = None  # multiply-accumulates of one row, where they cannot be counted; None counts them
    labels: tuple[str, ...] | None = None  # class names in the order of the scores; None for the source's own
    max_length: int | None = None  # most positions of a row whose length varies; None for the source's own
    # as `pads`: name in the source -> name in the member, or -> what fills up shorter rows
    inputs: Mapping[str, str] = field(default_factory=dict)
    pads: Mapping[str, float] = field(default_factory=dict)
    progress: Callable[[str], None] = field(default=lambda _: None, compare=False)  # told what is being done

    def processing(self, subject: str, *, channels: int = 3) -> Processing | None:
        """The image processing given by hand, None where none was; ExportError where half of it was."""
        if self.mean is None and self.std is None:
            return None
        if self.mean is None or self.std is None or self.resolution_px is None:
            got = "a part of the image processing"
            raise ExportError(subject, got=got, expected="`mean`, `std` and `resolution_px`")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std, default=0) <= 0:
            got = f"{self.mean} and {self.std}"
            raise ExportError(f"{subject} `mean`, `std`", got=got, expected="finite numbers, deviations above 0")
        if not len(self.mean) == len(self.std) == channels:
            raise ExportError(subject, got=f"{len(self.mean)} means", expected=f"one per channel, {channels}")
        side = self.resolution_px
        return Processing(resize_px=(side, side), mean=self.mean, std=self.std, channels=channels)

    def image_px(self) -> tuple[int, int] | None:
        """(height, width) of the images that processing given by hand wants; None where none was given."""
        side = self.resolution_px
        return None if self.mean is None or side is None else (side, side)


@dataclass(frozen=True, kw_only=True)
class SourceRef:
    """Which weights a source means, known before they are read into memory."""

    text: str
    name: str  # a member name made from it
    files: Mapping[str, str]  # what decides the weights: file or setting -> hash or value
    load: "Callable[[], LoadedModel]" = field(compare=False)
    image_px: Callable[[], tuple[int, int] | None] = field(
        compare=False
    )  # (height, width) it wants; None: no images


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory."""

    network: "nn.Module | None" = None  # float32 (n, *dims) -> (n, k), in evaluation mode; None: an ONNX source
    proto: "onnx.ModelProto | None" = None  # the ONNX model of an ONNX source
    dims: tuple[int, ...] = ()  # dims of the network's own input, (channels, height, width) for images
    dtype: str = "FP32"  # Triton dtype of that input
    kinds: tuple[TensorKind, ...] = ()  # its tensors, where it takes several, or rows whose length varies
    longest: int = 1  # most positions of such a row
    input_name: str = "image"  # of that input
    rows: Callable[[int, int], Rows] | None = None  # (n, seed) -> rows like its own; None where any will do
    output_kind: str = "auto"  # what its scores are, where the source says; else the export finds out
    macs: float | None = None  # per row, where its graph does not say and the source does
    macs_counter: str = ""  # what counted them
    processing: Processing | None = None  # from a uint8 image to that input; None where it is taken as it is
    own_processor: Callable[[Rows], Rows] | None = None  # uint8 (n, c, H, W) -> float32 (n, c, h, w)
    own_processor_name: str = ""  # what it is
    labels: tuple[str, ...] | None = None  # class names in order, if known
    columns: tuple[str, ...] = ()  # names of the columns it was fitted on, in order, if it knows them
    reference: Callable[[Rows], Rows] | None = None  # the original, (n, *dims) -> (n, k), if not the network
    remedy: str | None = None  # what its user may do where the graph says something else than the original
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages it came through
    original: Mapping[str, Any] = field(default_factory=dict)  # of an ONNX file: version, opsets, names, changes


def local_folder(what: str, subject: str, *, expected: str) -> Path | None:
    """The local folder of that name, None where it can only be a hub id; ExportError where it is neither."""
    folder = Path(what)
    if folder.is_dir():
        return folder
    if folder.exists() or what.startswith((".", "/", "~")) or what.count("/") > 1:
        got = "a file" if folder.exists() else "no such folder"
        raise ExportError(subject, got=got, expected=expected)
    return None


def renamed_inputs(
    kinds: tuple[TensorKind, ...], names: Mapping[str, str], *, subject: str
) -> tuple[TensorKind, ...]:
    """Tensors under the member's names, source's -> member's; ExportError for a wrong name, or one twice."""
    known = [one.spec.name for one in kinds]
    unknown = sorted(set(names) - set(known))
    made = [names.get(name, name) for name in known]
    if unknown or len(set(made)) < len(made):
        got = ", ".join(unknown) if unknown else ", ".join(made)
        expected = f"some of {', '.join(known)}" if unknown else "different names in the member"
        raise ExportError(f"{subject} `inputs`", got=got, expected=expected)
    return tuple(
        dataclasses.replace(one, spec=dataclasses.replace(one.spec, name=name))
        for one, name in zip(kinds, made, strict=True)
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint, "did you mean ...", with the known words nearest to a mistaken one, or all of a few."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known are {', '.join(words[:12])}{', ...' if len(words) > 12 else ''}"


def member_name(text: str) -> str:
    """A Triton model name made of a source's last part."""
    last = text.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    # Triton's names are ASCII: letters lose their accents, anything else becomes "_".
    plain = unicodedata.normalize("NFKD", last.removesuffix(".onnx").lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    word = "".join(c if c.isascii() and c.isalnum() else "_" for c in plain)
    return word.strip("_") or "member"


# kind -> its form in words, the module that reads it and the function there. Each module imports a framework of
# its own, which takes seconds and may not be installed, so a module is imported when its kind is named.
KINDS: dict[str, tuple[str, str, str]] = {
    "hf": ("hf:<hub id or folder>", "hf", "identify_hf"),
    "zoo": ("zoo:<name>, or the name alone", "hf", "identify_zoo"),
    "timm": ("timm:<name>", "torch_networks", "identify_timm"),
    "torchvision": ("torchvision:<name>", "torch_networks", "identify_torchvision"),
    "torch": ("torch:<module>:<callable>", "torch_networks", "identify_callable"),
    "onnx": ("onnx:<path>", "onnx_file", "identify_onnx"),
    "sklearn": ("sklearn:<file of joblib>", "tabular", "identify_sklearn"),
    "lightgbm": ("lightgbm:<file of save_model>", "tabular", "identify_lightgbm"),
    "xgboost": ("xgboost:<file of save_model>", "tabular", "identify_xgboost"),
}


def identify(text: str, options: ExportOptions) -> SourceRef:
    """Which weights a source means, `kind:what` or a name of the zoo; ExportError where they are not there."""
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
