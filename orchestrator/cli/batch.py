"""`committee batch`: a file of rows through a served model, a file of answers out."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.batch.count import BatchCount
from orchestrator.batch.job import BatchJob, refused_path, run_batch
from orchestrator.batch.parts import PART_ROWS
from orchestrator.cli.console import (
    ADDRESS,
    GRPC_URL,
    SEVERAL,
    Ca,
    Cert,
    ColumnsOption,
    Headers,
    Key,
    MissingOption,
    TextOption,
    endpoints_from_options,
    listed_names,
    print_json,
    row_progress,
    stdout_console,
)
from orchestrator.commandline import with_options
from orchestrator.errors import DataError, InputError
from orchestrator.predictor.in_process import LocalModels
from orchestrator.predictor.predictor import Predictor, ServedModels
from orchestrator.rows.blocks import ColumnNames

# The exit code of a job that is done, with rows among them that have no answer.
REFUSED = 7


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Rows: .npy, .npz, .csv, .tsv, .jsonl, .parquet, a folder or glob of such files, a folder of "
            "pictures, or a URL that fsspec reads.",
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Answers: .parquet, .npz, or a folder of parts to go on in.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Cascade, ensemble or member to ask.")],
    url: Annotated[
        list[str] | None,
        typer.Option(help=f"The gRPC endpoint, {GRPC_URL}: {ADDRESS} {SEVERAL}", show_default=False),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    in_flight: Annotated[int, typer.Option(min=1, max=1024, help="Requests under way at once.")] = 8,
    request_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows per request; as many as answer most rows per second if not given."),
    ] = None,
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
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="Run the members of --repository here, with ONNX Runtime; no server."),
    ] = False,
    timeout_s: Annotated[
        float, typer.Option(min=0.001, help="Longest wait for one answer, of each server.")
    ] = 60.0,
    patience_s: Annotated[
        float,
        typer.Option(min=0, help="How long a server that is away is waited for; inf waits until it is back."),
    ] = 0.0,
    part_rows: Annotated[
        int, typer.Option(min=1, help="Rows in each part of a folder of answers, at least.")
    ] = PART_ROWS,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Carry the probability of every class into the answers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Push stored rows through a model, served or in this process; order is kept and memory stays small.

    IN is a .npy array (n, ...); a .npz with an array `images` (or one named by --column, else the first) and
    maybe `ids` (or --id-column); or a .parquet, or a folder of such files, with a column `image` (or --column) and
    maybe `id` (or --id-column). The column holds lists of numbers (flat or nested), raw tensor bytes, or encoded
    pictures (bytes, or a struct with `bytes`), which go through the `preprocess` section of cascade.json. Without
    ids rows are numbered from 0.

    OUT gets id, label, confidence, exit_stage, cost and status, and then the columns of --keep-columns, where one
    called `label` becomes `input_label`, and so on. Rows that are refused, by the server or because
    they cannot be read, go to OUT.refused.jsonl (id, reason) and do not stop the job. A file appears
    only when the job is finished. A plan with gears judges by its own thresholds: a job is not to get other
    answers because of the load it makes itself.

    OUT without an ending is a folder of parts (part-....parquet, _refused-....jsonl), each there as soon as it is
    done: however the job ended, the same command goes on where it was. The exit code is 7 where some rows
    have no answer.

    Tables may be .csv, .tsv or .jsonl as well: --text names the column of text, --columns the numbers of a row.

    Example: committee batch --model digits_cascade digits.npz answers.parquet --in-flight 16

    Goes on: committee batch --model digits_cascade "days/*/*.parquet" answers --patience-s inf

    Text: committee batch --model reviews new.csv answers.parquet --text review --keep-columns review
    """
    if in_process and url:
        raise InputError("--url", got="--in-process beside it", expected="one of the two")
    if in_process:
        models: Any = LocalModels(repository=repository)
    else:
        servers = endpoints_from_options(url or [GRPC_URL], ca=ca, cert=cert, key=key, header=header)
        models = ServedModels(servers=servers, timeout_s=timeout_s)
    predictor = Predictor(
        models,
        model,
        in_flight=in_flight,
        request_rows=request_rows,
        patience_s=patience_s,
        probabilities=probabilities,
    )
    job = BatchJob(
        predictor=predictor,
        source=source,
        output=output,
        columns=ColumnNames(
            column=column,
            text=text,
            columns=listed_names(columns),
            missing_as_nan=missing_as_nan,
            id_column=id_column,
            keep_columns=listed_names(keep_columns),
        ),
        repository=repository,
        part_rows=part_rows,
    )
    start = time.perf_counter()
    count = run_batch(job, progress=row_progress)
    _report(job, count, seconds=time.perf_counter() - start, as_json=as_json)
    if count.refused:
        raise typer.Exit(REFUSED)


def _report(job: BatchJob, count: BatchCount, *, seconds: float, as_json: bool) -> None:
    side = refused_path(job.output)
    if not count.answered:
        raise DataError(f"{job.source}", got=f"no row answered, {side} says why; the first: {count.first_reason}")
    for note in count.notes:
        typer.echo(f"note: {with_options(note)}", err=True)
    rate = (count.done - count.resumed) / seconds
    if as_json:
        summary: dict[str, object] = {"output": f"{job.output}", "rows": count.total, "answered": count.answered}
        summary |= {"refused": count.refused, "refused_file": f"{side}" if count.refused else None}
        summary |= {"resumed": count.resumed, "seconds": seconds, "rows_per_s": rate}
        print_json({**summary, **count.cost_summary(), "server_requests": count.shares or None})
        return
    refused = f", {count.refused} refused ({side})" if count.refused else ""
    before = f", {count.resumed} of them before" if count.resumed else ""
    text = f"{job.output}: {count.answered} of {count.total} rows answered{refused}{before}, {rate:,.0f} rows/s"
    for line in (text, *_costs(count), *_shares(count)):
        stdout_console().print(line, soft_wrap=True, highlight=False, markup=False)


def _costs(count: BatchCount) -> list[str]:
    """What the answers cost, in a line, where the model says."""
    if not count.cost:
        return []
    exits = ", ".join(f"{count.exits[stage] / count.answered:.1%} at {stage}" for stage in sorted(count.exits))
    line = f"exits: {exits}; mean cost {count.mean_cost:,.4g}{f' {count.unit}' if count.unit else ''}"
    alone = count.alone_cost
    if alone:
        factor = alone / count.mean_cost
        line += f", {count.alone} alone {alone:,.4g}: {factor:.2f} times as much"
    return [line]


def _shares(count: BatchCount) -> list[str]:
    """Who answered, in a line, where there are several servers."""
    total = max(1, sum(count.shares.values()))
    told = ", ".join(f"{address} {answered / total:.1%}" for address, answered in count.shares.items())
    return [f"requests: {told}"] if told else []
