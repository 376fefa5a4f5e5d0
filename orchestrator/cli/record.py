"""`committee record`: ask members about rows once and keep what they said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from orchestrator.cli.sources import rows_from_source
from orchestrator.local.sessions import LocalMembers
from orchestrator.planner.records import Records, random_members, sha256_of_rows, write_records


def record(
    members: Annotated[list[str], typer.Argument(help="Members to ask, by name.", show_default=False)],
    data: Annotated[
        str, typer.Option(help="digits:train, digits:plan, digits:test, or an .npz with images and labels.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Records file to write.")],
    repository: Annotated[Path, typer.Option(help="Model repository that holds the members.")] = Path(
        "model_repository"
    ),
) -> None:
    """Ask members about labelled rows in this process and write records.npz.

    Example: committee record digits_small digits_large --data digits:plan -o build/plan.npz
    """
    records = records_of(repository, members, data)
    write_records(records, output)
    typer.echo(f"{output}: {records.rows} rows, {records.classes} classes, {len(records.outputs)} members")
    if random := random_members(records):
        typer.echo(f"note: random weights in {', '.join(random)}: for cost and speed work, not for accuracy")


def records_of(repository: Path, members: list[str], data: str) -> Records:
    """Asks every member about every row of a source."""
    rows = rows_from_source(data)
    local = LocalMembers(repository, members)
    outputs = {name: np.asarray(local.ask(name, rows.images), np.float32) for name in members}
    manifests = {name: local.manifest(name) for name in members}
    return Records(
        ids=rows.ids,
        labels=rows.labels,
        outputs=outputs,
        cost={name: float(manifest.macs) for name, manifest in manifests.items()},
        meta={
            "data": data,
            "data_sha256": sha256_of_rows(rows.images),
            "members": {
                name: {"sha256": manifest.sha256, "random_weights": manifest.random_weights}
                for name, manifest in manifests.items()
            },
        },
    )
