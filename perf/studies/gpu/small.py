"""The same families with networks of a few thousand weights, for a machine without a GPU.

They are folders as a user of transformers saves them, without weights, and go through the same export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.zoo import processor_of
from orchestrator.repository.files import write_all
from perf.studies.gpu.families import ImposedCascade, NetworkFamily

_CLASSES = 10
_PX = 64
# (image side, what makes the network small); the channels before EfficientNet's head follow from its width.
_EFFICIENTNETS: dict[str, dict[str, Any]] = {
    "tiny_efficientnet_a": {"image_size": 32, "width_coefficient": 0.1, "hidden_dim": 128},
    "tiny_efficientnet_b": {"image_size": _PX, "width_coefficient": 0.2, "hidden_dim": 256},
}
_VITS: dict[str, dict[str, Any]] = {
    "tiny_vit_a": {"image_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    "tiny_vit_b": {"image_size": _PX, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3},
}


def small_families(folder: Path) -> dict[str, NetworkFamily]:
    """The families by name; their sources are folders, written where they are not there yet.

    Args:
        folder: to write into.

    Raises:
        RepositoryError: it cannot be written.
    """
    common: dict[str, dict[str, Any]] = {
        "efficientnet": {"depth_coefficient": 0.2},
        "vit": {"num_attention_heads": 2, "patch_size": 8},
    }
    kinds = (("efficientnet", "EfficientNet", _EFFICIENTNETS), ("vit", "ViT", _VITS))
    families = {}
    for kind, title, networks in kinds:
        for name, settings in networks.items():
            config = {"model_type": kind, "num_labels": _CLASSES, **common[kind], **settings}
            processor = processor_of(title, settings["image_size"])
            files: dict[str, bytes | str] = {
                "config.json": json.dumps(config, indent=2),
                "preprocessor_config.json": json.dumps(processor, indent=2),
            }
            write_all(folder / name, files)
        families[kind] = NetworkFamily(
            name=kind,
            title=f"{title} of a toy's size",
            sources={name: f"hf:{(folder / name).resolve()}" for name in networks},
            image_px=_PX,
            cascades=(ImposedCascade(name=f"tiny_{kind}", members=tuple(networks), deferral=0.15),),
        )
    return families
