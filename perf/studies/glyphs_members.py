"""The glyphs members: train on the train part, export behind their image processing, prove, write.

They are small residual networks for grey images, scaled together in resolution, width and depth: compound scaling
as in EfficientNet (Tan and Le, 2019), with plain 3x3 convolutions, which train several times faster on a CPU than
depthwise ones of the same cost.
"""

import functools
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import PIL
import torch
import torch.nn.functional as functional
from torch import nn

from export.cost.counting import COUNTER, macs_per_row, parameters_of, preprocess_macs_per_row
from export.from_torch import onnx_from_torch
from export.images import Processing, with_preprocess
from export.members import MODEL_FILE, check_overwrite, foreign_member, is_current, write_member
from export.parity import parity_of, processor_of
from orchestrator.errors import ExportError, SpecError
from orchestrator.graphs.editing import opset_of
from orchestrator.spec import Manifest, Preprocess, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.studies.drawn import DrawnPart
from perf.studies.glyphs_data import CLASSES, SEED, SIDE_PX, SPLITS, glyphs_split


@dataclass(frozen=True, kw_only=True)
class GlyphsNet:
    """One size of the family.

    Args:
        resolution_px: side of the image that the network looks at; the graph shrinks the 32 pixels to it.
        width: channels of the first group; the second has twice as many, the third four times.
        blocks: residual blocks in each of the three groups.
        epochs: passes over the training rows.
        also_px: other resolutions that training batches take in turn, for a network that is asked at several.
    """

    resolution_px: int
    width: int
    blocks: int
    epochs: int
    also_px: Sequence[int] = ()


