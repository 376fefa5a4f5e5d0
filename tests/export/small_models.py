"""Image classifiers of transformers small enough to export in a second, saved as their users save them."""

from pathlib import Path

import torch
import transformers

LABELS = {i: f"thing {i}" for i in range(7)}


def save_convnext(folder: Path, *, size_px: int = 48, classes: int = 7, labels: bool = True) -> Path:
    """A ConvNeXt with its processor, which crops."""
    torch.manual_seed(0)
    names = {i: f"thing {i}" for i in range(classes)} if labels else None
    more = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if names else {"num_labels": classes}
    config = transformers.ConvNextConfig(num_stages=2, depths=[1, 1], hidden_sizes=[8, 16], **more)
    transformers.ConvNextForImageClassification(config).save_pretrained(folder)
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": size_px}).save_pretrained(folder)
    return folder


def save_vit(folder: Path, *, size_px: int = 32) -> Path:
    """A vision transformer for images of one size."""
    torch.manual_seed(1)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=size_px,
        patch_size=8, id2label=LABELS, label2id={v: k for k, v in LABELS.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": size_px, "width": size_px}).save_pretrained(folder)
    return folder
