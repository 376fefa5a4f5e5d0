"""`committee batch`: a file of rows through a served model, a file of answers out."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy.typing as npt
import typer

from orchestrator.batch.run import Settled, settled_blocks
from orchestrator.batch.write import (
    AnswerFile,
    answer_file,
    check_kept,
    refused_line,
    refused_path,
    whole_file,
)
from orchestrator.cli.console import print_json, progress, stdout_console
from orchestrator.cli.endpoints import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.cli.pictures import picture_reader
from orchestrator.client.answers import ServedAnswers
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, DataError
from orchestrator.rows.blocks import ColumnNames, StoredRows
from orchestrator.rows.opening import stored_rows


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to push through what.

    Args:
        model: to ask.
        source, output: files.
        server: its gRPC endpoint.
        in_flight: requests under way at once.
        request_rows: rows per request.
        columns: which arrays or columns hold what, and which go into the answers.
        repository: where cascade.json says how pictures become rows.
        timeout_s: longest wait for one answer.
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


@dataclass
class Tally:
    """How far a job has come.

    Args:
        total: rows of the file.
        answered: rows with an answer.
        refused: rows without.
        first_reason: why the first of those has none.
        note: on how the model's scores were taken.
    """

    total: int = 0
    answered: int = 0
    refused: int = 0
    first_reason: str = ""
    note: str | None = None

    @property
    def done(self) -> int:
        """Rows dealt with."""
        return self.answered + self.refused


class OwnThresholds:
    """A client whose cascades judge by the plan's own thresholds, whatever gear the load calls for.

    Args:
        client: that asks.
        is_cascade: whether the model takes request parameters.
    """

    def __init__(self, client: AsyncGrpcClient, *, is_cascade: bool) -> None:
        self._client = client
        self._policy = Policy(gear=0) if is_cascade else None

    async def infer(self, model: str, rows: npt.NDArray[Any]) -> ServedAnswers:
        """Answers of rows."""
        return await self._client.infer(model, rows, policy=self._policy)

    async def ready(self, model: str | None = None) -> bool:
        """Whether the server and the model would answer now."""
        return await self._client.ready(model)


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Rows: .npy, .npz, .parquet, or a folder of .parquet files.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Answers: .parquet or .npz.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Cascade, ensemble or member to ask.")],
    url: Annotated[str, typer.Option(help=f"The gRPC endpoint: {ADDRESS}")] = "127.0.0.1:8001",
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    in_flight: Annotated[int, typer.Option(min=1, max=1024, help="Requests under way at once.")] = 8,
    request_rows: Annotated[int, typer.Option(min=1, help="Rows per request.")] = 32,
    column: Annotated[str | None, typer.Option(help="Array or column that holds the rows.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Array or column that holds the ids.")] = None,
    keep_columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="Arrays or columns to carry into the answers.", show_default=False),
    ] = None,
    repository: Annotated[Path, typer.Option(help="Where cascade.json says how pictures become rows.")] = Path(
        "model_repository"
    ),
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest wait for one answer.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Push stored rows through a served model; order is kept and memory stays small.

    IN is a .npy array (n, ...); a .npz with an array `images` (or one named by --column, else the first) and
    maybe `ids` (or --id-column); or a .parquet, or a folder of such files, with a column `image` (or --column) and
    maybe `id` (or --id-column). The column holds lists of numbers (flat or nested), raw tensor bytes, or encoded
    pictures (bytes, or a struct with `bytes`), which go through the `preprocess` section of cascade.json. Without
    ids rows are numbered from 0.

    OUT gets id, label, confidence, exit_stage, cost and status, and then the columns of --keep-columns, where one
    called `label` becomes `input_label`, and so on. Rows that are refused, by the server or because
    they cannot be read, go to OUT's name with .refused.jsonl (id, reason) and do not stop the job. OUT appears
    only when the job is finished. A plan with gears judges by its own thresholds: a job is not to get other
    answers because of the load it makes itself.

    Example: committee batch --model digits_cascade digits.npz answers.parquet --in-flight 16
    """
    job = Job(
        model=model,
        source=source,
        output=output,
        server=endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header),
        in_flight=in_flight,
        request_rows=request_rows,
        columns=ColumnNames(column=column, id_column=id_column, keep_columns=_names(keep_columns or [])),
        repository=repository,
        timeout_s=timeout_s,
    )
    _check_output(job)
    start = time.perf_counter()
    tally = asyncio.run(_run(job))
    seconds = time.perf_counter() - start
    _report(job, tally, seconds=seconds, as_json=as_json)


