"""One batch job from a file of rows to a file of answers.

Requests in flight are bounded, results come in order, and rows at fault are found: a request that is refused is
halved until these stand alone, so that the others are answered. A failure that is not the caller's, such as a
member's, is halved in the same way while the server says that it is ready. It ends the job when no row of the
request gets an answer: then the rows were not the reason.
The files, answers as .parquet or .npz and refused rows as JSON lines, appear whole or not at all.
"""

import asyncio
import contextlib
import dataclasses
import importlib
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, DataError, RefusedError, TimeLimitError, UnknownModelError, repeated
from orchestrator.files import replaced_file
from orchestrator.progress import Advance, Progress, no_progress
from orchestrator.repository.index import picture_reader
from orchestrator.rows.blocks import ColumnNames, RefusedRow, RowBlock, StoredRows, without_odd_texts
from orchestrator.rows.npz import archive_writer
from orchestrator.rows.opening import stored_rows
from orchestrator.spec.answer import ANSWER_COLUMNS

Rows = npt.NDArray[Any]
# Finished blocks that wait for an earlier, slower one; more would only cost memory.
AHEAD = 4
# Rows gathered before a row group is written: large enough to compress, small enough to hold.
ROW_GROUP = 65_536
COLUMNS = {name: column for name, column in ANSWER_COLUMNS.items() if not column.is_vector}
# Arrow types that numpy has without Python objects.
_IN_ARRAYS = re.compile(r"(u?int\d+|halffloat|float|double|bool|(large_)?string|timestamp\[.*|date\d+.*)$")


def kept_as(name: str) -> str:
    """The name of a carried column among the answers; names that answers have themselves get a prefix."""
    return f"input_{name}" if name in ("id", *COLUMNS) else name


def check_kept(rows: StoredRows, output: Path) -> None:
    """Refuses carried columns that the output cannot hold, before any work.

    Raises DataError for two of one name, or a type that an archive of arrays has no room for.
    """
    names = [kept_as(name) for name in rows.kept_types]
    twice = repeated(names)
    if twice:
        raise DataError(f"{output}", got=f"two carried columns that would be {twice[0]}", expected="one of them")
    for name, kind in rows.kept_types.items():
        if output.suffix == ".npz" and not (isinstance(kind, np.dtype) or _IN_ARRAYS.match(str(kind))):
            got = f"a carried column {name} of type {kind}"
            raise DataError(f"{output}", got=got, expected="numbers, text or dates", fix="write .parquet")


def _answer_columns(block: RowBlock, answers: ServedAnswers, good: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The columns (n,) of a file of answers for the good rows of a block: ids, answers and what is carried."""
    if not good.all():
        block = block.picked(np.flatnonzero(good))
    said = {name: getattr(answers, name)[good] for name in COLUMNS}
    return {"id": block.ids, **said, **{kept_as(name): column for name, column in block.kept.items()}}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes it when the block ends well, and vanishes when it does not.

    A block that unlinks it leaves no file. Raises DataError where the folder cannot be written to,
    DiskError where the disk is full.
    """
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replaced_file(path))
        except OSError as error:
            raise DataError(f"{path}", got=f"a place that cannot be written to ({error.strerror})") from error
        yield temporary


class _NpzAnswers:
    """Keeps all answers until the end: an archive of arrays has no room for more rows later."""

    def __init__(self, path: Path, *, name: Path) -> None:
        self._path, self._name = path, name
        self._parts: dict[str, list[Rows]] = {}

    def add(self, columns: Mapping[str, Any]) -> None:
        for name, column in columns.items():
            values = column if isinstance(column, np.ndarray) else _numpy_kept(column)
            self._parts.setdefault(name, []).append(values)

    def close(self) -> None:
        with archive_writer(self._path, name=self._name) as writer:
            for name, parts in self._parts.items():
                writer.add(name, np.concatenate(parts))


def _numpy_kept(column: Any) -> Rows:
    """An Arrow column as a numpy array, in which a missing value is NaN, NaT or empty text."""
    if str(column.type) in ("string", "large_string"):
        return np.array(column.fill_null("").to_pylist(), np.str_)
    values: Rows = column.to_numpy(zero_copy_only=False)
    # Booleans with nulls between them.
    return values.astype(np.float64) if values.dtype == np.object_ else values


