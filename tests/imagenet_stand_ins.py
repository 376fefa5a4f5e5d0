"""A few pictures and small networks in the places of ImageNet and the published weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

# Folder names as ImageNet has them, and what the models call the classes; two share a name, as its cranes do.
CLASSES = {"n01": "tench", "n02": "crane", "n03": "crane", "n04": "great white shark, white shark"}
LABELS = dict(enumerate(CLASSES.values()))
COLOURS = np.array([[200, 60, 60], [60, 190, 70], [70, 80, 200], [190, 180, 60]], np.float64)


def write_pictures(root: Path, *, each: int, seed: int = 0) -> np.ndarray:
    """A folder per class with pictures of several shapes and kinds, of the class's colour under much noise."""
    rng = np.random.default_rng(seed)
    labels = []
    for label, folder in enumerate(CLASSES):
        (root / folder).mkdir(parents=True)
        for number in range(each):
            width, height = (int(side) for side in rng.integers(30, 60, 2))
            ground = COLOURS[label] + rng.normal(0, 25, 3)
            pixels = np.clip(ground + rng.normal(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            # A few pictures of ImageNet are made for print.
            image = image.convert("CMYK") if number == 0 else image
            ending = "png" if number % 3 == 1 else "JPEG"
            image.save(root / folder / f"val_{number:08d}.{ending}")
            labels.append(label)
    return np.array(labels)


def write_class_map(path: Path) -> Path:
    """The map in the form that Kaggle ships."""
    path.write_text("".join(f"{folder} {words}\n" for folder, words in CLASSES.items()))
    return path


def save_efficientnet(folder: Path, *, side_px: int, width: int, pictures: Path) -> None:
    """A convolutional network behind EfficientNet's image processor, its head fitted to some pictures.

    The architecture is ResNet's, which exports in a third of the time; the processor is what is peculiar.
    """
    processor = transformers.EfficientNetImageProcessorPil(size=_square(side_px), resample=0)
    model = _resnet(width)
    _fit(model, processor, pictures)
    _save(folder, model, processor)


def save_resnet(folder: Path, *, side_px: int) -> None:
    """A small ResNet behind the processor of the published ones, which crops."""
    processor = transformers.ConvNextImageProcessorPil(size={"shortest_edge": side_px}, crop_pct=0.875)
    _save(folder, _resnet(8), processor)


def save_vit(folder: Path, *, side_px: int) -> None:
    """A small vision transformer."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=side_px,
        patch_size=8, **_names(),
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config)
    _save(folder, model, transformers.ViTImageProcessorPil(size=_square(side_px)))


def _resnet(width: int) -> Any:
    torch.manual_seed(width)
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=[width], depths=[1], layer_type="basic", **_names()
    )
    return transformers.ResNetForImageClassification(config).eval()


def _names() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}


def _square(side_px: int) -> dict[str, int]:
    return {"height": side_px, "width": side_px}


def _fit(model: Any, processor: Any, pictures: Path) -> None:
    """Least squares from the random features to the classes."""
    paths = sorted(path for path in pictures.rglob("*") if path.is_file())
    images = [Image.open(path).convert("RGB") for path in paths]
    labels = np.array([sorted(CLASSES).index(path.parent.name) for path in paths])
    pixels = torch.from_numpy(processor(images=images, return_tensors="np")["pixel_values"])
    with torch.inference_mode():
        features = model.resnet(pixels).pooler_output.flatten(1).double().numpy()
    design = np.hstack([features, np.ones((len(features), 1))])
    solved = np.linalg.lstsq(design, 8.0 * np.eye(len(CLASSES))[labels], rcond=1e-3)[0]
    head = model.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved[:-1].T))
        head.bias.copy_(torch.from_numpy(solved[-1]))


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def hub_ids(document: str) -> Sequence[str]:
    """Every `hf:` source that a text's commands name."""
    return [word.removeprefix("hf:") for word in document.split() if word.startswith("hf:")]
