"""Does an engine say what ONNX Runtime says of its file? Names, then shapes, then values; all faults together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.parity import MIN_ROWS, Parity, agreed, session_of
from export.rows import varied_rows
from export.tensorrt.run import Engine
from orchestrator.errors import ExportError
from orchestrator.spec import Manifest, TensorSpec
from orchestrator.spec.inputs import INPUT_DTYPES

# Largest difference allowed, as a share of the largest output (of 1 where outputs are smaller). fp32: both sum in
# float32, in another order. fp16, TF32: 10 bits of mantissa, errors add up over layers. int8: both round to the
# same levels, but a value at the edge of one may fall on either side.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "int8": 1e-1}
_CHUNK = 16


def engine_parity(
    engine: Engine,
    path: Path,
    manifest: Manifest,
    *,
    batches: tuple[int, ...],
    tolerance: float,
    progress: Callable[[str], None],
) -> Parity:
    """Compares an engine with ONNX Runtime on the CPU.

    Args:
        engine: to be asked.
        path: of the ONNX file it was built from.
        manifest: of the ONNX member.
        batches: sizes to ask in; rows are repeated to fill the last batch.
        tolerance: see TOLERANCE.
        progress: told what is being done.

    Raises:
        ExportError: with every disagreement.
    """
    faults = _faults_of_ports("input", engine.inputs, manifest.input)
    faults += _faults_of_ports("output", engine.outputs, manifest.output)
    what = f"parity of the engine of {manifest.name}"
    if faults:
        raise ExportError(what, got="; ".join(faults), expected="the tensors of the ONNX member")
    rows = varied_rows(manifest.input, MIN_ROWS)
    progress("asking ONNX Runtime")
    expected = _reference(path, manifest, rows)
    scale = max(1.0, float(np.abs(expected).max()))
    return agreed(
        lambda batch: _asked(engine, manifest, rows, batch),
        expected,
        batches=batches,
        allowed=tolerance * scale,
        what=what,
        progress=lambda text: progress(f"comparing with ONNX Runtime, {text}"),
    )


def _faults_of_ports(side: str, ports: dict[str, Any], spec: TensorSpec) -> list[str]:
    if set(ports) != {spec.name}:
        return [f"{side}s {', '.join(ports) or 'none'} for {spec.name}"]
    port = ports[spec.name]
    faults = []
    if port.dims != (-1, *spec.dims):
        faults.append(f"{side} {spec.name}: dims {list(port.dims)} for {[-1, *spec.dims]}")
    if port.dtype != INPUT_DTYPES.get(spec.dtype, spec.dtype):
        faults.append(f"{side} {spec.name}: {port.dtype} for {spec.dtype}")
    return faults


def _reference(path: Path, manifest: Manifest, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    session = session_of(path, f"ONNX file of {manifest.name}")
    parts: list[npt.NDArray[Any]] = [
        session.run([manifest.output.name], {manifest.input.name: rows[start : start + _CHUNK]})[0]
        for start in range(0, len(rows), _CHUNK)
    ]
    return np.asarray(np.concatenate(parts), np.float32)


def _asked(engine: Engine, manifest: Manifest, rows: npt.NDArray[Any], batch: int) -> npt.NDArray[np.float32]:
    """All rows, in batches of exactly this size; a batch larger than all of them repeats them."""
    count = -(-len(rows) // batch) * batch
    filled = rows[np.arange(count) % len(rows)]
    parts = [
        engine.ask(
            filled[start : start + batch], input_name=manifest.input.name, output_name=manifest.output.name
        ).copy()
        for start in range(0, count, batch)
    ]
    return np.asarray(np.concatenate(parts)[: len(rows)], np.float32)
