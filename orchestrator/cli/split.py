"""`committee split`: one recording into rows to plan with and rows to judge the plan on."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.console import print_json
from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import parts_from_records
from orchestrator.planner.records import records_from_path, write_all_records


def split(
    records_path: Annotated[Path, typer.Argument(metavar="RECORDS", help="Records made by `committee record`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Records file for the first part, to plan with.")],
    rest: Annotated[Path, typer.Option("--rest", help="Records file for the other rows, to evaluate on.")],
    share: Annotated[float, typer.Option(help="Of the rows that go to the first part.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Another seed gives another cut.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parts as JSON.")] = False,
) -> None:
    """Cut records in two by a hash of the row ids: the same rows come out whatever order they are in.

    Example: committee split build/val.npz -o build/plan.npz --rest build/test.npz
    """
    if not 0 < share < 1:
        raise DataError("split --share", got=f"{share:g}", expected="a number between 0 and 1")
    paths = {"RECORDS": records_path, "--output": output, "--rest": rest}
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise DataError("split", got="the same file twice", expected=f"three files: {', '.join(paths)}")
    for path in (output, rest):
        if path.is_dir() or path.suffix != ".npz":
            raise DataError(f"split {path}", got="no records file", expected="a file name ending in .npz")
    parts = parts_from_records(records_from_path(records_path), share=share, seed=seed)
    write_all_records(dict(zip((output, rest), parts, strict=True)))
    for part, path in zip(parts, (output, rest), strict=True):
        if not as_json:
            typer.echo(f"{path}: {part.rows} rows")
    if as_json:
        rows = {str(path): part.rows for part, path in zip(parts, (output, rest), strict=True)}
        print_json({"rows": rows, "share": share, "seed": seed})
