"""`committee record --join`: records files into one, by the ids of their rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from orchestrator.errors import DataError
from orchestrator.recording.join import join_records

# The options that mean something with it, by parameter.
_TAKEN = {"names", "output", "join", "by_id", "skip_bad", "as_json"}


def joined_summary(
    context: typer.Context, files: Sequence[str], output: Path, *, skip_bad: bool, by_id: bool
) -> dict[str, Any]:
    """Joins files, and says what is in the new one as `record` does of its own.

    Args:
        context: of the command line, for options that mean nothing here.
        files: paths of records files.
        output: records file to write.
        skip_bad: leave out rows that some member lacks.
        by_id: take rows of one id for the same although their data differ.

    Raises:
        DataError: another option, or files that do not fit together.
    """
    start = time.perf_counter()
    _check_alone(context)
    paths = [Path(file) for file in files]
    if output.is_dir() or output.suffix != ".npz":
        raise DataError(f"record --output {output}", got="no records file", expected="a file name ending in .npz")
    places = [path.resolve() for path in (*paths, output)]
    if len(set(places)) < len(places):
        raise DataError(
            "record --join", got="the same file twice", expected="different files, and another one for -o"
        )
    joined = join_records(paths, output, skip_bad=skip_bad, by_id=by_id)
    about = joined.meta.get("members", {})
    members = {
        name: {
            "cost": cost,
            "accuracy": joined.accuracy.get(name),
            "random_weights": bool(about.get(name, {}).get("random_weights")),
            "sha256": about.get(name, {}).get("sha256"),
        }
        for name, cost in joined.cost.items()
    }
    left_out = [f"{joined.left_out} rows left out that not every member has"] if joined.left_out else []
    return {
        "output": str(output),
        "rows": joined.rows,
        "classes": joined.classes,
        "labelled": bool(joined.accuracy),
        "members": members,
        "data_sha256": joined.meta.get("data_sha256"),
        "left_out_rows": joined.left_out,
        "joined": [str(path) for path in paths],
        "notes": [*left_out, *joined.notes],
        "seconds": time.perf_counter() - start,
    }


def _check_alone(context: typer.Context) -> None:
    """Refuses options that say how members are asked."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _TAKEN and _is_given(context, str(parameter.name))
    ]
    if given:
        raise DataError("record --join", got=", ".join(given), expected="records files, -o, --skip-bad, --by-id")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
