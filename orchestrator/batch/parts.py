"""A folder of answers in parts, each whole or not there, so that a job that ended early goes on where it was.

    answers/
      _committee.json                what the job is: model, plan, columns, input files; at its end what came of it
      part-000000000000.parquet      answers to stored rows from 0 on, in their order
      _refused-000000000000.jsonl    rows among them without an answer, and why
      part-000000065536.parquet      the next ones

A part stands for as many stored rows as it answers and refuses, so parts may be of any size. Its list of refused
rows is written before it: its own renaming settles both. What reads folders of Parquet passes over an underscore.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.batch.count import BatchCount
from orchestrator.batch.writers import ParquetAnswers, columns_of, kept_as, refused_lines, whole_file
from orchestrator.errors import ChangedModelError, DataError, DiskError, first_few
from orchestrator.files import contents_of, locked_folder, write_file
from orchestrator.predictor.asking import COLUMNS, PROBABILITIES, BlockOutcome
from orchestrator.rows.blocks import RefusedRow, SourceFile
from orchestrator.spec.documents import json_from_text, text_from_json, text_of_file

ABOUT = "_committee.json"
FORMAT = 1
# A part ends after so many rows, or after so many seconds or this share of the time spent so far, whichever is
# longer: a killed job loses no more. The share keeps a job of days to a few hundred parts.
PART_ROWS, PART_S, PART_SHARE = 65_536, 30.0, 0.02
_PART = re.compile(r"part-(\d{12,})\.parquet$")
_REFUSED = re.compile(r"_refused-(\d{12,})\.jsonl$")
# What a killed job leaves behind.
_UNFINISHED = re.compile(r"\.(part-|_refused-|_committee).*\.part$")


class PartsFolder:
    """The parts of one job; made by `opened_parts`.

    Parts are written in a thread of their own: an interrupt may come at any statement of the main thread, and must
    not come between rows and their count, by which the next run finds where to go on.

    Attributes:
        count: of the rows that parts stand for, which are all from the first one on.
        resumed: how many there were when the folder was opened.
    """

    def __init__(
        self,
        folder: Path,
        *,
        count: BatchCount,
        kept_types: Mapping[str, Any],
        classes: int | None,
        part_rows: int,
        confirm: Callable[[], None],
        schema: Any,
        writing: ThreadPoolExecutor,
    ) -> None:
        self.folder, self.count, self._part_rows = folder, count, part_rows
        self._confirm, self._schema, self._writing = confirm, schema, writing
        self._kept_types, self._classes = kept_types, classes
        self.resumed = count.done
        self._open = contextlib.ExitStack()
        self._writer: ParquetAnswers | None = None
        self._held = BatchCount()
        self._refused: list[RefusedRow] = []
        self._started_s = self._since_s = time.monotonic()

    def add(self, outcome: BlockOutcome) -> None:
        """Adds the rows that come next.

        Raises:
            DiskError: they cannot be written.
            DataError: their columns are not those of the parts before.
        """
        self._writing.submit(self._add, outcome).result()

    def _add(self, outcome: BlockOutcome) -> None:
        if self._writer is None:
            path = self.folder / _part_name(self.count.done)
            temporary = self._open.enter_context(whole_file(path))
            self._writer = ParquetAnswers(temporary, name=path, schema=self._schema)
            self._since_s = time.monotonic()
        # All of them first: rows that cannot be written take nothing with them.
        batches = [self._writer.batch_of(columns_of(part)) for part in outcome.answered]
        with self._whole():
            for batch in batches:
                self._writer.add_batch(batch)
            self._refused += outcome.refused
            self._held.add(outcome)
        now_s = time.monotonic()
        longest_s = max(PART_S, PART_SHARE * (now_s - self._started_s))
        if self._held.done >= self._part_rows or now_s - self._since_s >= longest_s:
            self._commit()

    def commit(self) -> None:
        """Puts the part in place that was begun, if one was.

        Where it cannot be, its rows are asked again.

        Raises:
            DiskError: it cannot be written.
            ClientError: its answers cannot be taken for those of the job.
        """
        self._writing.submit(self._commit).result()

    def _commit(self) -> None:
        if not self._held.done:
            self._abandon()
        if self._writer is None:
            return
        with self._whole():
            self._confirm()
            if self._refused:
                write_file(self.folder / _refused_name(self.count.done), refused_lines(self._refused))
            if not self._held.answered:
                self._writer.add(_no_answers(self._refused[0].id, self._kept_types, self._classes))
            with self._open:
                self._writer.close()
        self._schema, self._writer = self._writer.schema, None
        self.count.join(self._held)
        self._held, self._refused = BatchCount(), []

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Puts the part in place that the block began, however it ends: what was answered is kept."""
        try:
            yield
            self.commit()
        except ChangedModelError:
            self._writing.submit(self._abandon).result()
            raise
        except BaseException:
            with contextlib.suppress(DiskError, ChangedModelError):
                self.commit()
            raise

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Throws away the part that was begun where the block fails: it may be without some of its rows."""
        try:
            yield
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Throws away the part that was begun, if one was."""
        self._writer = None
        self._held, self._refused = BatchCount(), []
        # As if the block in which it is written had failed.
        with contextlib.suppress(_Abandoned), self._open:
            raise _Abandoned


