"""`committee batch`: a file of rows through a served model, a file of answers out."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.batch.job import BatchCount, BatchJob, refused_path, run_batch
from orchestrator.cli.console import (
    ADDRESS,
    Ca,
    Cert,
    ColumnsOption,
    Headers,
    Key,
    MissingOption,
    TextOption,
    endpoint_from_options,
    listed_names,
    print_json,
    progress,
    stdout_console,
)
from orchestrator.commandline import with_options
from orchestrator.errors import DataError
from orchestrator.rows.blocks import ColumnNames


def batch(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Rows: .npy, .npz, .csv, .tsv, .jsonl, .parquet, or a folder of .parquet files."
        ),
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
    text: TextOption = None,
    columns: ColumnsOption = None,
    missing_as_nan: MissingOption = False,
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

    Tables may be .csv, .tsv or .jsonl as well: --text names the column of text, --columns the numbers of a row.

    Example: committee batch --model digits_cascade digits.npz answers.parquet --in-flight 16

    Text: committee batch --model reviews new.csv answers.parquet --text review --keep-columns review
    """
    job = BatchJob(
        model=model,
        source=source,
        output=output,
        server=endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header),
        in_flight=in_flight,
        request_rows=request_rows,
        columns=ColumnNames(
            column=column,
            text=text,
            columns=listed_names(columns),
            missing_as_nan=missing_as_nan,
            id_column=id_column,
            keep_columns=listed_names(keep_columns),
        ),
        repository=repository,
        timeout_s=timeout_s,
    )
    start = time.perf_counter()
    count = asyncio.run(run_batch(job, progress=progress))
    seconds = time.perf_counter() - start
    _report(job, count, seconds=seconds, as_json=as_json)


def _report(job: BatchJob, count: BatchCount, *, seconds: float, as_json: bool) -> None:
    side = refused_path(job.output)
    if not count.answered:
        raise DataError(f"{job.source}", got=f"no row answered, {side} says why; the first: {count.first_reason}")
    for note in (*map(with_options, count.notes), *filter(None, [count.note])):
        typer.echo(f"note: {note}", err=True)
    if as_json:
        summary = {"output": str(job.output), "rows": count.total, "answered": count.answered}
        summary |= {"refused": count.refused, "refused_file": str(side) if count.refused else None}
        print_json({**summary, "seconds": seconds, "rows_per_s": count.total / seconds})
        return
    refused = f", {count.refused} refused ({side})" if count.refused else ""
    rate = f"{count.total / seconds:,.0f} rows/s"
    text = f"{job.output}: {count.answered} of {count.total} rows answered{refused}, {rate}"
    stdout_console().print(text, soft_wrap=True, highlight=False, markup=False)
