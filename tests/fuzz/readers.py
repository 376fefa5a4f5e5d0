"""What reads files and parameters from outside: functions of bytes that raise nothing but errors of one line."""

import contextlib
import dataclasses
import io
import json
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from orchestrator.decision import policy_from_parameters
from orchestrator.decision.policy import PARAMETERS
from orchestrator.errors import CommitteeError
from orchestrator.planner.intervals import order_hint
from orchestrator.planner.records import random_members, records_file_from_path, records_from_path
from orchestrator.planner.replay import evaluate
from orchestrator.planner.size import Demand, member_stage, sized, stages_of
from orchestrator.rows.blocks import ColumnNames
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.named import named_rows
from orchestrator.rows.opening import row_source, stored_rows
from orchestrator.rows.pictures import reader_for
from orchestrator.spec import (
    CascadeSpec,
    InputSpec,
    Member,
    Preprocess,
    Stage,
    cascade_from_path,
    json_from_cascade,
    manifest_from_path,
)
from orchestrator.spec.cascade import Fit
from orchestrator.spec.manifest import json_from_manifest
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from orchestrator.spec.timing import json_from_timing, timing_from_path
from tests.fuzz.documents import VALUES, archive, array_file, changed_bytes, changed_json, timings

CORPUS = Path(__file__).with_name("corpus")
# A reader that says more has most likely printed the document.
MOST_LETTERS = 4000
_NOW_US = 1_700_000_000_000_000
_MODEL = ModelInfo(
    name="digits",
    platform="onnxruntime_onnx",
    versions=("1",),
    max_batch_size=8,
    inputs=(TensorInfo(name="image", dtype="FP32", shape=(-1, 1, 8, 8)),),
    outputs=(TensorInfo(name="logits", dtype="FP32", shape=(-1, 3)),),
)


class NotOneLineError(AssertionError):
    """An error of ours that is no single line of a bearable length."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One way in."""

    name: str
    read: Callable[[bytes], None]
    documents: Callable[[list[bytes]], st.SearchStrategy[bytes]]  # made of the corpus

    notes: Callable[[], str] = str  # what else a run has seen

    @property
    def corpus(self) -> list[bytes]:
        """The documents kept, good ones and such as were once read wrongly."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]

    def look(self, data: bytes) -> bool:
        """Reads a document; whether it was taken. Raises what is no error for a user's eyes."""
        try:
            self.read(data)
        except CommitteeError as error:
            text = str(error)
            if len(text) > MOST_LETTERS or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
                raise NotOneLineError(ascii(text[:500])) from error
            return False
        return True


@contextlib.contextmanager
def _file(data: bytes, ending: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="committee-fuzz-") as folder:
        path = Path(folder) / f"document{ending}"
        path.write_bytes(data)
        yield path


def _timing(data: bytes) -> None:
    """As `plan` and `size` read it; what was read can be sized."""
    _is_read_again(data, timing_from_path, json_from_timing)
    with _file(data, ".json") as path:
        timing = timing_from_path(path)
    demand = Demand(rate=500.0, p99_ms=50.0, cores=timing.machine.cores, price=1.0)
    plan = _fitted_plan()
    for name, stages in (("plan", stages_of(plan, timing)), ("a", member_stage("a", plan, timing))):
        found = sized(name, stages, demand, one_at_once=name == "plan")
        assert 0 < found.p50_ms <= found.p99_ms <= 50


def _is_read_again(data: bytes, read: Callable[[Path], Any], write: Callable[[Any], str]) -> None:
    """What was taken can be written again, and says the same."""
    with _file(data, ".json") as path:
        again = write(read(path))
    with _file(again.encode(), ".json") as path:
        assert write(read(path)) == again


def _plan(data: bytes) -> None:
    _is_read_again(data, cascade_from_path, json_from_cascade)


def _manifest(data: bytes) -> None:
    _is_read_again(data, manifest_from_path, json_from_manifest)


def _records(data: bytes) -> None:
    with _file(data, ".npz") as path:
        first: CommitteeError | None = None
        try:
            records_file_from_path(path)
        except CommitteeError as error:
            first = error
        records = records_from_path(path)
    assert first is None, f"one reader takes it, the other says {first}"
    # What asks `meta` for more than the reader itself.
    random_members(records)
    order_hint(records.meta.get("labels_by"))
    evaluate(_plan_of("a", "b"), records)


def _plan_of(*names: str) -> CascadeSpec:
    members = [Member(name=name, output="logits", cost=1.0) for name in names]
    stages = [Stage(members=(one,), threshold=0.5 if one is not members[-1] else None) for one in members]
    tensor = InputSpec(name="image", dtype="FP32", dims=(1, 8, 8))
    return CascadeSpec(name="plan", inputs=(tensor,), classes=3, combine="last", stages=tuple(stages))


def _fitted_plan() -> CascadeSpec:
    fit = Fit(
        data_sha256="",
        rows=10,
        split="search",
        target="",
        accuracy=None,
        accuracy_ci95=None,
        exit_share=(0.7, 0.3),
        mean_cost=1.0,
    )
    return dataclasses.replace(_plan_of("a", "b"), fit=fit)


# First byte of a document of rows -> the ending of its file.
ENDINGS = {b"N": ".npy", b"Z": ".npz", b"P": ".parquet", b"I": ".png", b"J": ".jpg"}


