"""Classifiers of images and text of transformers: a local folder, the hub, or the zoo's short names."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers.models.auto import image_processing_auto

from export.images import Processing, processing_from_config
from export.sources import ExportOptions, LoadedModel, Rows, SourceRef, local_folder, member_name, renamed_inputs
from export.sources.hf_text import KIND, TextLogits, longest_row, text_inputs
from export.zoo import REPEATS, STRIDES, ZooEntry, entry_from_name, network_of, same_padding_blocks
from orchestrator.errors import ExportError, first_line
from orchestrator.repository.files import sha256_of_path
from orchestrator.spec.output_kind import EXCLUSIVE

# It logs how it replaces packages that are not installed, which is fine here.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

AUTO_IMAGE: Any = transformers.AutoModelForImageClassification
AUTO_TEXT: Any = transformers.AutoModelForSequenceClassification
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# Safetensors come first. A .bin is a pickle, which transformers reads with weights_only, refusing code.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Logits(nn.Module):
    """A transformers classifier as image in, logits out, with its position encoding stretched where asked for."""

    def __init__(self, model: nn.Module, *, interpolate: bool) -> None:
        super().__init__()
        self.model = model
        self.extra = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float32 (n, c, h, w) -> logits (n, k)."""
        logits: torch.Tensor = self.model(pixel_values=image, **self.extra).logits
        return logits


def identify_hf(what: str, options: ExportOptions) -> SourceRef:
    """Which weights `hf:<what>` means; hub files are fetched. ExportError where one cannot be had."""
    subject = f"hf:{what}"
    folder = _folder_of(what, options)
    if not (folder / CONFIG).is_file():
        raise ExportError(subject, got=f"no {CONFIG}", expected="a folder saved by transformers' save_pretrained")
    is_text = _auto(_config(folder, subject)) is AUTO_TEXT
    files = [path for path in (folder / CONFIG, *([] if is_text else [folder / PROCESSOR])) if path.is_file()]
    if not options.random_weights:
        files += _weight_files(folder, subject)
    return SourceRef(
        text=subject,
        name=member_name(what),
        files={path.name: sha256_of_path(path) for path in files},
        load=lambda: _load(folder, subject, options),
        image_px=lambda: None if is_text else _image_px(_processor(folder, subject), options, subject=subject),
    )


def _image_px(
    processor: Mapping[str, Any] | None, options: ExportOptions, *, subject: str
) -> tuple[int, int] | None:
    mean = (processor or {}).get("image_mean")
    channels = len(mean) if isinstance(mean, list | tuple) else 3
    return _processing(processor, options, subject=subject, channels=channels).image_px()


def _processing(
    processor: Mapping[str, Any] | None, options: ExportOptions, *, subject: str, channels: int
) -> Processing:
    by_hand = options.processing(subject, channels=channels)
    if by_hand is not None:
        return by_hand
    if processor is None:
        fix = "copy it there, or give `mean`, `std` and `resolution_px`"
        raise ExportError(subject, got=f"no {PROCESSOR}", expected="the model's image processing", fix=fix)
    processing = processing_from_config(processor, f"{subject} {PROCESSOR}", channels=channels)
    return processing if options.resolution_px is None else processing.at(options.resolution_px)