class _ParquetAnswers:
    """Writes a row group whenever enough answers have come."""

    def __init__(self, path: Path, *, name: Path) -> None:
        del name
        # pyarrow is optional.
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._pq, self._path = pa, pq, path
        self._types = {name: pa.from_numpy_dtype(column.numpy_dtype) for name, column in COLUMNS.items()}
        self._writer: Any = None
        self._parts: list[Any] = []
        self._rows = 0

    def add(self, columns: Mapping[str, Any]) -> None:
        arrays = {name: self._pa.array(column, self._types.get(name)) for name, column in columns.items()}
        self._parts.append(self._pa.RecordBatch.from_pydict(arrays))
        self._rows += len(columns["id"])
        if self._rows >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if self._parts:
            table = self._pa.Table.from_batches(self._parts)
            # Only now are the types of carried columns known.
            self._writer = self._writer or self._pq.ParquetWriter(self._path, table.schema)
            self._writer.write_table(table)
        self._parts, self._rows = [], 0


def refused_path(output: Path) -> Path:
    """Where the refused rows of a job go, as JSON lines: out.parquet -> out.refused.jsonl."""
    return output.with_suffix(".refused.jsonl")


@dataclass
class BlockOutcome:
    """Answered and refused rows of one block, which stands for `size` stored rows.

    Args:
        answered: columns of the rows with answers, in order, see `_answer_columns`.
        faults: failures so far that are not the caller's.
    """

    size: int
    answered: list[dict[str, Any]] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    faults: int = 0

    def hopeless(self) -> bool:
        """Whether every request so far failed although halving has reached single rows."""
        return not self.answered and self.faults > self.size.bit_length() + 2


async def block_outcomes(
    client: AsyncGrpcClient, model: str, blocks: Iterator[RowBlock], *, in_flight: int, policy: Policy | None
) -> AsyncGenerator[BlockOutcome, None]:
    """Asks a model about blocks, so many at once, and gives their outcomes in the same order.

    Blocks are read one by one, in a thread, as requests end. A model without a policy decides by itself.

    Raises:
        ClientError: the server is gone, too slow, or fails whatever the rows.
        DataError: a block cannot be read.
    """
    gate = asyncio.Semaphore(in_flight)

    async def gated(block: RowBlock) -> BlockOutcome:
        async with gate:
            return await _outcome_of(asker, block)

    asker = _Asker(client, model, policy)
    waiting: deque[asyncio.Task[BlockOutcome]] = deque()
    # Reading and decoding happen in a thread, so that requests under way are not held up by them.
    following: RowBlock | None = await asyncio.to_thread(next, blocks, None)
    try:
        while following is not None or waiting:
            while following is not None and len(waiting) < AHEAD * in_flight:
                waiting.append(asyncio.create_task(gated(following)))
                following = await asyncio.to_thread(next, blocks, None)
                if waiting[0].done():
                    break
            yield await waiting[0]
            waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


class _Asker(NamedTuple):
    client: AsyncGrpcClient
    model: str
    policy: Policy | None


async def _outcome_of(asker: _Asker, block: RowBlock) -> BlockOutcome:
    """Asks about one block, in halves where it is refused."""
    outcome = BlockOutcome(size=block.size, refused=list(block.refused))
    if not len(block.ids):
        return outcome
    first = await _ask(asker, block, outcome=outcome)
    if first is not None and not isinstance(first, RefusedError) and not outcome.answered:
        raise first
    return outcome


