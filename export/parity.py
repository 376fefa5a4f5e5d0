"""Does an exported model say what the original says? Measured on rows that go through both.

The image processing is compared first, then the scores: names, shapes, values; all faults together.
"""

import dataclasses
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from export.images import IMAGE, INPUT, Processing, preprocess_only
from export.sources import LoadedModel
from export.tensor_rows import (
    AnyRows,
    TensorRows,
    feed_of,
    kinds_from_graph,
    lengths_of,
    made_up_rows,
    rows_of_lengths,
)
from orchestrator.errors import CommitteeError, DataError, ExportError, first_line
from orchestrator.spec import Manifest, TensorSpec
from orchestrator.spec.processor import core_count
from orchestrator.spec.request import INPUT_DTYPES

Rows = npt.NDArray[Any]
Images = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]


def varied_rows(tensor: TensorSpec, n: int, *, seed: int = 0) -> Rows:
    """Rows that look as little alike as pictures do: noise of many grains, contrasts, brightnesses and tints.

    Flat noise would do for comparing two runs of one network, but a network averages it away, so that all rows of
    it get nearly the same answer. Gives (n, *dims) in the tensor's dtype: integers over its whole range, floats of
    about -2 to 2.
    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(INPUT_DTYPES[tensor.dtype])
    rows = np.stack([_one(rng, tuple(abs(size) for size in tensor.dims)) for _ in range(n)])
    if dtype.kind == "u":
        most = np.iinfo(dtype).max
        rows = np.clip(np.round((rows + 1) / 2 * most), 0, most)
    else:
        rows = rows * 2
    return rows.astype(dtype)


def _one(rng: np.random.Generator, dims: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """One row with values about -1 to 1."""
    if len(dims) != 3 or min(dims[1:]) < 2:
        return rng.normal(size=dims) * rng.uniform(0.2, 0.8)
    channels, height, width = dims
    picture = np.zeros(dims)
    for _ in range(3):
        grain = int(np.exp(rng.uniform(np.log(2), np.log(min(height, width)))))
        coarse = rng.normal(size=(channels, grain, grain))
        picture += coarse[:, np.arange(height) * grain // height][:, :, np.arange(width) * grain // width]
    tint = rng.normal(scale=0.3, size=(channels, 1, 1))
    return np.clip(picture / 3 * rng.uniform(0.4, 1.0) + tint + rng.normal(scale=0.3), -1, 1)


def rows_from_path(path: Path, tensor: TensorSpec) -> Rows:
    """The rows of an `.npy`, or of an `.npz` under "images" or alone; DataError where they do not fit."""
    what = f"rows of {path}"
    if not path.is_file():
        raise DataError(what, got="no such file", expected="an .npy or .npz of rows")
    try:
        rows: Rows = np.load(path, allow_pickle=False)
        if not isinstance(rows, np.ndarray):
            with rows as stored:
                names = stored.files
                if "images" not in names and len(names) != 1:
                    raise DataError(what, got=", ".join(names) or "nothing", expected="an array images")
                rows = stored["images" if "images" in names else names[0]]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(what, got=f"a file numpy cannot read ({error})") from error
    dtype = INPUT_DTYPES[tensor.dtype]
    if str(rows.dtype) != dtype or rows.shape[1:] != tensor.dims or len(rows) == 0:
        shape = ", ".join(["n", *map(str, tensor.dims)])
        raise DataError(what, got=f"{rows.dtype} {list(rows.shape)}", expected=f"{dtype} [{shape}]")
    return rows


def member_rows(manifest: Manifest, graph: Callable[[], onnx.GraphProto], n: int, *, seed: int = 0) -> AnyRows:
    """Made-up rows for a member; its graph, without weights, tells which whole numbers it takes."""
    if manifest.takes_one_dense_tensor:
        return varied_rows(manifest.input, n, seed=seed)
    pad, longest = (manifest.length.pad, manifest.length.longest) if manifest.length else ({}, 1)
    return made_up_rows(kinds_from_graph(graph(), manifest.inputs, pad), n, longest=longest, seed=seed)


def member_rows_from_path(path: Path, manifest: Manifest) -> AnyRows:
    """A member's rows in a file: as `rows_from_path` for one tensor, else an `.npz` with an array per tensor.

    Shorter rows are filled up with the member's padding.

    Raises:
        DataError: they do not fit.
    """
    if manifest.takes_one_dense_tensor:
        return rows_from_path(path, manifest.input)
    what, names = f"rows of {path}", [one.name for one in manifest.inputs]
    if not path.is_file() or path.suffix != ".npz":
        got = "no such file" if not path.is_file() else path.name
        raise DataError(what, got=got, expected=f"an .npz with arrays {', '.join(names)}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in names if name in stored.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(what, got=f"a file numpy cannot read ({error})") from error
    _require_fitting_arrays(arrays, manifest, what)
    pad = manifest.length.pad if manifest.length else {}
    return TensorRows(arrays=arrays, lengths=lengths_of(arrays, pad), pad=pad)[:]


def _require_fitting_arrays(arrays: dict[str, Rows], manifest: Manifest, what: str) -> None:
    """Raises DataError where a tensor is missing, or arrays are not rows of the member."""
    for one in manifest.inputs:
        expected = f"{INPUT_DTYPES[one.dtype]} {['n', *one.dims]}"
        if one.name not in arrays:
            raise DataError(what, got=f"no array {one.name}", expected=expected)
        rows = arrays[one.name]
        fits = rows.ndim == len(one.dims) + 1 and all(
            want in (-1, size) for size, want in zip(rows.shape[1:], one.dims, strict=True)
        )
        if str(rows.dtype) != INPUT_DTYPES[one.dtype] or not fits or len(rows) == 0:
            raise DataError(f"{what}, {one.name}", got=f"{rows.dtype} {list(rows.shape)}", expected=expected)
    varying = [one.name for one in manifest.inputs if -1 in one.dims]
    counts = {len(rows) for rows in arrays.values()}
    sizes = {arrays[name].shape[1] for name in varying}
    longest = manifest.length.longest if manifest.length else 0
    if len(counts) > 1 or len(sizes) > 1 or max(sizes, default=0) > longest:
        got = ", ".join(f"{name} {list(rows.shape)}" for name, rows in arrays.items())
        upto = f", up to {longest}" if varying else ""
        raise DataError(what, got=got, expected=f"as many rows of each tensor, of one length{upto}")


# Both round to whole levels after each axis; where the exact value is half a level the last bit decides, and the
# second axis may double that. Another filter, size or order of the axes gives ten levels and more.
MAX_LEVELS = 2.01
# Share of values that may differ at all: 3 % is the worst of the usual sizes tried.
MAX_SHARE = 0.1


def in_the_same_order(loaded: LoadedModel, rows: Images) -> LoadedModel:
    """The model with its two resizing passes as its own processor orders them for rows uint8 (n, c, H, W)."""
    assert loaded.processing is not None
    expected = _expected(loaded, loaded.processing, rows)
    errors = {}
    for vertical_first in (False, True):
        processing = dataclasses.replace(loaded.processing, vertical_first=vertical_first)
        got = processor_of(processing, height_px=rows.shape[2], width_px=rows.shape[3])(rows)
        if got.shape != expected.shape:
            return loaded
        errors[vertical_first] = float(np.abs(got - expected).mean())
    better = errors[True] < errors[False]
    return dataclasses.replace(loaded, processing=dataclasses.replace(loaded.processing, vertical_first=better))


def _expected(loaded: LoadedModel, processing: Processing, rows: Images) -> Scores:
    own = loaded.own_processor
    return own(rows) if own is not None else pillow_processed(processing, rows)


def image_parity(loaded: LoadedModel, rows: Images) -> dict[str, Any]:
    """What the graph does to images uint8 (n, c, H, W), and how far that is from the model's own processor.

    Gives the settings, and `parity`: rows, what it was measured against, the largest difference in levels of 0 to
    255, and the share of values that differ at all. Raises ExportError where the graph does something else.
    """
    processing = loaded.processing
    assert processing is not None
    height_px, width_px = rows.shape[2:]
    got = processor_of(processing, height_px=height_px, width_px=width_px)(rows)
    name = loaded.own_processor_name if loaded.own_processor is not None else "Pillow with the same settings"
    expected = _expected(loaded, processing, rows)
    what, fix = "image processing in the graph", "give `mean`, `std` and `resolution_px` by hand"
    if got.shape != expected.shape:
        raise ExportError(what, got=f"shape {got.shape}", expected=f"{expected.shape} as {name} gives", fix=fix)
    level = (processing.scale / np.array(processing.std, np.float64)).reshape(1, -1, 1, 1)
    levels = np.abs(got - expected) / level
    worst, share = float(levels.max()), float((levels > 0.01).mean())
    if not (worst <= MAX_LEVELS and share <= MAX_SHARE):
        raise ExportError(
            what,
            got=f"values up to {worst:.2f} levels of 255 from {name}, {share:.1%} of them different",
            expected=f"at most {MAX_LEVELS} levels on at most {MAX_SHARE:.0%}",
            fix=fix,
        )
    return {
        **asdict(processing),
        "image_px": [height_px, width_px],
        "parity": {"rows": len(rows), "against": name, "max_levels": round(worst, 4), "share": round(share, 6)},
    }


def processor_of(processing: Processing, *, height_px: int, width_px: int) -> Callable[[Images], Scores]:
    """The graph's processing alone, uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    model = preprocess_only(processing, height_px=height_px, width_px=width_px)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: np.asarray(session.run([IMAGE], {INPUT: rows})[0], np.float32)


