"""Rows to send: taken from stored data, chosen by kind, and written as perf_analyzer's `--input-data` file."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.errors import DataError
from orchestrator.repository.lookup import picture_reader
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
    """Rows of data, evenly taken from all of it.

    Args:
        address: of the gRPC endpoint.
        route: a model.
        data: as for `committee record`; labels are not looked at.
        repository: that says how pictures become rows.
        at_most: rows to give.

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
    """Which rows go into a file, intp (rows,), in random order.

    Rows come twice only where there are too few of a kind.

    Args:
        is_hard: bool (n,).
        hard: share of hard rows wanted; None takes rows as they are.
        rows: how many.
        seed: of choice and order.

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