async def _ask(asker: _Asker, block: RowBlock, *, outcome: BlockOutcome) -> ClientError | None:
    """Adds the rows to the outcome; returns the error of asking about all of them at once, if that failed."""
    try:
        answers = await asker.client.infer(asker.model, block.rows, policy=asker.policy)
    except (UnknownModelError, TimeLimitError):
        raise
    except ClientError as error:
        if not isinstance(error, RefusedError):
            outcome.faults += 1
            if outcome.hopeless() or not await asker.client.ready(asker.model):
                raise
        count = len(block.ids)
        if count == 1:
            outcome.refused.append(RefusedRow(id=block.ids[0].item(), reason=str(error.got or error)))
        else:
            for half in np.split(np.arange(count), [count // 2]):
                await _ask(asker, block.picked(half), outcome=outcome)
        return error
    # Rows for which a member or a native ensemble had no finite output are refused.
    good = answers.label >= 0
    reason = "the model gave no finite output for it"
    outcome.refused += [RefusedRow(id=row_id, reason=reason) for row_id in block.ids[~good].tolist()]
    if good.any():
        # The rows themselves are let go, since finished blocks wait for slower ones.
        outcome.answered.append(_answer_columns(block, answers, good))
    return None


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Which rows go through which served model, and where the answers go.

    Args:
        in_flight: requests under way at once.
        request_rows: rows per request.
        columns: which arrays or columns hold what, and which go into the answers.
        repository: where cascade.json says how pictures become rows.
        timeout_s: longest wait for one answer.

    Raises:
        DataError: a place that the answers cannot be written to.
    """

    model: str
    source: Path
    output: Path
    server: Endpoint
    in_flight: int
    request_rows: int
    columns: ColumnNames
    repository: Path
    timeout_s: float

    def __post_init__(self) -> None:
        source, output = self.source, self.output
        if output.suffix not in (".parquet", ".npz"):
            expected = "a name ending in .parquet or .npz"
            raise DataError(f"{output}", got="an unknown kind of file", expected=expected)
        if not output.parent.is_dir():
            raise DataError(f"{output}", got="no such folder", fix=f"make {output.parent} first")
        if output.is_dir() or output.resolve() == source.resolve():
            raise DataError(f"{output}", got="a folder or the input itself", expected="another file")
        if source.is_dir() and source.resolve() in output.resolve().parents:
            raise DataError(f"{output}", got="a file in the folder that is read", expected="another folder")
        if ".parquet" in (output.suffix, source.suffix):
            # It is optional, and its absence is better said before any work.
            importlib.import_module("pyarrow")


@dataclass
class BatchCount:
    """How far a job has come: rows of the file, with an answer, and without.

    Args:
        first_reason: why the first refused row has no answer.
        note: what the user should know about how the model's scores were read.
        notes: the same about the rows.
    """

    total: int = 0
    answered: int = 0
    refused: int = 0
    first_reason: str = ""
    note: str | None = None
    notes: tuple[str, ...] = ()


async def run_batch(job: BatchJob, *, progress: Progress = no_progress) -> BatchCount:
    """Answers all rows; the output appears when the last one is answered.

    Rows without an answer go into a file beside the output, see `refused_path`.

    Raises:
        DataError: the rows cannot be read, or the answers cannot be written.
        InputError: the rows do not fit the model.
        ClientError: the server is gone, too slow, or fails whatever the rows; then nothing is written.
    """
    async with AsyncGrpcClient(job.server, timeout_s=job.timeout_s, retries=4) as client:
        info = await client.metadata(job.model)
        reader = picture_reader(job.repository, info)
        rows = stored_rows(job.source, info, columns=job.columns, read_picture=reader)
        check_kept(rows, job.output)
        count = BatchCount(total=rows.total, notes=rows.notes)
        # Judged by the plan's own thresholds: a job must not get other answers for the load that it makes itself.
        policy = Policy(gear=0) if info.has_stages else None
        try:
            read = rows.blocks(job.request_rows)
            blocks = (without_odd_texts(one, info.inputs, only=info.inputs[0].name) for one in read)
            outcomes = block_outcomes(client, job.model, blocks, in_flight=job.in_flight, policy=policy)
            with progress(f"asking {job.model}", rows.total) as advance:
                await _write(job, outcomes, count=count, advance=advance)
        except ClientError as error:
            done = count.answered + count.refused
            what = f"batch stopped after {done} of {count.total} rows, nothing written: {error.what}"
            raise type(error)(what, got=error.got, fix=error.fix) from error
        count.note = client.kinds.note(info)
    return count


async def _write(
    job: BatchJob, outcomes: AsyncGenerator[BlockOutcome, None], *, count: BatchCount, advance: Advance
) -> None:
    side = refused_path(job.output)
    with whole_file(side) as side_part, whole_file(job.output) as output_part:
        answers = (_NpzAnswers if job.output.suffix == ".npz" else _ParquetAnswers)(output_part, name=job.output)
        with side_part.open("w", encoding="utf-8") as refused:
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    for columns in outcome.answered:
                        answers.add(columns)
                        count.answered += len(columns["id"])
                    for one in outcome.refused:
                        refused.write(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n")
                        count.refused += 1
                        count.first_reason = count.first_reason or one.reason
                    advance(outcome.size)
        answers.close()
        if not count.answered:
            output_part.unlink()
        if not count.refused:
            # An older job's list would be taken for this one's.
            side_part.unlink()
            side.unlink(missing_ok=True)
