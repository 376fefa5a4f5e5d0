import json
import math
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from export.__main__ import app
from export.cost.counting import cost_of
from export.from_torch import onnx_from_torch
from export.sources.hf import Logits
from export.zoo import ZOO, ZooEntry, entry_from_name, network_cost, network_of, same_padding_blocks
from orchestrator.errors import ExportError

# Millions of parameters, billions of multiply-accumulates: published architectures, counted with other
# implementations (timm) of them.
KNOWN = {
    "efficientnet_b0": ("EfficientNet", 224, 5.29, 0.386),
    "efficientnet_b1": ("EfficientNet", 240, 7.79, 0.687),
    "efficientnet_b2": ("EfficientNet", 260, 9.11, 0.994),
    "efficientnet_b3": ("EfficientNet", 300, 12.23, 1.827),
    "efficientnet_b4": ("EfficientNet", 380, 19.34, 4.394),
    "efficientnet_b5": ("EfficientNet", 456, 30.39, 10.266),
    "efficientnet_b6": ("EfficientNet", 528, 43.04, 19.068),
    "efficientnet_b7": ("EfficientNet", 600, 66.35, 37.746),
    "resnet50": ("ResNet", 224, 25.56, 4.089),
    "resnet101": ("ResNet", 224, 44.55, 7.801),
    "resnet152": ("ResNet", 224, 60.19, 11.514),
    "mobilenet_v2_100_160": ("MobileNetV2", 160, 3.50, 0.154),
    "mobilenet_v2_100_192": ("MobileNetV2", 192, 3.50, 0.221),
    "mobilenet_v2_100_224": ("MobileNetV2", 224, 3.50, 0.301),
    "mobilenet_v2_140_224": ("MobileNetV2", 224, 6.11, 0.582),
    "vit_b16_224": ("ViT", 224, 86.57, 17.564),
    "vit_b16_384": ("ViT", 384, 86.86, 55.484),
    "vit_l16_224": ("ViT", 224, 304.33, 61.555),
    "vit_l16_384": ("ViT", 384, 304.72, 191.066),
}
ELSEWHERE = {
    ("efficientnet_b1", 300): 1.083,
    ("efficientnet_b2", 380): 1.924,
    ("efficientnet_b3", 456): 4.179,
    ("efficientnet_b4", 600): 10.971,
    ("efficientnet_b5", 600): 17.192,
    ("efficientnet_b6", 600): 24.524,
}


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(app, ["zoo", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    return {row["name"]: row for row in rows}


def test_the_list_holds_these_networks_with_these_fields(listed: dict[str, dict[str, Any]]) -> None:
    assert list(listed) == list(KNOWN)
    assert all(list(row) == ["name", "family", "resolution", "params_m", "gmacs"] for row in listed.values())


@pytest.mark.parametrize("name", list(KNOWN))
def test_size_and_cost_are_those_of_the_published_architecture(
    name: str, listed: dict[str, dict[str, Any]]
) -> None:
    family, resolution, params_m, gmacs = KNOWN[name]
    row = listed[name]
    assert (row["family"], row["resolution"]) == (family, resolution)
    assert row["params_m"] == pytest.approx(params_m, rel=0.01)
    assert row["gmacs"] == pytest.approx(gmacs, rel=0.03)


@pytest.mark.parametrize(
    ("name", "resolution_px"),
    [pytest.param(*key, marks=pytest.mark.slow if key[1] == 600 else ()) for key in ELSEWHERE],
)
def test_cost_at_another_resolution_is_known_too(name: str, resolution_px: int) -> None:
    assert network_cost(ZOO[name], resolution_px).gmacs == pytest.approx(ELSEWHERE[name, resolution_px], rel=0.03)


def sizes_of(network: torch.nn.Module, resolution_px: int) -> list[tuple[int, int]]:
    """Sizes before the padding and after the convolution of every convolution with stride 2."""
    seen: list[tuple[int, int]] = []
    # The stem has no padding list; a block pads in a module of its own, just before the convolution.
    for module in network.modules():
        if type(module).__name__ == "EfficientNetDepthwiseLayer" and module.stride == 2:
            module.register_forward_hook(lambda _, got, made: seen.append((got[0].shape[-1], made.shape[-1])))
    with torch.no_grad():
        network(torch.empty(1, 3, resolution_px, resolution_px, device="meta"))
    return seen


@pytest.mark.parametrize(
    ("name", "resolution_px"),
    [
        ("efficientnet_b2", 260),
        ("efficientnet_b3", 300),
        *(pytest.param(name, KNOWN[name][1], marks=pytest.mark.slow) for name in KNOWN if "efficientnet" in name),
        *(("efficientnet_b0", size) for size in (34, 250, 302)),
    ],
)
def test_every_stride_of_two_rounds_up(name: str, resolution_px: int) -> None:
    with torch.device("meta"):
        network = network_of(ZOO[name], resolution_px)
    sizes = sizes_of(network, resolution_px)
    assert len(sizes) == 4
    assert all(after == math.ceil(before / 2) for before, after in sizes)


def test_blocks_with_equal_padding_are_those_of_the_usual_checkpoints() -> None:
    blocks = {name: entry.config().depthwise_padding for name, entry in ZOO.items() if "efficientnet" in name}
    assert list(blocks.values()) == [[], [16], [5, 8, 16], [5, 18], [6], [13, 27], [31], [18]]
    assert same_padding_blocks(1.0, 224) == []


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "mobilenet_v2_100_160", "vit_b16_224"])
def test_a_network_has_no_storage_needs_no_hub_and_answers_a_thousand_classes(name: str) -> None:
    entry = ZOO[name]
    with torch.device("meta"):
        logits = network_of(entry)(torch.empty(2, 3, entry.resolution_px, entry.resolution_px)).logits
    assert (logits.device.type, tuple(logits.shape)) == ("meta", (2, 1000))


