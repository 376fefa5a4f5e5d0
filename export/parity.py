"""Does an exported model say what the original says? Names, then shapes, then values; all faults together."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from export.images.parity import processor_of
from export.sources import LoadedModel
from orchestrator.errors import CommitteeError, ExportError, first_line
from orchestrator.spec import TensorSpec
from orchestrator.spec.processor import core_count

BATCHES = (1, 2, 7, 33)
MAX_ABS_ERROR = 1e-3
MIN_ROWS = 64
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between two runs of the same rows.

    Args:
        rows: rows compared.
        batches: batch sizes they were sent in.
        max_abs: largest absolute difference of an output.
        max_rel: largest difference relative to the largest output.
        same_top1: share of rows with the same top-1.
    """

    rows: int
    batches: tuple[int, ...]
    max_abs: float
    max_rel: float
    same_top1: float

    def as_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {**asdict(self), "batches": list(self.batches)}


def parity_of(
    model: bytes | Path,
    reference: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    rows: npt.NDArray[Any],
    *,
    input_name: str = "image",
    output_name: str = "logits",
    min_rows: int = MIN_ROWS,
    progress: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares an ONNX model in ONNX Runtime with its original.

    Args:
        model: a serialised ONNX model, or its path.
        reference: (n, *dims) -> float32 (n, k), the original; asked in chunks.
        rows: (n, *dims), rows that differ.
        min_rows: fewest that count as a comparison; large networks may be given fewer than the usual 64.
        progress: told what is being done.
        input_name: name the input should have.
        output_name: name the output should have.

    Raises:
        ExportError: with every disagreement.
    """
    if len(rows) < min_rows:
        raise ExportError("parity", got=f"{len(rows)} rows", expected=f"at least {min_rows}")
    session = session_of(model)
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != ([input_name], [output_name]):
        raise ExportError("parity", got=f"tensors {names}", expected=f"{[input_name]} and {[output_name]}")
    progress("comparing with the original")
    expected = original_scores(reference, rows)
    return agreed(
        lambda batch: _asked(session, rows, batch),
        expected,
        batches=tuple(dict.fromkeys(min(batch, len(rows)) for batch in BATCHES)),
        allowed=allowed_of(expected),
        what="parity",
        progress=lambda text: progress(f"comparing with the original, {text}"),
    )


def agreed(
    ask: Callable[[int], npt.NDArray[np.float32]],
    expected: npt.NDArray[np.float32],
    *,
    batches: tuple[int, ...],
    allowed: float,
    what: str,
    progress: Callable[[str], None],
) -> Parity:
    """Asks about the same rows in every batch size and compares the answers.

    Args:
        ask: batch size -> (n, k).
        expected: float32 (n, k).
        batches: sizes to ask in.
        allowed: largest absolute difference.
        what: the comparison, for messages.
        progress: told what is being done.

    Raises:
        ExportError: with the disagreements of all batch sizes.
    """
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
        raise ExportError(what, got="; ".join(faults), expected=f"at most {allowed:g}")
    return Parity(
        rows=len(expected),
        batches=batches,
        max_abs=worst,
        # A head of zeros gives 0 for every row.
        max_rel=worst / (float(np.abs(expected).max()) or 1.0),
        same_top1=min(same),
    )


def allowed_of(expected: npt.NDArray[np.float32]) -> float:
    """Largest difference allowed from scores: relative to the largest, or to 1 where that is smaller."""
    return MAX_ABS_ERROR * max(1.0, float(np.abs(expected).max()))


def original_scores(
    reference: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]], rows: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """What the original says of rows (n, *dims), asked in chunks: float32 (n, k).

    Raises:
        ExportError: it fails, or gives NaN or infinity.
    """
    try:
        expected = np.concatenate([reference(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)])
    except CommitteeError:
        raise
    # The user's own model may raise anything.
    except Exception as error:
        raise ExportError(
            "the original", got=f"{type(error).__name__}: {first_line(error)}", expected="scores (rows, classes)"
        ) from error
    if not np.isfinite(expected).all():
        bad = int((~np.isfinite(expected)).any(axis=1).sum())
        raise ExportError(
            "the original", got=f"NaN or infinity on {bad} of {len(rows)} rows", expected="finite scores"
        )
    return expected


def session_of(model: bytes | Path, subject: str = "ONNX Runtime") -> Any:
    """An ONNX Runtime session on all cores.

    Raises:
        ExportError: it does not open the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = core_count()
    # Errors come as exceptions; logging them as well would say them twice.
    options.log_severity_level = 4
    try:
        source = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        raise ExportError(
            subject, got=first_line(error), expected="a model of operators that ONNX Runtime has",
            fix="export the model again with standard operators of opset 18",
        ) from error  # fmt: skip


def answers_of(session: Any, rows: npt.NDArray[Any], *, batch: int) -> npt.NDArray[Any]:
    """A session's first output for rows, asked a batch at a time."""
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: rows[start : start + batch]})[0] for start in range(0, len(rows), batch)]
    answers: npt.NDArray[Any] = np.concatenate(parts)
    return answers


def _asked(session: Any, rows: npt.NDArray[Any], batch: int) -> npt.NDArray[np.float32]:
    try:
        return answers_of(session, rows, batch=batch)
    # A batch axis that is free in name only makes some operator fail.
    except Exception as error:
        raise ExportError(f"parity at batch {batch}", got=first_line(error), expected="an answer") from error


def original_of(loaded: LoadedModel, tensor: TensorSpec) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """A loaded model as a function of the member's rows; images go through the graph's processing first.

    Otherwise the one-level differences from the model's own processor, measured apart, would hide the network's.
    """
    network = loaded.reference or _torch_reference(loaded)
    if loaded.processing is None:
        return network
    processed = processor_of(loaded.processing, height_px=tensor.dims[1], width_px=tensor.dims[2])
    return lambda rows: network(processed(rows))


def _torch_reference(loaded: LoadedModel) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    # Optional: an ONNX file needs none.
    import torch

    module = loaded.network
    assert module is not None

    def ask(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            scores: npt.NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(rows))).float().numpy()
        return scores

    return ask
