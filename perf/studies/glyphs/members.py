"""The glyphs members: train on the train part, export behind their image processing, prove, write."""

import functools
import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import PIL
import torch

from export.cost.counting import COUNTER, macs_per_row, parameters_of, preprocess_macs_per_row
from export.from_torch import onnx_from_torch
from export.images.parity import processor_of
from export.images.preprocess import with_preprocess
from export.images.processing import Processing
from export.members import MODEL_FILE, check_overwrite, foreign_member, is_current, write_member
from export.parity import parity_of
from orchestrator.errors import ExportError, SpecError
from orchestrator.graphs.editing import opset_of
from orchestrator.spec import Manifest, Preprocess, TensorSpec, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.studies.glyphs.data import CLASSES, SEED, SIDE_PX, SPLITS, GlyphsSplit, glyphs_split
from perf.studies.glyphs.networks import FAMILY, FAMILY_SEEDS, SELF, GlyphsNet, ResidualNet, train

PREPROCESS = Preprocess(mode="L", height_px=SIDE_PX, width_px=SIDE_PX)
ALL_ROWS = SPLITS["train"][1]
_CHUNK_ROWS = 2_000
_PARITY_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class GlyphsMember:
    """One member of the family.

    Args:
        name: of the member.
        size: the network.
        seed: of its training.
        resolution_px: at which it is exported.
        trained_as: members of the same name here share one training.
    """

    name: str
    size: GlyphsNet
    seed: int
    resolution_px: int
    trained_as: str

    def settings(self) -> dict[str, object]:
        """What decides its weights, as the manifest keeps it."""
        size = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.size).items()}
        return {"data": f"glyphs:train, seed {SEED}", "rows": ALL_ROWS, "seed": self.seed, **size}


def glyphs_members() -> tuple[GlyphsMember, ...]:
    """All of them, cheapest first; the self-cascade's two come last."""
    family = [
        GlyphsMember(
            name=f"{name}_s{seed}",
            size=size,
            seed=seed,
            resolution_px=size.resolution_px,
            trained_as=f"{name}_s{seed}",
        )
        for name, size in FAMILY.items()
        for seed in FAMILY_SEEDS
    ]
    both = {"low": SELF.also_px[0], "high": SELF.resolution_px}
    return (
        *family,
        *(
            GlyphsMember(
                name=f"glyphs_self_{word}", size=SELF, seed=0, resolution_px=side, trained_as="glyphs_self"
            )
            for word, side in both.items()
        ),
    )


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
        raise ExportError(
            f"repository {repository}",
            got=", ".join(f"{name} trained on {known:,} rows" for name, known in others.items()),
            expected=f"no such member, or one of {rows:,} rows",
            fix="choose another --output, or write over it with --force",
        )


def _rows_of(folder: Path) -> int | None:
    """On how many rows the member there was trained, None where nothing says."""
    try:
        rows = manifest_from_path(folder / MANIFEST).training.get("rows")
    except SpecError:
        return None
    return rows if isinstance(rows, int) else None


def _wanted(only: tuple[str, ...]) -> list[GlyphsMember]:
    members = {member.name: member for member in glyphs_members()}
    unknown = [name for name in only if name not in members]
    if unknown:
        raise ExportError(
            "glyphs members", got=", ".join(unknown), expected=f"some of {', '.join(members)}", fix="check --only"
        )
    return [member for name, member in members.items() if not only or name in only]


class _TrainData:
    """The train part, drawn when it is first needed, and its rows as a network of a resolution sees them."""

    def __init__(self, rows: int | None, progress: Callable[[str], None]) -> None:
        self._rows = rows
        self._progress = progress

    @functools.cached_property
    def part(self) -> GlyphsSplit:
        return glyphs_split(
            "train",
            rows=self._rows,
            progress=lambda done, of: self._progress(f"drawing glyphs: {done:,} of {of:,}"),
        )

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
        input=TensorSpec(name="image", dtype="UINT8", dims=(1, SIDE_PX, SIDE_PX)),
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
