"""Rows to send: taken from stored data, chosen by kind, and written as perf_analyzer's `--input-data` file.

`python -m perf inputs` writes such a file.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from orchestrator.cli.console import ADDRESS, Ca, Cert, Headers, Key, endpoint_from_options
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.errors import DataError
from orchestrator.repository.index import picture_reader
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.opening import row_source
from orchestrator.spec.shares import evenly_spread


def next_prime(number: int) -> int:
    """The smallest prime that is not below a number.

    A file with a prime row count falls into step with no concurrency and no batch: otherwise the same rows would
    meet in the same batches over and over.
    """
    candidate = max(number, 2)
    while any(candidate % divisor == 0 for divisor in range(2, int(candidate**0.5) + 1)):
        candidate += 1
    return candidate


def next_prime_below(number: int) -> int:
    """The largest prime that is not above a number of at least 2."""
    return next(candidate for candidate in range(number, 1, -1) if next_prime(candidate) == candidate)


def different_rows(
    address: str | Endpoint, route: str, *, data: str, repository: Path, at_most: int
) -> npt.NDArray[Any]:
    """Rows for a model, taken evenly from all of `data`, which is as for `committee record`, without its labels.

    `repository` says how pictures become rows.

    Raises:
        CommitteeError: the data cannot be read, or does not fit the model.
    """
    with GrpcClient(address) as client:
        info = client.metadata(route)
    reader = picture_reader(repository, info)
    # Any number of classes is fine, since nobody asks which one a row is of.
    classes = MemberClasses(count=sys.maxsize, by_order=True)
    source = row_source(data, info, classes=classes, read_picture=reader)
    wanted = evenly_spread(len(source.ids), at_most)
    loaded = [piece.load() for piece in source.pieces(wanted, 0, len(wanted))]
    rows = np.concatenate([one.rows for one in loaded if len(one.ids)] or [np.zeros(0)])
    if not len(rows):
        raise DataError(f"data {data}", got="no row that can be read", expected="at least one")
    return rows


def chosen_rows(
    is_hard: npt.NDArray[np.bool_], *, hard: float | None, rows: int, seed: int
) -> npt.NDArray[np.intp]:
    """Which of the rows, bool (n,), go into a file, intp (rows,), in random order.

    `hard` is the share of hard rows wanted; None takes rows as they are. Rows come twice only where there are too
    few of a kind.

    Raises:
        DataError: there is no row of a kind that is wanted.
    """
    rng = np.random.default_rng(seed)
    if hard is None:
        return rng.permutation(len(is_hard))[:rows]
    wanted = {True: round(hard * rows), False: rows - round(hard * rows)}
    parts = []
    for kind, count in wanted.items():
        there = rng.permutation(np.flatnonzero(is_hard == kind))
        if count and not len(there):
            word = "hard" if kind else "easy"
            raise DataError("`data`", got=f"no {word} row among {len(is_hard)}", expected=f"{count} of them")
        parts.append(np.resize(there, count))
    return rng.permutation(np.concatenate(parts))


def write_input_data(path: Path, rows: npt.NDArray[Any], *, input_name: str) -> None:
    """Writes one step per row (n, *dims), as raw bytes in base64: a tenth of the size of numbers, and exact."""
    steps = [
        {input_name: {"b64": base64.b64encode(np.ascontiguousarray(row).tobytes()).decode("ascii")}}
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": steps}), encoding="ascii")


# perf_analyzer reads the whole file before it begins.
MOST_ROWS = 997


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
