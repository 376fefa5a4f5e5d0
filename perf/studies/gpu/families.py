"""The families as data: their networks, the cascades of them, and the exit mix that is imposed on each.

The paper's own members, thresholds and exit shares are not known here, so the mixes are arithmetic: with the
deferral below a cascade needs, on average, as many multiply-adds as the abstract's speed-up leaves it (5.4x
against EfficientNet-B7, 2.3x against ViT-L-384; the abstract names no unit). Whether it would be as accurate as
the single network is another question, which random weights cannot answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import InputError
from perf.harness.cells import reach_of

ABSTRACT = "abstract of arXiv 2012.01988; unit and hardware not stated there"


@dataclass(frozen=True, kw_only=True)
class ImposedCascade:
    """One cascade with an imposed mix.

    Args:
        name: of its scenario, a file name.
        members: short names in stage order, the baseline last.
        deferral: share of rows that reach the last stage; those between are reached by twice as many.
    """

    name: str
    members: tuple[str, ...]
    deferral: float

    @property
    def reach(self) -> tuple[float, ...]:
        """Share of rows that get to each stage."""
        return reach_of(self.deferral, len(self.members))

    @property
    def words(self) -> str:
        """Its members in order."""
        return " -> ".join(self.members)


@dataclass(frozen=True, kw_only=True)
class NetworkFamily:
    """Networks of one kind at the image size of the largest.

    Args:
        name: of the family.
        title: for people.
        sources: by short name, what `python -m export member` is given; the baseline last.
        image_px: side of the images that clients send; smaller networks resize inside their graphs.
        cascades: of these networks.
        paper_speedup: the published figure against the baseline; None where there is none.
    """

    name: str
    title: str
    sources: dict[str, str]
    image_px: int
    cascades: tuple[ImposedCascade, ...]
    paper_speedup: float | None = None

    @property
    def baseline(self) -> str:
        """The network that a user would keep otherwise."""
        return list(self.sources)[-1]


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


def families_of(name: str, families: dict[str, NetworkFamily] = FAMILIES) -> tuple[NetworkFamily, ...]:
    """The families of a name.

    Args:
        name: one family's, or "all".
        families: to choose from.

    Raises:
        InputError: there is none of that name.
    """
    if name == "all":
        return tuple(families.values())
    if name not in families:
        raise InputError("--family", got=name, expected=f"{', '.join(families)} or all")
    return (families[name],)


def speedup_of(cost: Sequence[float], reach: Sequence[float]) -> float:
    """What a mix leaves of the last stage's cost: cost of it alone over the mean cost of the cascade.

    Args:
        cost: of a row at each stage, in any unit.
        reach: share of rows that get to each stage.
    """
    return cost[-1] / sum(one * share for one, share in zip(cost, reach, strict=True))