def _names(words: Sequence[str]) -> tuple[str, ...]:
    """Names from options that may hold several, each once."""
    names = (name.strip() for word in words for name in word.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def _check_output(job: Job) -> None:
    """Refuses before any work what would fail after it."""
    if job.output.suffix not in (".parquet", ".npz"):
        raise DataError(
            f"{job.output}", got="an unknown kind of file", expected="a name ending in .parquet or .npz"
        )
    if not job.output.parent.is_dir():
        raise DataError(f"{job.output}", got="no such folder", fix=f"make {job.output.parent} first")
    if job.output.is_dir() or job.output.resolve() == job.source.resolve():
        raise DataError(f"{job.output}", got="a folder or the input itself", expected="another file")
    if job.source.is_dir() and job.source.resolve() in job.output.resolve().parents:
        raise DataError(f"{job.output}", got="a file in the folder that is read", expected="another folder")
    if ".parquet" in (job.output.suffix, job.source.suffix):
        importlib.import_module("pyarrow")


async def _run(job: Job) -> Tally:
    async with AsyncGrpcClient(job.server, timeout_s=job.timeout_s, retries=4) as client:
        info = await client.metadata(job.model)
        reader = picture_reader(job.repository, info)
        rows = stored_rows(job.source, info, columns=job.columns, read_picture=reader)
        check_kept(rows, job.output)
        tally = Tally(total=rows.total)
        is_cascade = any(tensor.name == "exit_stage" for tensor in info.outputs)
        try:
            with progress(f"asking {job.model}", rows.total) as advance:
                await _push(job, client, rows, is_cascade=is_cascade, tally=tally, advance=advance)
        except ClientError as error:
            what = f"batch stopped after {tally.done} of {tally.total} rows, nothing written: {error.what}"
            raise type(error)(what, got=error.got, fix=error.fix) from error
        tally.note = client.kinds.note(info)
    return tally


async def _push(
    job: Job,
    client: AsyncGrpcClient,
    rows: StoredRows,
    *,
    is_cascade: bool,
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    side = refused_path(job.output)
    with whole_file(side) as side_part, whole_file(job.output) as output_part:
        answers = answer_file(job.output, output_part, text_ids=rows.text_ids)
        asked = OwnThresholds(client, is_cascade=is_cascade)
        blocks = settled_blocks(asked, job.model, rows.blocks(job.request_rows), in_flight=job.in_flight)
        with side_part.open("w", encoding="utf-8") as refused:
            async with contextlib.aclosing(blocks):
                async for settled in blocks:
                    _keep(settled, answers, refused, tally)
                    advance(settled.size)
        answers.close()
        if not tally.answered:
            output_part.unlink()
        if not tally.refused:
            # An older job's list would be taken for this one's.
            side_part.unlink()
            side.unlink(missing_ok=True)


def _keep(settled: Settled, answers: AnswerFile, refused: IO[str], tally: Tally) -> None:
    for part in settled.answered:
        answers.add(part)
        tally.answered += len(part.ids)
    for one in settled.refused:
        refused.write(refused_line(one))
        tally.refused += 1
        tally.first_reason = tally.first_reason or one.reason


def _report(job: Job, tally: Tally, *, seconds: float, as_json: bool) -> None:
    side = refused_path(job.output)
    if not tally.answered:
        raise DataError(f"{job.source}", got=f"no row answered, {side} says why; the first: {tally.first_reason}")
    if tally.note is not None:
        typer.echo(f"note: {tally.note}", err=True)
    if as_json:
        print_json(
            {
                "output": str(job.output),
                "rows": tally.total,
                "answered": tally.answered,
                "refused": tally.refused,
                "refused_file": str(side) if tally.refused else None,
                "seconds": seconds,
                "rows_per_s": tally.total / seconds,
            }
        )
        return
    refused = f", {tally.refused} refused ({side})" if tally.refused else ""
    rate = f"{tally.total / seconds:,.0f} rows/s"
    text = f"{job.output}: {tally.answered} of {tally.total} rows answered{refused}, {rate}"
    stdout_console().print(text, soft_wrap=True, highlight=False, markup=False)