class _Abandoned(Exception):  # noqa: N818 - nobody sees it
    pass


def _part_name(first: int) -> str:
    return f"part-{first:012d}.parquet"


def _refused_name(first: int) -> str:
    return f"_refused-{first:012d}.jsonl"


def _no_answers(row_id: int | str, kept_types: Mapping[str, Any], classes: int | None) -> dict[str, Any]:
    """The columns of no rows: readers of the folder take its columns from any one of the parts."""
    # pyarrow is optional.
    import pyarrow as pa

    columns: dict[str, Any] = {"id": np.array([row_id])[:0]}
    columns |= {name: np.zeros(0, column.numpy_dtype) for name, column in COLUMNS.items()}
    if classes is not None:
        columns[PROBABILITIES] = np.zeros((0, classes), np.float32)
    for name, kind in kept_types.items():
        columns[kept_as(name)] = np.zeros(0, kind) if isinstance(kind, np.dtype) else pa.array([], kind)
    return columns


@contextlib.contextmanager
def opened_parts(
    folder: Path,
    about: Mapping[str, Any],
    files: Sequence[SourceFile],
    *,
    kept_types: Mapping[str, Any],
    classes: int | None,
    part_rows: int,
    confirm: Callable[[], None],
) -> Iterator[PartsFolder]:
    """The folder of a job, new or begun earlier; nobody else can write there meanwhile.

    Args:
        folder: made if it is missing.
        about: what must be the same in a job that goes on: JSON values.
        files: where the rows come from; those whose rows are all done must not have changed.
        kept_types: of the columns that are carried along, see `StoredRows`.
        classes: how many probabilities each answer carries; None where it carries none.
        part_rows: in a part, at least.
        confirm: called before a part is put in place, raises ClientError where its answers are not the job's.

    Raises:
        DataError: the folder holds something else, or the results of another job.
        DiskError: it cannot be made or written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(exist_ok=True)
            stack.enter_context(locked_folder(folder))
        except BlockingIOError as error:
            raise DataError(
                f"{folder}", got="a folder that another job writes to", fix="wait for its end"
            ) from error
        except OSError as error:
            raise DataError(f"{folder}", got=f"a place that cannot be written to ({error.strerror})") from error
        known = _known_job(folder)
        count, whole = _counted(folder)
        if known is not None:
            most = _rows_of_same_files(folder, known, about, files, done=count.done)
            count, whole = _counted(folder, most)
        # Only now, when it is known whose they are.
        _remove_loose_ends(folder, whole)
        # Files behind the rows that are done may have been mended, or be new.
        document = {"format": FORMAT, **about, "files": [list(asdict(one).values()) for one in files]}
        write_file(folder / ABOUT, text_from_json(document))
        writing = stack.enter_context(ThreadPoolExecutor(1))
        # Starts the thread: a pool that is interrupted while it does starts a second one later.
        schema = writing.submit(_schema_of, folder).result()
        yield PartsFolder(
            folder,
            count=count,
            kept_types=kept_types,
            classes=classes,
            part_rows=part_rows,
            confirm=confirm,
            schema=schema,
            writing=writing,
        )


def _known_job(folder: Path) -> Mapping[str, Any] | None:
    """What the folder says of its job; None where it is empty.

    Raises DataError where it holds something else.
    """
    path = folder / ABOUT
    if path.is_file():
        subject = f"{path}"
        value = json_from_text(text_of_file(path, subject), subject)
        if isinstance(value, dict) and value.get("format") == FORMAT and isinstance(value.get("files"), list):
            return value
        raise DataError(subject, got="no description of a job of this version", fix="name another folder")
    names = [name for name in contents_of(folder) if not _UNFINISHED.match(name)]
    if names:
        got = f"a folder that holds something else: {first_few(names)}"
        raise DataError(f"{folder}", got=got, expected="an empty folder, or one of the same job")
    return None


def _rows_of_same_files(
    folder: Path, known: Mapping[str, Any], about: Mapping[str, Any], files: Sequence[SourceFile], *, done: int
) -> int:
    """How many of the rows that are done count: those of a file that was mended half-way do not.

    Raises DataError where it was another job, or files whose rows are all done have changed.
    """
    fix = "name another folder, or remove this one"
    for key, value in about.items():
        if known.get(key) != value:
            got = f"results of another job, with {key} {known.get(key)}"
            raise DataError(f"{folder}", got=got, expected=f"{value}", fix=fix)
    first = 0
    for number, stored in enumerate(known["files"]):
        stop = first + int(stored[1])
        now = list(asdict(files[number]).values()) if number < len(files) else None
        if now != stored:
            if done >= stop:
                words = [", ".join(f"{one}" for one in each) for each in (stored, now or ["none"])]
                got = f"results of other data: {words[0]} (name, rows, state)"
                fix += "; a file of which only the time is another is taken once touch -d has put that back"
                raise DataError(f"{folder}", got=got, expected=words[1], fix=fix)
            return min(first, done)
        first = stop
    return done


def _counted(folder: Path, most: int | None = None) -> tuple[BatchCount, set[str]]:
    """What the parts hold that follow one another from the first row on, of `most` rows, and their files."""
    # pyarrow is optional.
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, good = BatchCount(), set[str]()
    while (path := folder / _part_name(count.done)).is_file():
        side = folder / _refused_name(count.done)
        try:
            table = pq.read_table(path, columns=["exit_stage", "cost"])
        except (OSError, pa.ArrowException) as error:
            fix = "remove it: its rows and those behind it are asked again"
            raise DataError(f"{path}", got=f"a part that cannot be read ({error})", fix=fix) from error
        # As bytes: text has more ends of lines than JSON lines have, U+2028 among them.
        lines = side.read_bytes().splitlines() if side.is_file() else []
        if most is not None and count.done + table.num_rows + len(lines) > most:
            break
        good |= {path.name, side.name}
        count.add_columns(table["exit_stage"].to_numpy(), table["cost"].to_numpy())
        count.add_refused(len(lines), json_from_text(lines[0].decode(), f"{side}")["reason"] if lines else "")
        if not table.num_rows and not lines:
            raise DataError(f"{path}", got="a part without rows", fix="remove it")
    return count, good


def _schema_of(folder: Path) -> Any:
    """The columns of the parts; None where there is no part."""
    # pyarrow is optional.
    import pyarrow.parquet as pq

    first = folder / _part_name(0)
    return pq.read_schema(first) if first.is_file() else None


def _remove_loose_ends(folder: Path, whole: Collection[str]) -> None:
    """Removes what a killed job left, and parts behind a gap, whose rows are asked again."""
    for name in contents_of(folder):
        if (_PART.match(name) or _REFUSED.match(name) or _UNFINISHED.match(name)) and name not in whole:
            (folder / name).unlink()
