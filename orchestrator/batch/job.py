"""One batch job from a file of rows to a file of answers."""

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.batch.run import BlockOutcome, block_outcomes
from orchestrator.batch.write import (
    AnswerFile,
    answer_file,
    check_kept,
    refused_line,
    refused_path,
    whole_file,
)
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, DataError
from orchestrator.progress import Advance, Progress, no_progress
from orchestrator.repository.lookup import picture_reader
from orchestrator.rows.blocks import ColumnNames, StoredRows
from orchestrator.rows.opening import stored_rows


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Which rows go through which model.

    Args:
        model: Triton model name.
        source, output: files.
        server: its gRPC endpoint.
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
            raise DataError(
                f"{output}", got="an unknown kind of file", expected="a name ending in .parquet or .npz"
            )
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
    """How far a job has come.

    Args:
        total: rows of the file.
        answered: rows with an answer.
        refused: rows without.
        first_reason: why the first of those has none.
        note: what the user should know about how the model's scores were read.
    """

    total: int = 0
    answered: int = 0
    refused: int = 0
    first_reason: str = ""
    note: str | None = None


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
        count = BatchCount(total=rows.total)
        # Judged by the plan's own thresholds: a job must not get other answers for the load that it makes itself.
        policy = Policy(gear=0) if info.has_stages else None
        try:
            with progress(f"asking {job.model}", rows.total) as advance:
                await _push(job, client, rows, policy=policy, count=count, advance=advance)
        except ClientError as error:
            done = count.answered + count.refused
            what = f"batch stopped after {done} of {count.total} rows, nothing written: {error.what}"
            raise type(error)(what, got=error.got, fix=error.fix) from error
        count.note = client.kinds.note(info)
    return count


async def _push(
    job: BatchJob,
    client: AsyncGrpcClient,
    rows: StoredRows,
    *,
    policy: Policy | None,
    count: BatchCount,
    advance: Advance,
) -> None:
    side = refused_path(job.output)
    with whole_file(side) as side_part, whole_file(job.output) as output_part:
        answers = answer_file(job.output, output_part, text_ids=rows.text_ids)
        blocks = rows.blocks(job.request_rows)
        outcomes = block_outcomes(client, job.model, blocks, in_flight=job.in_flight, policy=policy)
        with side_part.open("w", encoding="utf-8") as refused:
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    _keep(outcome, answers, refused, count)
                    advance(outcome.size)
        answers.close()
        if not count.answered:
            output_part.unlink()
        if not count.refused:
            # An older job's list would be taken for this one's.
            side_part.unlink()
            side.unlink(missing_ok=True)


def _keep(outcome: BlockOutcome, answers: AnswerFile, refused: IO[str], count: BatchCount) -> None:
    for part in outcome.answered:
        answers.add(part)
        count.answered += len(part.ids)
    for one in outcome.refused:
        refused.write(refused_line(one))
        count.refused += 1
        count.first_reason = count.first_reason or one.reason