def pillow_processed(processing: Processing, rows: Images) -> Scores:
    """The processing done by Pillow and numpy, uint8 (n, c, H, W) -> float32 (n, c, h, w)."""
    height, width = processing.resized_px(*rows.shape[2:])
    images = np.stack([_resized(row, height, width, processing.filter) for row in rows]).astype(np.float64)
    if processing.crop_px is not None:
        images = _cropped(images, processing.crop_px)
    if processing.reverse_channels:
        images = images[:, ::-1]
    mean, std = (np.array(v, np.float64).reshape(1, -1, 1, 1) for v in (processing.mean, processing.std))
    return np.asarray((images * processing.scale + processing.offset - mean) / std, np.float32)


def _resized(row: Images, height: int, width: int, filter_name: str) -> Images:
    # Optional: only a member with image processing needs it.
    from PIL import Image

    how = Image.Resampling[filter_name.upper()]
    return np.stack([np.array(Image.fromarray(plane).resize((width, height), how)) for plane in row])


def _cropped(images: npt.NDArray[np.float64], crop_px: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Centre crop; a crop larger than the image gets black margins, the larger half of an odd one first."""
    for axis, size in zip((2, 3), crop_px, strict=True):
        missing = size - images.shape[axis]
        if missing > 0:
            margin = [(0, 0)] * 4
            margin[axis] = (missing - missing // 2, missing // 2)
            images = np.pad(images, margin)
        else:
            top = -missing // 2
            images = np.take(images, range(top, top + size), axis=axis)
    return images


BATCHES = (1, 2, 7, 33)
MAX_ABS_ERROR = 1e-3
MIN_ROWS = 64
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between two runs of the same rows, in batches of several sizes."""

    rows: int
    batches: tuple[int, ...]
    max_abs: float  # largest absolute difference of an output
    max_rel: float  # largest difference relative to the largest output
    same_top1: float  # share of rows with the same top-1

    def as_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {**asdict(self), "batches": list(self.batches)}


def parity_of(
    model: bytes | Path,
    reference: Callable[[Any], Scores],
    rows: AnyRows,
    *,
    input_name: str = "image",
    output_name: str = "logits",
    min_rows: int = MIN_ROWS,
    subject: str = "",
    remedy: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares an ONNX model, serialised or its path, in ONNX Runtime with its original.

    `reference` is the original, (n, *dims) -> float32 (n, k), and rows (n, *dims) differ. Fewer than `min_rows`
    are no comparison; large networks may be given fewer than the usual 64. ExportError names the `subject`, has
    every disagreement, and the `remedy`.
    """
    what = f"{subject} parity".strip()
    if len(rows) < min_rows:
        raise ExportError(what, got=f"{len(rows)} rows", expected=f"at least {min_rows}")
    session = session_of(model)
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    inputs = list(rows.arrays) if isinstance(rows, TensorRows) else [input_name]
    if names != (inputs, [output_name]):
        raise ExportError(what, got=f"tensors {names}", expected=f"{inputs} and {[output_name]}")
    progress("comparing with the original")
    expected = original_scores(reference, rows)
    return agreed(
        lambda batch: _asked(session, rows, batch, subject),
        expected,
        batches=tuple(dict.fromkeys(min(batch, len(rows)) for batch in BATCHES)),
        allowed=allowed_of(expected),
        what=what,
        remedy=remedy,
        progress=lambda text: progress(f"comparing with the original, {text}"),
    )


# How far an answer may move when its row is padded, relative to the largest, or to 1 where that is smaller.
MAX_PADDING_ERROR = 1e-5


# The longest row that is compared with the original; one of thousands of tokens takes gigabytes.
LONGEST_COMPARED = 512


def length_parity(
    model: Path, reference: Callable[[Any], Scores], loaded: LoadedModel, rows: TensorRows, *, subject: str
) -> dict[str, Any]:
    """Compares the longest row with the original, and rows with and without padding.

    Raises:
        ExportError: the model gives something else, or padding moves its answers by more than rounding.
    """
    session, length = session_of(model), min(loaded.longest, LONGEST_COMPARED)
    padding = _padding_of(session, rows, longest=loaded.longest, subject=subject)
    row = rows_of_lengths(loaded.kinds, np.array([length]), seed=2)
    expected = original_scores(reference, row)
    whole = agreed(
        lambda batch: _asked(session, row, batch),
        expected,
        batches=(1,),
        allowed=allowed_of(expected),
        what=f"parity of a row of length {length}",
        progress=lambda _: None,
    )
    return {"longest": {"length": length, "max_abs": whole.max_abs}, "padding": padding}


def _padding_of(session: Any, rows: TensorRows, *, longest: int, subject: str) -> dict[str, Any]:
    """How far padding moves a model's answers: each row alone, at its own length, against longer ones."""
    few = rows[:MIN_ROWS]
    alone = _asked(session, few, 1)
    most = int(few.lengths.max())
    lengths = sorted({most, min(longest, most + 17)})
    padded = [answers_of(session, few.padded(length), batch=len(few)) for length in lengths]
    worst = max(float(np.abs(one - alone).max()) for one in padded)
    allowed = MAX_PADDING_ERROR * max(1.0, float(np.abs(alone).max()))
    # NaN fails too.
    if not worst <= allowed:
        raise ExportError(
            f"{subject} padding",
            got=f"answers that move by up to {worst:.3g} when a row is padded to up to {lengths[-1]}",
            expected=f"at most {allowed:.3g}, as rows of several lengths share a batch",
            fix="give the padding that the model expects with `pads`, or export a model that takes a mask",
        )
    return {"max_abs": worst, "lengths": lengths}


def agreed(
    ask: Callable[[int], Scores],
    expected: Scores,
    *,
    batches: tuple[int, ...],
    allowed: float,
    what: str,
    progress: Callable[[str], None],
    remedy: str | None = None,
) -> Parity:
    """Compares answers float32 (n, k) to the same rows in every batch size; ExportError with all disagreements."""
    faults, worst, same = [], 0.0, []
    for batch in batches:
        progress(f"{batch} rows at a time")
        got = ask(batch)
        if got.shape != expected.shape:
            faults.append(f"batch {batch}: shape {got.shape} for {expected.shape}")
            continue
        error = float(np.abs(got - expected).max())
        worst = max(worst, error)
        same.append(float((got.argmax(axis=1) == expected.argmax(axis=1)).mean()))
        # NaN fails too.
        if not error <= allowed:
            faults.append(f"batch {batch}: differs by {error:g}")
    if faults:
        raise ExportError(what, got="; ".join(faults), expected=f"at most {allowed:g}", fix=remedy)
    return Parity(
        rows=len(expected),
        batches=batches,
        max_abs=worst,
        # A head of zeros gives 0 for every row.
        max_rel=worst / (float(np.abs(expected).max()) or 1.0),
        same_top1=min(same),
    )


def allowed_of(expected: Scores) -> float:
    """Largest difference allowed from scores: relative to the largest, or to 1 where that is smaller."""
    return MAX_ABS_ERROR * max(1.0, float(np.abs(expected).max()))


def original_scores(reference: Callable[[Any], Scores], rows: AnyRows) -> Scores:
    """What the original says of rows, asked in chunks: float32 (n, k); ExportError where it fails."""
    try:
        expected = np.concatenate([reference(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)])
    except CommitteeError:
        raise
    # The user's own model may raise anything.
    except Exception as error:
        got = f"{type(error).__name__}: {first_line(error)}"
        raise ExportError("the original", got=got, expected="scores (rows, classes)") from error
    if not np.isfinite(expected).all():
        bad = int((~np.isfinite(expected)).any(axis=1).sum())
        got = f"NaN or infinity on {bad} of {len(rows)} rows"
        raise ExportError("the original", got=got, expected="finite scores")
    return expected


def session_of(model: bytes | Path, subject: str = "ONNX Runtime") -> Any:
    """An ONNX Runtime session on all cores; ExportError where it does not open the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = core_count()
    # Errors come as exceptions; logging them as well would say them twice.
    options.log_severity_level = 4
    try:
        source = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        expected = "a model of operators that ONNX Runtime has"
        fix = "export the model again with standard operators of opset 18"
        raise ExportError(subject, got=first_line(error), expected=expected, fix=fix) from error


def answers_of(session: Any, rows: AnyRows, *, batch: int) -> Rows:
    """A session's first output for rows, asked a batch at a time."""
    starts = range(0, len(rows), batch)
    parts = [session.run(None, feed_of(session, rows[start : start + batch]))[0] for start in starts]
    return np.concatenate(parts)


def _asked(session: Any, rows: AnyRows, batch: int, subject: str = "") -> Scores:
    try:
        return answers_of(session, rows, batch=batch)
    # A batch axis that is free in name only makes some operator fail.
    except Exception as error:
        raise ExportError(
            f"{subject} parity at batch {batch}".strip(), got=first_line(error), expected="an answer"
        ) from error


def original_of(loaded: LoadedModel, tensor: TensorSpec) -> Callable[[Any], Scores]:
    """A loaded model as a function of the member's rows; images go through the graph's processing first.

    Otherwise the one-level differences from the model's own processor, measured apart, would hide the network's.
    """
    network = loaded.reference or _torch_reference(loaded.network)
    if loaded.processing is None:
        return network
    processed = processor_of(loaded.processing, height_px=tensor.dims[1], width_px=tensor.dims[2])
    return lambda rows: network(processed(rows))


def _torch_reference(module: Any) -> Callable[[Any], Scores]:
    # Optional: an ONNX file needs none.
    import torch

    def ask(rows: AnyRows) -> Scores:
        tensors = rows.arrays.values() if isinstance(rows, TensorRows) else [rows]
        with torch.inference_mode():
            return np.asarray(module(*[torch.from_numpy(np.ascontiguousarray(one)) for one in tensors]).float())

    return ask
