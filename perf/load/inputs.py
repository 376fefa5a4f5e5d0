"""Rows to send: taken from stored data, chosen by kind, and written as perf_analyzer's `--input-data` file.

`python -m perf inputs` writes such a file.
"""

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from orchestrator.cli.console import (
    ADDRESS,
    Ca,
    Cert,
    ColumnsOption,
    Headers,
    Key,
    TextOption,
    endpoint_from_options,
    listed_names,
)
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.errors import DataError
from orchestrator.repository.index import picture_reader
from orchestrator.rows.blocks import ColumnNames
from orchestrator.rows.labels import MemberClasses
from orchestrator.rows.opening import row_source
from orchestrator.spec.rows import ready_rows, rows_at, stacked
from orchestrator.spec.shares import evenly_spread

Tensors = dict[str, npt.NDArray[Any]]


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
    address: str | Endpoint,
    route: str,
    *,
    data: str,
    repository: Path,
    at_most: int,
    columns: ColumnNames | None = None,
) -> Tensors:
    """Rows for a model, taken evenly from all of `data`, which is as for `committee record`, without its labels.

    They come as the tensors of requests, by name. Where lengths differ a tensor is (n,) objects.

    `repository` says how pictures become rows.

    Raises:
        CommitteeError: the data cannot be read, or does not fit the model.
    """
    with GrpcClient(address) as client:
        info = client.metadata(route)
    reader = picture_reader(repository, info)
    # Any number of classes is fine, since nobody asks which one a row is of.
    classes = MemberClasses(count=sys.maxsize, by_order=True)
    source = row_source(data, info, classes=classes, read_picture=reader, columns=columns)
    wanted = evenly_spread(len(source.ids), at_most)
    loaded = [piece.load() for piece in source.pieces(wanted, 0, len(wanted))]
    parts = [ready_rows(info, one.rows) for one in loaded if len(one.ids)]
    if not parts:
        raise DataError(f"data {data}", got="no row that can be read", expected="at least one")
    return {name: stacked([row for part in parts for row in part[name]]) for name in parts[0]}


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


def write_input_data(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes one step per row of tensors (n, *dims), or (n,) objects where lengths differ.

    Numbers are raw bytes in base64: a tenth of the size of digits, and exact.

    Raises:
        DataError: a text is not UTF-8, which the file cannot hold.
    """
    count = len(next(iter(tensors.values())))
    steps = [{name: _value(name, rows[place]) for name, rows in tensors.items()} for place in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": steps}), encoding="ascii")


def _value(name: str, row: npt.NDArray[Any]) -> object:
    if row.dtype == object:
        try:
            return [text.decode() for text in row.ravel().tolist()]
        except UnicodeDecodeError as error:
            got = "bytes that are not UTF-8"
            raise DataError(f"input {name}", got=got, expected="text, which perf_analyzer can read") from error
    data = {"b64": base64.b64encode(np.ascontiguousarray(row).tobytes()).decode("ascii")}
    # A shape by itself says nothing where it is fixed, and is needed where a length varies.
    return {"content": data, "shape": list(row.shape)}


# perf_analyzer reads the whole file before it begins.
MOST_ROWS = 997


def inputs(
    url: Annotated[str, typer.Option(help=f"gRPC endpoint of a Triton that serves the model: {ADDRESS}")],
    model: Annotated[str, typer.Option(help="The cascade; it is asked once about every row.")],
    data: Annotated[
        str,
        typer.Option(
            help="Rows: a folder of pictures, .npz, .npy, .parquet, .csv, .tsv, .jsonl, or digits:SPLIT."
        ),
    ] = "digits:test",
    text: TextOption = None,
    columns: ColumnsOption = None,
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
    named = ColumnNames(text=text, columns=listed_names(columns))
    there = different_rows(server, model, data=data, repository=repository, at_most=rows, columns=named)
    with GrpcClient(server) as client:
        is_hard = client.infer(model, there).exit_stage > 0
    chosen = chosen_rows(is_hard, hard=hard, rows=next_prime_below(len(is_hard)), seed=seed)
    write_input_data(output, rows_at(there, chosen))
    share = float(is_hard[chosen].mean())
    if as_json:
        facts = {"path": str(output), "rows": len(chosen), "hard_share": share, "input": ", ".join(there)}
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"Written: {output}, {len(chosen)} rows, {100 * share:.1f} % of them hard")
