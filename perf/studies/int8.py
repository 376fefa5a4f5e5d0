"""`python -m perf int8`: accuracy of the digits members in int8, with seven and eight bits for weights."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx
import typer

from export.commands.console import END, write_block
from export.precision.convert import int8_from
from export.runtimes import Question, answers_in_own_process, installed_version
from orchestrator.errors import DataError
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.rows.digits import digits_split
from perf.harness.machine import cpu_name
from perf.harness.report import markdown_table

BEGIN = "<!-- begin: python -m perf int8 -->"
MEMBERS = ("digits_small", "digits_medium", "digits_large")
CALIBRATION_ROWS = 200
# QEMU's "max" is all that the emulator has: AVX2, and no instructions for dot products of int8.
EMULATED = ("-cpu", "max")
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Int8Row:
    """One form of one member, asked about the test digits.

    Args:
        form: "fp32", "int8, 7-bit weights" or "int8, 8-bit weights".
        processor: "this one", or "emulated, without VNNI".
        rows, right: number of test rows, and of those it gets right.
        accuracy_ci95: 95 % interval of its accuracy (Clopper-Pearson).
        mean_abs: mean absolute difference of its logits from those of fp32 on the same processor.
    """

    member: str
    form: str
    processor: str
    rows: int
    right: int
    accuracy_ci95: tuple[float, float]
    mean_abs: float


def int8(
    repository: Annotated[Path, typer.Option(help="Holds the digits members.")] = Path("model_repository"),
    docs: Annotated[Path, typer.Option(help="Document that gets the table.")] = Path("docs/export.md"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, and write nothing.")] = False,
) -> None:
    """Quantise the digits members with seven and eight bits for weights, and write what they get right into docs.

    Ranges are taken from 200 training digits, accuracies are of the test digits. Where qemu-x86_64 is installed
    each form also runs on an emulated processor without VNNI.

    Example: python -m perf int8 --json
    """
    rows = rows_of(repository)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    write_block(docs, BEGIN, block_from_rows(rows))
    typer.echo(f"Written: {docs}")


def rows_of(repository: Path, members: Sequence[str] = MEMBERS) -> list[Int8Row]:
    """Quantises members and asks every form of them on every processor there is.

    Raises:
        DataError: a member is missing, or one of its forms does not answer.
    """
    calibrate = digits_split("train").images[:CALIBRATION_ROWS].astype(np.float32)
    test = digits_split("test")
    images = test.images.astype(np.float32)
    processors: dict[str, list[str]] = {"this one": []}
    if (emulator := shutil.which("qemu-x86_64")) is not None:
        processors["emulated, without VNNI"] = [emulator, *EMULATED]
    with tempfile.TemporaryDirectory(prefix="committee-int8-") as folder:
        paths = {name: _forms(repository, name, calibrate, Path(folder)) for name in members}
        wanted = [path for forms in paths.values() for path in forms.values()]
        questions = [Question(model=path, rows=images, batches={_BATCH: len(images)}) for path in wanted]
        found = []
        for processor, prefix in processors.items():
            said = map(_scores, answers_in_own_process(questions, prefix=prefix))
            by_path = dict(zip(wanted, said, strict=True))
            for name, forms in paths.items():
                scores = {form: by_path[path] for form, path in forms.items()}
                found += _rows(name, processor, scores, test.labels)
    return found


def _forms(repository: Path, name: str, calibrate: npt.NDArray[Any], folder: Path) -> dict[str, Path]:
    source = repository / name / "1/model.onnx"
    if not source.is_file():
        raise DataError(f"member {name}", got=f"no {source}", fix="make it with `make members`")
    model = onnx.load(str(source))
    paths = {"fp32": source}
    for bits in (7, 8):
        path = folder / f"{name}_{bits}.onnx"
        path.write_bytes(int8_from(model, calibrate, weight_bits=bits).SerializeToString())
        paths[f"int8, {bits}-bit weights"] = path
    return paths


def _scores(said: Mapping[int, npt.NDArray[Any]] | str) -> npt.NDArray[Any]:
    if isinstance(said, str):
        raise DataError("a quantised member", got=said, expected="scores")
    return said[_BATCH]


def _rows(
    name: str, processor: str, scores: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[np.int64]
) -> list[Int8Row]:
    found = []
    for form, said in scores.items():
        right = int((said.argmax(axis=1) == labels).sum())
        found.append(
            Int8Row(
                member=name,
                form=form,
                processor=processor,
                rows=len(labels),
                right=right,
                accuracy_ci95=clopper_pearson(right, len(labels)),
                mean_abs=float(np.abs(said - scores["fp32"]).mean()),
            )
        )
    return found


def block_from_rows(rows: Sequence[Int8Row]) -> str:
    """The table as Markdown, marks included."""
    head = ["member", "form", *dict.fromkeys(f"accuracy, processor {row.processor}" for row in rows)]
    lines: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        low, high = row.accuracy_ci95
        said = f"{row.right / row.rows:.4f} ({low:.3f}-{high:.3f}), logits off by {row.mean_abs:.3f}"
        lines.setdefault((row.member, row.form), []).append(said)
    title = f"{rows[0].rows} test digits, ONNX Runtime {installed_version()}, {cpu_name()}:"
    table = markdown_table(head, [[*about, *cells] for about, cells in lines.items()])
    return "\n".join([BEGIN, title, "", *table, END])
