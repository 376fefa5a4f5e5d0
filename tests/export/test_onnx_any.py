"""Whatever ONNX Runtime runs is exported with equal outputs or refused in one line."""

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from export.images import Processing
from export.member import export_committee, member_exports
from export.parity import processor_of
from export.sources import ExportOptions
from orchestrator.errors import CommitteeError
from orchestrator.spec import manifest_from_path
from tests.export.onnx_graphs import CLASSES, SIDE, Foreign, foreign
from tests.export.small_networks import answers

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def original_answers(file: Path, output: str, rows: np.ndarray) -> np.ndarray:
    """Scores of the file as it came, maps and trailing axes made a table."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = session.run([output], {session.get_inputs()[0].name: rows})[0]
    if isinstance(given, list):
        return np.array([[row[label] for label in range(CLASSES)] for row in given], np.float32)
    return given.reshape(len(rows), CLASSES)


def runs(file: Path) -> bool:
    """Whether ONNX Runtime opens the file as it came."""
    try:
        onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    # Its exceptions share no base of their own.
    except Exception:
        return False
    return True


def exported(folder: Path, file: Path, asked: ExportOptions) -> None:
    """What `python -m export member onnx:FILE` does, on fewer rows."""
    plans = [dataclasses.replace(plan, parity_rows=8) for plan in member_exports([f"onnx:{file}"], asked)]
    export_committee(folder, plans, force=False, progress=lambda _: None)


def asked_of(case: Foreign, data: Any) -> ExportOptions:
    processed = bool(case.picture) and data.draw(st.booleans())
    named = case.several or data.draw(st.booleans())
    return ExportOptions(
        mean=MEAN if processed else None,
        std=STD if processed else None,
        resolution_px=SIDE if processed or case.free else None,
        output_name=case.output if named else None,
    )


@settings(deadline=None)
@given(case=foreign(), data=st.data())
def test_a_file_is_exported_with_equal_outputs_or_refused_in_one_line(case: Foreign, data: Any) -> None:
    asked = asked_of(case, data)
    note(f"{asked}\n{onnx.printer.to_text(case.model)}")
    with TemporaryDirectory() as name:
        folder, file = Path(name), Path(name) / "m.onnx"
        file.write_bytes(case.model.SerializeToString())
        refusal = None
        try:
            exported(folder / "r", file, asked)
        except CommitteeError as error:
            refusal = str(error)
        if refusal is not None:
            event("refused")
            assert "\n" not in refusal
            assert not (case.easy and runs(file)), refusal
            assert not (folder / "r/m").exists()
            return
        event("exported")
        manifest = manifest_from_path(folder / "r/m/manifest.json")
        member = folder / "r/m" / manifest.file
        rows = np.random.default_rng(0).normal(size=(5, *manifest.input.dims)).astype(np.float32)
        file_rows = rows
        if asked.mean is not None:
            rows = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE)).astype(np.uint8)
            processing = Processing(resize_px=(SIDE, SIDE), mean=MEAN, std=STD)
            file_rows = processor_of(processing, height_px=SIDE, width_px=SIDE)(rows)
            file_rows = file_rows.transpose(0, 2, 3, 1) if case.picture == "NHWC" else file_rows
        expected = original_answers(file, case.output, np.ascontiguousarray(file_rows))
        np.testing.assert_allclose(answers(member, rows), expected, atol=1e-4, rtol=1e-4)
