"""One batch job from stored rows to answers: one file, or a folder of parts in which it goes on where it stopped.

A file, .parquet or .npz, and its refused rows as JSON lines appear whole or not at all; `parts` describes folders.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.batch.count import BatchCount
from orchestrator.batch.parts import PART_ROWS, opened_parts
from orchestrator.batch.writers import (
    NpzAnswers,
    ParquetAnswers,
    check_kept,
    columns_of,
    refused_lines,
    require_parquet,
    whole_file,
)
from orchestrator.errors import ClientError, DataError
from orchestrator.files import remove_unfinished
from orchestrator.predictor.asking import BlockOutcome
from orchestrator.predictor.predictor import Predictor
from orchestrator.progress import Advance, Progress, no_progress, rows_kept, saying_what_is_kept
from orchestrator.repository.index import cascade_in, picture_reader, trained_columns
from orchestrator.rows.blocks import ColumnNames, RowBlock, StoredRows, gathered
from orchestrator.rows.opening import stored_rows
from orchestrator.rows.remote import local_copy
from orchestrator.spec.served_model import class_count

FILES = (".parquet", ".npz")
# What names a kind of file, unlike the end of run.2024-01-01 or of v1.2.
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def refused_path(output: Path) -> Path:
    """Where the refused rows of a job go, as JSON lines: out.npz -> out.npz.refused.jsonl; a folder itself."""
    return output.with_name(f"{output.name}.refused.jsonl") if output.suffix in FILES else output


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Which rows go through which model, and where the answers go.

    Args:
        source: a file, a folder, a glob, or a URL of one that fsspec reads.
        output: a file that ends in .parquet or .npz, else a folder of parts.
        columns: which arrays or columns hold what, and which go into the answers.
        repository: where cascade.json says how pictures become rows.
        part_rows: in each part of a folder, at least.

    Raises:
        DataError: a place that the answers cannot be written to.
    """

    predictor: Predictor
    source: str
    output: Path
    columns: ColumnNames
    repository: Path
    part_rows: int = PART_ROWS

    @property
    def into_folder(self) -> bool:
        """Whether answers go into a folder of parts."""
        # Dates and versions in the name of a folder have dots, too.
        return self.output.suffix not in FILES and (self.output.is_dir() or not _ENDING.match(self.output.suffix))

    def __post_init__(self) -> None:
        source, output = Path(self.source), self.output
        if not self.into_folder and output.suffix not in FILES:
            expected = "a name ending in .parquet or .npz, or that of a folder"
            raise DataError(f"{output}", got="an unknown kind of file", expected=expected)
        if not output.parent.is_dir():
            raise DataError(f"{output}", got="no such folder", fix=f"make {output.parent} first")
        if (output.exists() and output.is_dir() != self.into_folder) or output.resolve() == source.resolve():
            kind = "a file" if self.into_folder else "a folder"
            raise DataError(f"{output}", got=f"{kind} or the input itself", expected="another file")
        if source.is_dir() and source.resolve() in output.resolve().parents:
            raise DataError(f"{output}", got="a file in the folder that is read", expected="another folder")
        if self.into_folder or ".parquet" in (output.suffix, source.suffix):
            require_parquet()


def run_batch(job: BatchJob, *, progress: Progress = no_progress) -> BatchCount:
    """Answers all rows, or those that an earlier run into the same folder left.

    A file appears when the last row is answered, and rows without an answer in a file beside it, see
    `refused_path`. A folder keeps what is done however the job ends.

    Raises:
        DataError: the rows cannot be read, or the answers cannot be written.
        InputError: the rows do not fit the model.
        ClientError: the server is gone, too slow, fails whatever the rows, or serves another plan than at first.
    """
    with contextlib.closing(job.predictor) as predictor:
        reader = picture_reader(job.repository, predictor.info)
        columns = replace(job.columns, trained=trained_columns(job.repository, predictor.info))
        with local_copy(job.source) as source:
            rows = stored_rows(source, predictor.info, columns=columns, read_picture=reader)
            check_kept(rows, job.output)
            count = (_into_folder if job.into_folder else _into_file)(job, rows, progress)
        count.total = rows.total
        spec = cascade_in(job.repository, predictor.model, predictor.info.version)
        if spec is not None:
            last = spec.members[-1]
            count.alone, count.alone_cost, count.unit = last.name, last.cost, spec.cost_unit
        count.notes = (*rows.notes, *filter(None, [predictor.note()]))
        count.shares = predictor.shares()
    return count


def _blocks(job: BatchJob, rows: StoredRows, start: int) -> Iterator[RowBlock]:
    size = min(job.predictor.block_rows, job.part_rows) if job.into_folder else job.predictor.block_rows
    return gathered(rows.blocks(size, start), size)


def _into_file(job: BatchJob, rows: StoredRows, progress: Progress) -> BatchCount:
    count = BatchCount()
    blocks = _blocks(job, rows, 0)
    try:
        with (
            progress(f"asking {job.predictor.model}", rows.total) as advance,
            contextlib.closing(job.predictor.outcomes(blocks)) as outcomes,
        ):
            advance(0)
            _write(job, outcomes, count=count, advance=advance)
    except ClientError as error:
        what = f"batch stopped after {count.done} of {rows.total} rows, nothing written: {error.what}"
        raise type(error)(what, got=error.got, expected=error.expected, fix=error.fix) from error
    return count


def _write(job: BatchJob, outcomes: Iterator[BlockOutcome], *, count: BatchCount, advance: Advance) -> None:
    output, side = job.output, refused_path(job.output)
    for path in (output, side):
        remove_unfinished(path)
    with whole_file(side) as side_part, whole_file(output) as output_part:
        answers = (NpzAnswers if output.suffix == ".npz" else ParquetAnswers)(output_part, name=output)
        with side_part.open("w", encoding="utf-8") as refused:
            for outcome in outcomes:
                for part in outcome.answered:
                    answers.add(columns_of(part))
                refused.write(refused_lines(outcome.refused))
                count.add(outcome)
                advance(outcome.size)
        answers.close()
        job.predictor.require_same_model()
        if not count.answered:
            output_part.unlink()
        if not count.refused:
            # An older job's list would be taken for this one's.
            side_part.unlink()
            side.unlink(missing_ok=True)


def _into_folder(job: BatchJob, rows: StoredRows, progress: Progress) -> BatchCount:
    predictor = job.predictor
    classes = class_count(predictor.info) if predictor.probabilities else None
    with opened_parts(
        job.output,
        about_job(job),
        rows.files,
        kept_types=rows.kept_types,
        classes=classes,
        part_rows=job.part_rows,
        confirm=predictor.require_same_model,
    ) as parts:
        count, start = parts.count, parts.count.done
        count.resumed = start
        if start >= rows.total:
            return count
        blocks = _blocks(job, rows, start)
        with (
            saying_what_is_kept(lambda: rows_kept(count.done, rows.total, job.output)),
            progress(f"asking {predictor.model}", rows.total) as advance,
            contextlib.closing(predictor.outcomes(blocks)) as outcomes,
            parts.keeping(),
        ):
            advance(start)
            for outcome in outcomes:
                parts.add(outcome)
                advance(outcome.size)
        return count


def about_job(job: BatchJob) -> Mapping[str, Any]:
    """What two runs must have in common for one to go on where the other stopped, as JSON values."""
    columns = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(job.columns).items()
    }
    info = job.predictor.info
    return {
        "model": info.name,
        "plan": info.plan_sha256,
        "columns": columns,
        "probabilities": job.predictor.probabilities,
    }