def test_the_same_seed_gives_the_same_weights() -> None:
    entry = ZOO["mobilenet_v2_100_160"]

    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return list(network_of(entry).state_dict().values())

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("asked", "near"),
    [("efficientnet-b3", "efficientnet_b3"), ("resnet-51", "resnet50"), ("vit_b16", "vit_b16_224")],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(ExportError, match=f"model {asked}: got no such name in the zoo, .*{near}"):
        entry_from_name(asked)
    with pytest.raises(ExportError, match="one of efficientnet_b0, "):
        entry_from_name("???")


@pytest.mark.parametrize(("name", "size"), [("vit_b16_224", 225), ("efficientnet_b0", 225), ("resnet50", 16)])
def test_a_resolution_that_cannot_be_is_one_line(name: str, size: int) -> None:
    with pytest.raises(ExportError, match=f"resolution of {name}: got {size} px, expected a multiple of"):
        network_cost(ZOO[name], size)


def test_every_processor_ends_at_the_networks_resolution() -> None:
    for entry in ZOO.values():
        settings = entry.processor
        # ConvNeXt's processor crops to its size by itself, after resizing to more.
        end = settings.get("crop_size") or settings["size"]
        assert set(end.values()) == {entry.resolution_px}, entry.name
        assert settings["do_center_crop"] == ("crop_size" in settings)
        assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize("family", ["EfficientNet", "ResNet", "MobileNetV2", "ViT"])
def test_white_ends_where_its_family_was_trained(family: str) -> None:
    entry: ZooEntry = next(entry for entry in ZOO.values() if entry.family == family)
    settings = entry.processor
    for mean, deviation in zip(settings["image_mean"], settings["image_std"], strict=True):
        twice = deviation if settings.get("include_top") else 1.0
        white = (255 * settings["rescale_factor"] - mean) / deviation / twice
        # ImageNet's statistics put it at 2.2 to 2.7, the halves of MobileNet and ViT at 1.
        assert white == pytest.approx(1) if family in ("MobileNetV2", "ViT") else 2.2 < white < 2.7


def test_people_get_a_table_with_whole_names() -> None:
    result = CliRunner().invoke(app, ["zoo"])
    assert result.exit_code == 0
    for entry in ZOO.values():
        assert f"{entry.name} " in result.stdout
        assert (entry.hub_id or "none known") in result.stdout
    assert "37.746" in result.stdout


def tiny_efficientnet() -> tuple[torch.nn.Module, int]:
    # Two of the sizes on the way, 37 and 19, are odd.
    side, depth = 74, 0.2
    config = transformers.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=depth, hidden_dim=320, num_labels=5,
        depthwise_padding=same_padding_blocks(depth, side),
    )  # fmt: skip
    return transformers.EfficientNetForImageClassification(config), side


def tiny_vit() -> tuple[torch.nn.Module, int]:
    # Eager: the fused attention of the CPU is one of those the counter of this release does not know.
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=24,
        patch_size=8, num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), 24


@pytest.mark.parametrize("make", [pytest.param(tiny_efficientnet, marks=pytest.mark.slow), tiny_vit])
def test_the_onnx_counter_agrees_with_torchs_on_small_networks(make: Any) -> None:
    network, side = make()
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side))
    graph = onnx_from_torch(Logits(network, interpolate=False).eval(), torch.zeros(2, 3, side, side))
    assert cost_of(graph).macs_per_row == counter.get_total_flops() // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_b3", "resnet50", "mobilenet_v2_100_160", "vit_b16_224"]
)
def test_the_onnx_counter_agrees_with_torchs_on_the_exported_network(name: str) -> None:
    entry = ZOO[name]
    image = torch.zeros(2, 3, entry.resolution_px, entry.resolution_px)
    counted = cost_of(onnx_from_torch(Logits(network_of(entry), interpolate=False).eval(), image))
    assert counted.macs_per_row / 1e9 == pytest.approx(network_cost(entry).gmacs, rel=1e-9)
    # Batch normalisation is folded into the convolution before it: two values of four go.
    assert counted.parameters / 1e6 == pytest.approx(network_cost(entry).params_m, rel=0.015)