# From 0.2 to 26 million multiply-accumulates per row. Small networks are cheap to train for longer and need it.
FAMILY = {
    "glyphs_b0": GlyphsNet(resolution_px=16, width=8, blocks=1, epochs=24),
    "glyphs_b1": GlyphsNet(resolution_px=20, width=12, blocks=1, epochs=24),
    "glyphs_b2": GlyphsNet(resolution_px=24, width=16, blocks=1, epochs=24),
    "glyphs_b3": GlyphsNet(resolution_px=28, width=24, blocks=1, epochs=18),
    "glyphs_b4": GlyphsNet(resolution_px=32, width=32, blocks=1, epochs=15),
    "glyphs_b5": GlyphsNet(resolution_px=32, width=32, blocks=2, epochs=14),
}
FAMILY_SEEDS = (0, 1)
# One network that is asked at 20 pixels first and at 32 after that.
SELF = GlyphsNet(resolution_px=32, width=24, blocks=1, epochs=18, also_px=(20,))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        second = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        norms = nn.BatchNorm2d(width_out), nn.BatchNorm2d(width_out)
        self.body = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1])
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            shrink = nn.Conv2d(width_in, width_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shrink, nn.BatchNorm2d(width_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Half the resolution at once, three groups of blocks, the mean over the image, a linear head.

    Takes float32 (n, 1, r, r) of any r, normalised; returns logits (n, k).
    """

    def __init__(self, size: GlyphsNet, classes: int = len(CLASSES)) -> None:
        super().__init__()
        width = size.width
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        for group in range(3):
            for block in range(size.blocks):
                out = size.width * 2**group
                layers.append(_Block(width, out, 2 if group and not block else 1))
                width = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (n, k)."""
        return self.head(self.body(image).mean(dim=(2, 3)))


Net = TypeVar("Net", bound=nn.Module)
PEAK_LEARNING_RATE = 4e-3
MAX_ROTATION_RAD = math.radians(8)
MAX_SHIFT = 0.1  # of half the image
SCALE_RANGE = 0.1


def train(
    size: GlyphsNet,
    images: Mapping[int, npt.NDArray[np.float32]],
    labels: npt.NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> ResidualNet:
    """A trained network in evaluation mode.

    Args:
        size: which network.
        images: resolution in pixels -> float32 (n, 1, r, r), as they come out of the image processing; for
            `size.resolution_px` and each of `size.also_px`.
        labels: int64 (n,).
        seed: of weights, order and augmentation.
        progress: told after each epoch.
    """
    tensors = [torch.from_numpy(images[side]) for side in (size.resolution_px, *size.also_px)]
    y = torch.from_numpy(labels)
    step = itertools.count()

    # Channels last and 16-bit products: measured 2.3 times as fast as the plain form on a two-core CPU.
    def loss(model: nn.Module, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = augmented(tensors[next(step) % len(tensors)][rows], generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), y[rows])

    def new() -> ResidualNet:
        return ResidualNet(size).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it

    return fitted(new, loss, rows=len(y), batch=128, epochs=size.epochs, decay=0.02, seed=seed, progress=progress)


def fitted(
    new: Callable[[], Net],
    loss: Callable[[Net, torch.Tensor, torch.Generator], torch.Tensor],
    *,
    rows: int,
    batch: int,
    epochs: int,
    decay: float,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Net:
    """A new network, trained by AdamW in one cycle of learning rates, in evaluation mode.

    Args:
        new: makes it, its weights drawn at random.
        loss: of the network on rows by number; the generator is for augmentation.
        rows: there are.
        batch: rows of each step.
        epochs: passes over the rows.
        decay: of weights.
        seed: of weights, order and augmentation.
        progress: told after each epoch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=decay)
    steps = epochs * math.ceil(rows / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    for epoch in range(epochs):
        for part in torch.randperm(rows, generator=generator).split(batch):
            optimiser.zero_grad()
            loss(model, part, generator).backward()
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(epoch + 1)
    return model.eval()


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image turned, scaled and shifted a little, and half of them with ink and paper exchanged.

    Images are float32 (n, 1, r, r), zero in the middle of their range.
    """
    moved = moved_at_random(
        images, generator, rotation_rad=MAX_ROTATION_RAD, scale=SCALE_RANGE, shift=MAX_SHIFT, padding="border"
    )
    inverted = torch.rand(len(images), generator=generator) < 0.5
    return moved * torch.where(inverted, 1.0, -1.0)[:, None, None, None]


def moved_at_random(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    rotation_rad: float,
    scale: float,
    shift: float,
    padding: str,
) -> torch.Tensor:
    """Every image, float32 (n, 1, h, w), rotated, scaled and shifted at random, up to the given reach.

    The scale is a share, the shift one of half the image; `padding` is what `grid_sample` takes to lie outside.
    """
    count = len(images)

    def uniform(reach: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    angle, size = uniform(rotation_rad), 1 + uniform(scale)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) * size
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) * size, torch.sin(angle) * size
    theta[:, 0, 2], theta[:, 1, 2] = uniform(shift), uniform(shift)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


PREPROCESS = Preprocess(mode="L", height_px=SIDE_PX, width_px=SIDE_PX)
ALL_ROWS = SPLITS["train"][1]
_CHUNK_ROWS = 2_000
_PARITY_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class GlyphsMember:
    """One member of the family, exported at a resolution; those of the same `trained_as` share one training."""

    name: str
    size: GlyphsNet
    resolution_px: int
    trained_as: str
    seed: int = 0

    def settings(self) -> dict[str, object]:
        """What decides its weights, as the manifest keeps it."""
        return {"data": f"glyphs:train, seed {SEED}", "rows": ALL_ROWS, "seed": self.seed} | json_fields(self.size)


def glyphs_members() -> tuple[GlyphsMember, ...]:
    """All of them, cheapest first; the self-cascade's two come last."""
    found = []
    for (family, size), seed in itertools.product(FAMILY.items(), FAMILY_SEEDS):
        name = f"{family}_s{seed}"
        found.append(
            GlyphsMember(name=name, size=size, seed=seed, resolution_px=size.resolution_px, trained_as=name)
        )
    for word, side in {"low": SELF.also_px[0], "high": SELF.resolution_px}.items():
        name = f"glyphs_self_{word}"
        found.append(GlyphsMember(name=name, size=SELF, resolution_px=side, trained_as="glyphs_self"))
    return tuple(found)


def export_glyphs(
    repository: Path,
    *,
    only: Iterable[str] = (),
    rows: int | None = None,
    force: bool = False,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Trains and writes every glyphs member that is not there yet.

    Args:
        repository: model repository to write into.
        only: names of members; all where it is empty.
        rows: train on the first so many rows only, for a try.
        force: train again even where a member is up to date, or was trained on other rows.
        progress: told what is being done.

    Returns:
        member name -> "trained in <n> s" or "up to date".

    Raises:
        ExportError: no such member, or the repository holds other models of these names or members trained on
            another number of rows.
        RepositoryError: the repository cannot be written.
    """
    wanted = _wanted(tuple(only))
    check_exported_here(repository, [member.name for member in wanted], force=force)
    if not force:
        _require_same_rows(repository, [member.name for member in wanted], rows or ALL_ROWS)
    done: dict[str, str] = {}
    data = _TrainData(rows, progress)
    trained: dict[str, ResidualNet] = {}
    for member in wanted:
        settings = member.settings() | ({"rows": rows} if rows is not None else {})
        if not force and is_current(repository / member.name, settings, field="training"):
            done[member.name] = "up to date"
            continue
        begun_s = time.monotonic()
        if member.trained_as not in trained:
            trained = {member.trained_as: _trained(member, data, progress)}
        progress(f"{member.name}: exporting")
        _write(repository, member, trained[member.trained_as], data, settings)
        done[member.name] = f"trained in {time.monotonic() - begun_s:.0f} s"
    return done


def _require_same_rows(repository: Path, names: Iterable[str], rows: int) -> None:
    """Refuses, before any work, to put a try in the place of a member of all rows, or the other way round."""
    others = {name: known for name in names if (known := _rows_of(repository / name)) not in (None, rows)}
    if others:
        got = ", ".join(f"{name} trained on {known:,} rows" for name, known in others.items())
        expected = f"no such member, or one of {rows:,} rows"
        fix = "choose another --output, or write over it with --force"
        raise ExportError(f"repository {repository}", got=got, expected=expected, fix=fix)


def _rows_of(folder: Path) -> int | None:
    """On how many rows the member there was trained, None where nothing says."""
    try:
        rows = manifest_from_path(folder / MANIFEST).training.get("rows")
    except SpecError:
        return None
    return rows if isinstance(rows, int) else None


def _wanted(only: tuple[str, ...]) -> list[GlyphsMember]:
    members = {member.name: member for member in glyphs_members()}
    if unknown := [name for name in only if name not in members]:
        expected = f"some of {', '.join(members)}"
        raise ExportError("glyphs members", got=", ".join(unknown), expected=expected, fix="check --only")
    return [member for name, member in members.items() if not only or name in only]


class _TrainData:
    """The train part, drawn when it is first needed, and its rows as a network of a resolution sees them."""

    def __init__(self, rows: int | None, progress: Callable[[str], None]) -> None:
        self._rows, self._progress = rows, progress

    @functools.cached_property
    def part(self) -> DrawnPart:
        def drawn(done: int, of: int) -> None:
            self._progress(f"drawing glyphs: {done:,} of {of:,}")

        return glyphs_split("train", rows=self._rows, progress=drawn)

    @functools.cached_property
    def sha256(self) -> str:
        return self.part.sha256()

    def at(self, resolution_px: int) -> npt.NDArray[np.float32]:
        """float32 (n, 1, r, r)."""
        process = processor_of(processing(resolution_px), height_px=SIDE_PX, width_px=SIDE_PX)
        images = self.part.images
        return np.concatenate([process(images[i : i + _CHUNK_ROWS]) for i in range(0, len(images), _CHUNK_ROWS)])


def processing(resolution_px: int) -> Processing:
    """From a picture of 32 pixels in bytes to -1 to 1 at a resolution."""
    return Processing(resize_px=(resolution_px, resolution_px), channels=1, mean=(0.5,), std=(0.5,))


def _trained(member: GlyphsMember, data: _TrainData, progress: Callable[[str], None]) -> ResidualNet:
    size = member.size
    return train(
        size,
        {side: data.at(side) for side in (size.resolution_px, *size.also_px)},
        data.part.labels,
        seed=member.seed,
        progress=lambda epoch: progress(f"{member.trained_as}: epoch {epoch} of {size.epochs}"),
    )


def _write(
    repository: Path, member: GlyphsMember, model: ResidualNet, data: _TrainData, settings: dict[str, object]
) -> None:
    side = member.resolution_px
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's types lack it
    network = onnx_from_torch(model, torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0)))
    proto = with_preprocess(network, processing(side), height_px=SIDE_PX, width_px=SIDE_PX)
    process = processor_of(processing(side), height_px=SIDE_PX, width_px=SIDE_PX)
    write_trained(
        repository,
        proto,
        lambda rows: answer(model, process(rows)),
        data.part.images[:_PARITY_ROWS],
        name=member.name,
        source="python -m perf glyphs",
        inputs=(TensorSpec(name="image", dtype="UINT8", dims=(1, SIDE_PX, SIDE_PX)),),
        output=TensorSpec(name="logits", dtype="FP32", dims=(len(CLASSES),)),
        training=settings,
        labels=CLASSES,
        preprocess=PREPROCESS,
        resolution_px=side,
        preprocess_macs=preprocess_macs_per_row(proto),
        options={"data_sha256": data.sha256},
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "pillow": PIL.__version__},
    )


def check_exported_here(repository: Path, names: Iterable[str], *, force: bool) -> None:
    """Refuses to write over models without a manifest.

    Raises:
        ExportError: a folder of such a name holds one.
        RepositoryError: the repository cannot be written.
    """
    expected = "members exported here, or none"
    check_overwrite(repository, names, foreign=foreign_member(lambda _: True), expected=expected, force=force)


def json_fields(about: Any) -> dict[str, object]:
    """The fields of a dataclass as JSON has them, lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(about).items()}


def answer(model: torch.nn.Module, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What a network in evaluation mode says of rows."""
    with torch.inference_mode():
        scores: npt.NDArray[np.float32] = model(torch.from_numpy(rows)).numpy()
    return scores


def write_trained(
    repository: Path,
    proto: onnx.ModelProto,
    reference: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    rows: npt.NDArray[Any],
    **fields: Any,
) -> None:
    """Compares a trained network with its ONNX graph, and writes the graph as a member.

    Args:
        repository: model repository to write into.
        proto: the graph, with logits out.
        reference: the network, (n, *dims) -> float32 (n, k).
        rows: (n, *dims) to compare on.
        fields: of the manifest, besides those that follow from the graph.

    Raises:
        ExportError: the graph says something else than the network.
    """
    stored = proto.SerializeToString(deterministic=True)
    manifest = Manifest(
        file=MODEL_FILE,
        sha256=hashlib.sha256(stored).hexdigest(),
        precision="fp32",
        opset=opset_of(proto),
        output_kind="logits",
        parameters=parameters_of(proto),
        macs=macs_per_row(proto),
        macs_counter=COUNTER,
        parity=parity_of(stored, reference, rows).as_json(),
        **fields,
    )
    write_member(repository, stored, manifest)