def _loaded(
    model: nn.Module, processor: Mapping[str, Any] | None, options: ExportOptions, *, subject: str
) -> LoadedModel:
    """A transformers classifier and the content of its preprocessor_config.json as something to export."""
    config: Any = model.config
    channels = int(getattr(config, "num_channels", 3))
    processing = _processing(processor, options, subject=subject, channels=channels)
    measured: Callable[[Rows], Rows] | None = None
    name = ""
    if processor is not None and processing == processing_from_config(processor, subject, channels=channels):
        measured, name = _own_processor(processor)
    sides = processing.network_px()
    if sides is None:
        fix = "give `mean`, `std` and `resolution_px`"
        raise ExportError(subject, got="a processor that does not resize", fix=fix)
    size = getattr(config, "image_size", None)
    native = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    interpolate = takes and len(native) == 2 and native != sides
    return LoadedModel(
        network=Logits(model, interpolate=interpolate).eval(),
        dims=(channels, *sides),
        processing=processing,
        own_processor=measured,
        own_processor_name=name,
        labels=_labels(config.id2label, int(config.num_labels)),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def _load(folder: Path, subject: str, options: ExportOptions) -> LoadedModel:
    config = _config(folder, subject)
    _require_exclusive_classes(config, subject)
    if _auto(config) is AUTO_TEXT:
        return _loaded_text(folder, config, options, subject=subject)
    processor = _processor(folder, subject)
    usual = (tuple(getattr(config, "num_block_repeats", ())), tuple(getattr(config, "strides", ())))
    if options.resolution_px is not None and (config.model_type, usual) == ("efficientnet", (REPEATS, STRIDES)):
        # Which blocks pad so that sizes halve, rounded up, depends on the resolution.
        config.depthwise_padding = same_padding_blocks(config.depth_coefficient, options.resolution_px)
    return _loaded(_model(folder, config, options, subject), processor, options, subject=subject)


def _loaded_text(folder: Path, config: Any, options: ExportOptions, *, subject: str) -> LoadedModel:
    # Every other kernel of attention has branches that depend on values, or is for GPUs.
    config._attn_implementation = "eager"
    model = _model(folder, config, options, subject)
    kinds = text_inputs(model, options, subject=subject)
    return LoadedModel(
        network=TextLogits(model, tuple(one.spec.name for one in kinds)).eval(),
        kinds=renamed_inputs(kinds, options.inputs, subject=subject),
        longest=longest_row(model, options, subject=subject),
        labels=_labels(config.id2label, int(config.num_labels)),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def _model(folder: Path, config: Any, options: ExportOptions, subject: str) -> nn.Module:
    """The classifier in evaluation mode, with the folder's weights or new ones."""
    if not options.random_weights:
        return _trained(folder, config, subject).eval()
    torch.manual_seed(options.seed)
    made: nn.Module = _auto(config).from_config(config)
    return made.eval()


def _require_exclusive_classes(config: Any, subject: str) -> None:
    """Raises ExportError for classes that do not exclude each other; only the checkpoint's config says so."""
    task = getattr(config, "problem_type", None)
    if task not in (None, "single_label_classification"):
        expected = f"single_label_classification, or none: {EXCLUSIVE}"
        fix = "train it for exclusive classes; correct problem_type there if it was"
        raise ExportError(f"{subject} {CONFIG}", got=f"problem_type {task}", expected=expected, fix=fix)
    if int(config.num_labels) < 2:
        raise ExportError(
            f"{subject} {CONFIG}",
            got=f"{config.num_labels} class, a regression or a yes-or-no score",
            expected=f"a classifier of at least 2: {EXCLUSIVE}",
            fix="give a yes-or-no score x two columns, such as the logits 0 and x",
        )


def _processor(folder: Path, subject: str) -> dict[str, Any] | None:
    path = folder / PROCESSOR
    if not path.is_file():
        return None
    settings = _json(path, subject)
    settings["image_processor_type"] = _kind_of(settings, folder, subject)
    settings.pop("feature_extractor_type", None)
    return settings


def _kind_of(settings: Mapping[str, Any], folder: Path, subject: str) -> str:
    """The class of an image processor: from its file, also under its old name, else the usual one of the model."""
    model_type = str(_json(folder / CONFIG, subject).get("model_type"))
    usual = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})
    names = usual.values() if isinstance(usual, Mapping) else usual if isinstance(usual, tuple) else (usual,)
    for name in (settings.get("image_processor_type"), settings.get("feature_extractor_type"), *names):
        if word := str(name or "").removesuffix("Fast").removesuffix("Pil"):
            return word.replace("FeatureExtractor", "ImageProcessor")
    expected = f"the class of the processor, as transformers knows none for {model_type}"
    fix = "give `mean`, `std` and `resolution_px` by hand"
    raise ExportError(f"{subject} {PROCESSOR}", got="no image_processor_type", expected=expected, fix=fix)


def _config(folder: Path, subject: str) -> Any:
    raw = _json(folder / CONFIG, subject)
    if "auto_map" in raw:
        got = "a model that brings its own code"
        fix = "build it yourself and use torch:<module>:<callable>"
        raise ExportError(subject, got=got, expected="one that transformers knows", fix=fix)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        expected = "a model transformers knows"
        raise ExportError(f"{subject} {CONFIG}", got=first_line(error), expected=expected) from error
    if _auto(config) is None:
        raise ExportError(
            subject, got=f"model type {config.model_type}", expected="a classifier of images or text"
        )
    return config


def _auto(config: Any) -> Any:
    """The class of transformers that makes a classifier of a config; None where there is none.

    Some models classify both: the class that saved the config decides then.
    """
    named = any(str(name).endswith(KIND) for name in getattr(config, "architectures", None) or ())
    order = (AUTO_TEXT, AUTO_IMAGE) if named else (AUTO_IMAGE, AUTO_TEXT)
    return next((one for one in order if type(config) in one._model_mapping), None)


def _trained(folder: Path, config: Any, subject: str) -> nn.Module:
    try:
        how = {"local_files_only": True, "trust_remote_code": False, "weights_only": True, "dtype": torch.float32}
        model, info = _auto(config).from_pretrained(folder, config=config, output_loading_info=True, **how)
    # A damaged file fails inside safetensors, torch or pickle, which share no base.
    except Exception as error:
        got = f"weights that do not load ({first_line(error)})"
        expected = "complete weights of this model"
        raise ExportError(subject, got=got, expected=expected, fix="copy the folder again") from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        # transformers would fill them with random numbers and only warn.
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        got = f"weights without {shown}"
        raise ExportError(subject, got=got, expected="a trained classifier, head included")
    trained: nn.Module = model
    return trained


