"""The families as data: their networks, their cascades, and the exit mix that is imposed on each cascade.

The paper's own members, thresholds and exit shares are not known here, so the mixes are arithmetic: with the
deferral below a cascade needs, on average, as many multiply-adds as the abstract's speed-up leaves it (5.4x
against EfficientNet-B7, 2.3x against ViT-L-384; the abstract names no unit). Whether it would be as accurate as
the single network is another question, which random weights cannot answer.

For a machine without a GPU there are families of the same kinds with a few thousand weights. Their sources are
folders as a user of transformers saves them, without weights, and they go through the same export.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.zoo import processor_of
from orchestrator.repository.files import write_all
from perf.harness.cells import reach_of

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
ABSTRACT = "abstract of arXiv 2012.01988; unit and hardware not stated there"


@dataclass(frozen=True, kw_only=True)
class ImposedCascade:
    """One cascade with an imposed mix.

    Args:
        name: name of its scenario, a file name.
        members: short names in stage order, the baseline last.
        deferral: share of rows that reach the last stage; those between are reached by twice as many.
    """

    name: str
    members: tuple[str, ...]
    deferral: float

    @property
    def reach(self) -> tuple[float, ...]:
        """Share of rows that reach each stage."""
        return reach_of(self.deferral, len(self.members))

    @property
    def words(self) -> str:
        """Its members in stage order."""
        return " -> ".join(self.members)


@dataclass(frozen=True, kw_only=True)
class NetworkFamily:
    """Networks of one kind at the image size of the largest.

    Args:
        name: name of the family.
        title: its name for people.
        sources: short name -> what `python -m export member` is given; the baseline last.
        image_px: side of the images that clients send; smaller networks resize inside their graphs.
        cascades: cascades of these networks.
        paper_speedup: published speed-up over the baseline; None where there is none.
    """

    name: str
    title: str
    sources: dict[str, str]
    image_px: int
    cascades: tuple[ImposedCascade, ...]
    paper_speedup: float | None = None

    @property
    def baseline(self) -> str:
        """The largest network, which a user would run alone."""
        return list(self.sources)[-1]


@dataclass(frozen=True, kw_only=True)
class GpuLoads:
    """What is sent.

    Args:
        online: (requests in flight, rows of each) where latency counts.
        offline: (requests in flight, rows of each) where the server is to be saturated.
        alone: batch sizes of the networks by themselves.
    """

    online: tuple[int, int] = (1, 1)
    offline: tuple[int, int] = (8, 32)
    alone: tuple[int, ...] = (32, 64, 128, 256)


EFFICIENTNET = NetworkFamily(
    name="efficientnet",
    title="EfficientNet",
    sources={f"efficientnet_b{number}": f"zoo:efficientnet_b{number}" for number in range(8)},
    image_px=600,
    cascades=(
        ImposedCascade(name="efficientnet_b0_b7", members=("efficientnet_b0", "efficientnet_b7"), deferral=0.175),
        ImposedCascade(name="efficientnet_b3_b7", members=("efficientnet_b3", "efficientnet_b7"), deferral=0.137),
        ImposedCascade(name="efficientnet_b4_b7", members=("efficientnet_b4", "efficientnet_b7"), deferral=0.069),
        ImposedCascade(
            name="efficientnet_b1_b4_b7",
            members=("efficientnet_b1", "efficientnet_b4", "efficientnet_b7"),
            deferral=0.135,
        ),
        ImposedCascade(
            name="efficientnet_b2_b5_b6_b7",
            members=("efficientnet_b2", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7"),
            deferral=0.062,
        ),
    ),
    paper_speedup=5.4,
)
VIT = NetworkFamily(
    name="vit",
    title="ViT",
    sources={name: f"zoo:{name}" for name in ("vit_b16_224", "vit_b16_384", "vit_l16_224", "vit_l16_384")},
    image_px=384,
    cascades=(
        ImposedCascade(name="vit_b224_l384", members=("vit_b16_224", "vit_l16_384"), deferral=0.343),
        ImposedCascade(name="vit_b384_l384", members=("vit_b16_384", "vit_l16_384"), deferral=0.144),
        ImposedCascade(name="vit_l224_l384", members=("vit_l16_224", "vit_l16_384"), deferral=0.113),
    ),
    paper_speedup=2.3,
)
FAMILIES = {family.name: family for family in (EFFICIENTNET, VIT)}


def small_families(folder: Path) -> dict[str, NetworkFamily]:
    """The small families by name, their sources written into a folder.

    Args:
        folder: gets a folder per network.

    Raises:
        RepositoryError: the folder cannot be written.
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


def speedup_of(cost: Sequence[float], reach: Sequence[float]) -> float:
    """Cost of the last stage alone over the mean cost of the cascade.

    Args:
        cost: cost of a row at each stage, in any unit.
        reach: share of rows that reach each stage.
    """
    return cost[-1] / sum(one * share for one, share in zip(cost, reach, strict=True))