def _rows(data: bytes) -> None:
    """As `batch`, `record` and `infer` open a file; the first letter says which kind it is."""
    ending, inside = ENDINGS.get(data[:1], ".npz"), data[1:]
    errors: list[CommitteeError] = []
    with _file(inside, ending) as path:
        for ask in (_batched, _recorded, _named):
            try:
                ask(path)
            except CommitteeError as error:
                errors.append(error)
    if errors:
        raise max(errors, key=lambda error: len(str(error)))


def _batched(path: Path) -> None:
    if path.suffix in (".npy", ".npz", ".parquet"):
        for _ in stored_rows(f"{path}", _MODEL, columns=_ANY, read_picture=_read_picture).blocks(4):
            pass


def _recorded(path: Path) -> None:
    if path.suffix in (".npy", ".npz", ".parquet"):
        classes = MemberClasses(count=3, names=("a", "b", "c"))
        source = row_source(str(path), _MODEL, classes=classes, read_picture=_read_picture)
        for piece in source.pieces(np.arange(len(source.ids)), 0, 4):
            piece.load()


def _named(path: Path) -> None:
    if path.suffix in (".npy", ".png", ".jpg"):
        named_rows([str(path)], _MODEL, read_picture=_read_picture)


_TEXT_MODEL = dataclasses.replace(
    _MODEL,
    inputs=(
        TensorInfo(name="text", dtype="BYTES", shape=(-1, 1)),
        TensorInfo(name="ids", dtype="INT64", shape=(-1, -1)),
        TensorInfo(name="x", dtype="FP32", shape=(-1, 1)),
    ),
)
# First byte of a document of several tensors -> the ending of its file.
TABLES = {b"C": ".csv", b"T": ".tsv", b"L": ".jsonl", b"Z": ".npz"}


def _tables(data: bytes) -> None:
    """Rows of text, numbers and lengths that vary, as `batch` and `record` read them, and text of a CSV alone."""
    ending = TABLES.get(data[:1], ".jsonl")
    classes = MemberClasses(count=3)
    alone = dataclasses.replace(_TEXT_MODEL, inputs=_TEXT_MODEL.inputs[:1])
    with _file(data[1:], ending) as path:
        for model in (_TEXT_MODEL, alone) if ending in (".csv", ".tsv") else (_TEXT_MODEL,):
            with contextlib.suppress(CommitteeError):
                for block in stored_rows(f"{path}", model, columns=_ANY, read_picture=_read_picture).blocks(4):
                    assert all("\n" not in one.reason for one in block.refused)
        source = row_source(str(path), alone, classes=classes, read_picture=_read_picture)
        for piece in source.pieces(np.arange(len(source.ids)), 0, 4):
            piece.load()


def _parameters(data: bytes) -> None:
    """Parameters as Triton hands them to the cascade: a JSON object."""
    try:
        parameters = json.loads(data)
    except ValueError:
        return
    if isinstance(parameters, dict):
        policy_from_parameters(parameters, 3, 2, now_us=_NOW_US)


_ANY = ColumnNames()
_read_picture = reader_for(
    _MODEL, lambda: Preprocess(mode="L", height_px=8, width_px=8, value_min=0, value_max=16)
)
_RECORDED = ("ids", "labels", "outputs/a", "outputs/b", "cost/a", "cost/b", "meta", "outputs/", "odd")
_SEVERAL = ("text", "ids.values", "ids.offsets", "x", "id", "label", "odd")
_STORED = ("images", "ids", "id", "labels", "label", "odd")


def _json_documents(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    return changed_json(corpus) | changed_json(corpus) | changed_bytes(corpus)


def _meta_changed(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    """Good records whose `meta` is another one."""
    facts = {"sha256": "0", "output_kind": "logits", "random_weights": False}
    good = json.dumps({"members": {"a": facts}, "labels_by": "name"}).encode()
    return changed_json([good]).map(records_with_meta)


def records_with_meta(meta: bytes) -> bytes:
    """Three rows of two members, and that text as `meta`."""
    buffer = io.BytesIO()
    scores = np.eye(3, dtype=np.float32)
    arrays = {"ids": np.arange(3), "labels": np.arange(3), "meta": np.array(meta.decode())}
    arrays |= {f"outputs/{name}": scores for name in "ab"} | {f"cost/{name}": np.float64(1) for name in "ab"}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _row_documents(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    archives, arrays = archive(_STORED).map(b"Z".__add__), array_file().map(b"N".__add__)
    return changed_bytes(corpus) | archives | arrays


_PARAMETERS = st.dictionaries(st.sampled_from(sorted(PARAMETERS)) | st.text(max_size=8), VALUES, max_size=4)
READERS = {
    reader.name: reader
    for reader in (
        Reader(name="plan", read=_plan, documents=_json_documents),
        Reader(name="manifest", read=_manifest, documents=_json_documents),
        Reader(name="timing", read=_timing, documents=lambda corpus: _json_documents(corpus) | timings()),
        Reader(
            name="records",
            read=_records,
            documents=lambda corpus: _meta_changed(corpus) | changed_bytes(corpus) | archive(_RECORDED),
        ),
        Reader(name="rows", read=_rows, documents=_row_documents),
        Reader(
            name="tables",
            read=_tables,
            documents=lambda corpus: changed_bytes(corpus) | archive(_SEVERAL).map(b"Z".__add__),
        ),
        Reader(
            name="parameters",
            read=_parameters,
            documents=lambda corpus: (
                changed_json(corpus) | _PARAMETERS.map(lambda value: json.dumps(value).encode())
            ),
        ),
    )
}