def _labels(id2label: Mapping[int, str] | None, classes: int) -> tuple[str, ...] | None:
    """Class names; None where one is missing, or where transformers made them up from numbers.

    Two classes may share a name, as the two cranes of ImageNet do: without the names, a folder of classes in any
    other order would be taken for the model's.
    """
    names = tuple(str((id2label or {}).get(i, "")) for i in range(classes))
    made_up = all(name in ("", f"LABEL_{i}") for i, name in enumerate(names))
    return None if made_up or not all(names) else names


def _own_processor(settings: Mapping[str, Any]) -> tuple[Callable[[Rows], Rows] | None, str]:
    """The processor that a settings file names, in its Pillow form, which needs no torchvision."""
    word = str(settings.get("image_processor_type") or "")
    name = next((one for one in (f"{word}Pil", word) if word and hasattr(transformers, one)), None)
    if name is None:
        return None, ""
    facts = {key: value for key, value in settings.items() if key != "image_processor_type"}
    processor = getattr(transformers, name)(**facts)

    def processed(rows: Rows) -> Rows:
        images = [np.moveaxis(row, 0, -1) for row in rows]
        out = processor(images=images, return_tensors="np", input_data_format="channels_last")
        return np.asarray(out["pixel_values"], np.float32)

    return processed, f"transformers {name}"


def _json(path: Path, subject: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = f"a file that cannot be read ({first_line(error)})"
        raise ExportError(f"{subject} {path.name}", got=got) from error
    if not isinstance(value, dict):
        raise ExportError(f"{subject} {path.name}", got=type(value).__name__, expected="a JSON object")
    return value


def _folder_of(what: str, options: ExportOptions) -> Path:
    """The folder with a model's files: a local one, or that of a hub id in the hub's cache."""
    expected = f"a folder with {CONFIG}, {WEIGHTS[0]}, and {PROCESSOR} of images"
    return local_folder(what, f"hf:{what}", expected=expected) or _fetched(what, options)


def _fetched(hub_id: str, options: ExportOptions) -> Path:
    # Optional: a local folder needs none.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    options.progress(f"fetching {hub_id}")
    try:
        # Small files first: they tell which weights there are, so that only one form of them is fetched.
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json"]))
        if options.random_weights:
            return folder
        for pattern in ("*.safetensors", "pytorch_model*.bin"):
            folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", pattern]))
            if any(folder.glob(pattern)):
                break
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ExportError(
            f"hf:{hub_id}",
            got=f"no local folder of that name, and the hub did not give its files ({type(error).__name__})",
            expected=f"{CONFIG}, {WEIGHTS[0]}, and {PROCESSOR} of images",
            fix=f"where there is a network run `hf download {hub_id} {CONFIG} {PROCESSOR} {WEIGHTS[0]} "
            "--local-dir FOLDER`, bring FOLDER here and use hf:FOLDER",
        ) from error
    return folder


def _weight_files(folder: Path, subject: str) -> Sequence[Path]:
    """The files that hold a folder's weights, in the form that is read."""
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
    got = f"no weights, only {found}"
    fix = "copy them there, or use `random_weights` for cost and speed work"
    raise ExportError(subject, got=got, expected=" or ".join((WEIGHTS[0], WEIGHTS[2])), fix=fix)


def identify_zoo(what: str, options: ExportOptions) -> SourceRef:
    """Which weights a zoo name means; ExportError where no checkpoint of that name is known."""
    entry = entry_from_name(what)
    options = dataclasses.replace(options, resolution_px=options.resolution_px or entry.resolution_px)
    if options.random_weights:
        settings = {
            "config": entry.config(options.resolution_px).to_json_string(use_diff=True),
            "processor": json.dumps(entry.processor),
        }
        return SourceRef(
            text=f"zoo:{what}",
            name=what,
            files=settings,
            load=lambda: _random(entry, options),
            image_px=lambda: _image_px(entry.processor, options, subject=f"zoo:{what}"),
        )
    if entry.hub_id is None:
        got = "no published checkpoint known"
        fix = "or `random_weights` for cost and speed work"
        raise ExportError(f"zoo:{what}", got=got, expected="hf:<folder> with its weights", fix=fix)
    found = identify_hf(entry.hub_id, options)
    return dataclasses.replace(found, name=what)


def _random(entry: ZooEntry, options: ExportOptions) -> LoadedModel:
    torch.manual_seed(options.seed)
    network = network_of(entry, options.resolution_px)
    return _loaded(network, entry.processor, options, subject=f"zoo:{entry.name}")
