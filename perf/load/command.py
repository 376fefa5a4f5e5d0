"""`python -m perf analyzer`, `tritonserver` and `inputs`: what load tests with NVIDIA's own tools need."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.endpoints import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.serving.machine import machine_here
from perf.load.inputs import chosen_rows, different_rows, next_prime_below, write_input_data
from perf.load.programs import analyzer_program, find_analyzer, server_program

# perf_analyzer reads the whole file before it begins.
MOST_ROWS = 997


_Words = Annotated[list[str] | None, typer.Argument(help="Run it with these.", metavar="ARGS", show_default=False)]


def analyzer(arguments: _Words = None) -> None:
    """Run a perf_analyzer that works here, fetched the first time; without arguments print its path.

    PERF_ANALYZER names another one. Everything after the word goes to it as it is.

    Example: python -m perf analyzer -m digits_cascade -i grpc -u 127.0.0.1:8001 --input-data build/rows.json
    """
    _print_or_become(analyzer_program(find_analyzer()), arguments)


def tritonserver(arguments: _Words = None) -> None:
    """Run the embedded tritonserver with Triton's own options; without arguments print its path.

    For tools that start a server themselves, or load and unload models: unlike that of `committee serve`, its
    repository API is open to whoever reaches the port.

    Example: python -m perf tritonserver --model-repository model_repository --model-control-mode explicit
    """
    _print_or_become(server_program(machine_here()), arguments)


def _print_or_become(program: Path, arguments: list[str] | None) -> None:
    if not arguments:
        typer.echo(str(program))
        return
    # The program replaces this process, so that signals, output and exit status are its own.
    os.execv(program, [str(program), *arguments])


def inputs(
    url: Annotated[str, typer.Option(help=f"gRPC endpoint of a Triton that serves the model: {ADDRESS}")],
    model: Annotated[str, typer.Option(help="The cascade; it is asked once about every row.")],
    data: Annotated[
        str, typer.Option(help="Rows: a folder of pictures, .npz, .npy, .parquet, or digits:SPLIT.")
    ] = "digits:test",
    hard: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of rows that stage 0 passes on; as they come if not given."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=2, max=MOST_ROWS, help="At most so many; a prime is taken.")
    ] = MOST_ROWS,
    seed: Annotated[int, typer.Option(min=0, help="Of choice and order.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("build/rows.json"),
    repository: Annotated[Path, typer.Option(help="Model repository that says how pictures become rows.")] = Path(
        "model_repository"
    ),
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write an --input-data file for perf_analyzer with a known share of hard rows.

    Example: python -m perf inputs --url 127.0.0.1:8001 --model digits_cascade --hard 0.15
    """
    server = endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    there = different_rows(server, model, data=data, repository=repository, at_most=rows)
    with GrpcClient(server) as client:
        input_name = client.metadata(model).inputs[0].name
        is_hard = client.infer(model, there).exit_stage > 0
    chosen = chosen_rows(is_hard, hard=hard, rows=next_prime_below(len(there)), seed=seed)
    write_input_data(output, there[chosen], input_name=input_name)
    share = float(is_hard[chosen].mean())
    if as_json:
        facts = {"path": str(output), "rows": len(chosen), "hard_share": share, "input": input_name}
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"Written: {output}, {len(chosen)} rows, {100 * share:.1f} % of them hard")
