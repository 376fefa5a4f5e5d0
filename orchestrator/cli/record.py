"""`committee record`: ask members about rows once and keep what they said."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from orchestrator.cli.console import (
    ADDRESS,
    Ca,
    Cert,
    ColumnsOption,
    DeriveOption,
    Headers,
    Key,
    MissingOption,
    TextOption,
    endpoint_from_options,
    listed_names,
    print_json,
    progress,
)
from orchestrator.cli.time import check_timing_output, write_timing
from orchestrator.commandline import with_options
from orchestrator.errors import DataError
from orchestrator.recording.job import RecordOptions, record_job
from orchestrator.recording.join import join_records
from orchestrator.recording.pool import opened_pool
from orchestrator.recording.timing import TimeOptions, time_members
from orchestrator.rows.arrays import INSTALLED_WORDS
from orchestrator.rows.blocks import ColumnNames
from orchestrator.spec.output_kind import OUTPUT_KINDS
from orchestrator.spec.validation import COSTS, is_cost

Value = TypeVar("Value")


def record(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="Records file to write.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEMBERS...", help="Members to ask; with --join records files.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder with a sub-folder of pictures per class, .npz, .npy, .csv, .tsv, .jsonl, .parquet or a "
            f"folder of them, {INSTALLED_WORDS}.",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        bool,
        typer.Option(
            "--join",
            help="Ask nobody: join records files of other members over the same rows, or of other rows, by their "
            "ids. With --skip-bad rows that a member lacks are left out.",
        ),
    ] = False,
    by_id: Annotated[
        bool,
        typer.Option("--by-id", help="With --join: one id is one row even where the data are said to differ."),
    ] = False,
    members: Annotated[
        list[str] | None, typer.Option(help="The same, separated by commas.", show_default=False)
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the members.")] = Path(
        "model_repository"
    ),
    url: Annotated[
        str | None,
        typer.Option(help=f"gRPC endpoint of a Triton that is asked instead of this process: {ADDRESS}"),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows, spread evenly over the data.")
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option(
            "--skip-bad", help="Leave out (and count) rows that cannot be read or answered, or lack a label."
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Throw away an unfinished recording, and record again what is up to date."),
    ] = False,
    column: Annotated[str | None, typer.Option(help="Array or column that holds the rows.")] = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    missing_as_nan: MissingOption = False,
    derive: DeriveOption = None,
    id_column: Annotated[str | None, typer.Option(help="Array or column that holds the ids.")] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", "--label", help="Array or column that holds the labels.")
    ] = None,
    group_column: Annotated[
        str | None,
        typer.Option(
            help="Array or column that says which rows belong together, such as those of one patient or document: "
            "planning keeps them on one side.",
            show_default=False,
        ),
    ] = None,
    by_order: Annotated[
        bool,
        typer.Option("--labels-by-order", help="Take sorted class names for the classes in order, not by name."),
    ] = False,
    class_map: Annotated[
        Path | None,
        typer.Option(
            help="Text file with what the data calls each class, a line per class in the members' order, such as "
            "ImageNet's LOC_synset_mapping.txt."
        ),
    ] = None,
    first_label: Annotated[
        int,
        typer.Option(
            help="Number of the first class in labels that are numbers, also as text; 1 for labels 1 to k."
        ),
    ] = 0,
    cost: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COST", help="Cost per row of a member; else its MACs.")
    ] = None,
    output_kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND",
            help="logits or probabilities, for a member whose manifest or served configuration does not say (else "
            "its values decide), or to confirm logits that look like something else.",
        ),
    ] = None,
    output_tensor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TENSOR",
            help="Output with the scores, for a member of which several outputs may hold them.",
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest wait for a server's answer.")] = 60.0,
    timing: Annotated[
        Path | None,
        typer.Option(
            "--time",
            metavar="FILE",
            help="Also time the members on these rows, as `committee time` does, and write timing.json there.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask members about rows, in this process or on a Triton, and write what they said; or join records.

    A run that was stopped goes on where it stopped when the same command is given again; a finished one has
    nothing to do where members, data and options are the same. The classes of a folder are its sub-folders,
    matched with the members' class names (of manifest.json, or of a label file that config.pbtxt names), or as
    --class-map says. The file's format is in docs/records.md.

    Example: committee record digits_small digits_large --data digits:plan -o build/plan.npz

    Text: committee record tfidf bert_tiny --data reviews.csv --text review --label stars -o build/plan.npz

    To join: committee record --join build/small.npz build/large.npz -o build/both.npz
    """
    if join:
        _show(context, _joined(context, names or [], output, skip_bad=skip_bad, by_id=by_id), as_json=as_json)
        return
    if data is None or by_id:
        got = "--by-id without --join" if by_id else "no --data"
        raise DataError("record", got=got, expected="members and --data, or --join and records files")
    if by_order and class_map is not None:
        raise DataError("record", got="--class-map and --labels-by-order", expected="one of them")
    _check_files(data, output)
    check_timing_output(timing)
    # In this order, so that `--members a b c`, where the option itself takes one word, means a, b, c.
    asked = [*listed_names(members, once=False), *(names or [])]
    start = time.perf_counter()
    server = None if url is None else endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    kinds, known = " or ".join(OUTPUT_KINDS), {kind: kind for kind in OUTPUT_KINDS}
    opened = opened_pool(
        asked,
        repository,
        url=server,
        cost=_by_member("--cost", cost, asked, form=f"NAME=COST with {COSTS},", read=_cost),
        output_kind=_by_member("--output-kind", output_kind, asked, form=f"NAME=KIND, {kinds},", read=known.get),
        output_tensor=_by_member("--output-tensor", output_tensor, asked, form="NAME=TENSOR", read=str),
        derive=listed_names(derive),
        timeout_s=timeout_s,
    )
    options = RecordOptions(
        data=data,
        limit=limit,
        skip_bad=skip_bad,
        by_order=by_order,
        class_map=class_map,
        first_label=first_label,
        columns=ColumnNames(
            column=column,
            text=text,
            columns=listed_names(columns),
            missing_as_nan=missing_as_nan,
            id_column=id_column,
            label_column=label_column,
            group_column=group_column,
        ),
    )
    tell = partial(typer.echo, err=True)
    with opened as pool:
        summary = record_job(pool, options, output, restart=restart, progress=progress, tell=tell)
    summary["seconds"] = time.perf_counter() - start
    if timing is not None:
        wanted = TimeOptions(data=options, derive=listed_names(derive))
        write_timing(
            timing, time_members(asked, repository, wanted, url=server, timeout_s=timeout_s, progress=progress)
        )
        summary["timing"] = str(timing)
    _show(context, summary, as_json=as_json)


def _check_files(data: str, output: Path) -> None:
    if not data:
        expected = f"a folder of pictures, .npz, .npy, .parquet, {INSTALLED_WORDS}"
        raise DataError("--data", got="nothing", expected=expected)
    _check_output(output)
    if output.exists() and output.resolve() == Path(data).resolve():
        raise DataError(f"record --output {output}", got="the data itself", expected="another file")


def _check_output(output: Path) -> None:
    if output.is_dir() or output.suffix != ".npz":
        got = "a folder" if output.is_dir() else "another kind of file"
        raise DataError(f"record --output {output}", got=got, expected="a file name ending in .npz")


def _joined(
    context: typer.Context, files: Sequence[str], output: Path, *, skip_bad: bool, by_id: bool
) -> dict[str, Any]:
    """Joins records files; gives what `record_job` gives of a recording."""
    start = time.perf_counter()
    taken = {"names", "output", "join", "by_id", "skip_bad", "as_json"}
    others = [one for one in context.command.params if one.name not in taken]
    sources = [context.get_parameter_source(str(one.name)) for one in others]
    given = [one.opts[0] for one, by in zip(others, sources, strict=True) if by and by.name == "COMMANDLINE"]
    if given:
        raise DataError("record --join", got=", ".join(given), expected="records files, -o, --skip-bad, --by-id")
    paths = [Path(file) for file in files]
    _check_output(output)
    if len({path.resolve() for path in (*paths, output)}) <= len(paths):
        expected = "different files, and another one for -o"
        raise DataError("record --join", got="the same file twice", expected=expected)
    return {**join_records(paths, output, skip_bad=skip_bad, by_id=by_id), "seconds": time.perf_counter() - start}


def _by_member(
    option: str, words: list[str] | None, names: list[str], *, form: str, read: Callable[[str], Value | None]
) -> dict[str, Value]:
    """What an option's words, NAME=VALUE, say of each member; `read` gives None for what is no value."""
    found: dict[str, Value] = {}
    for word in words or ():
        name, _, text = word.partition("=")
        value = read(text) if text else None
        if not name or name in found or value is None:
            expected = f"{form} with one of {', '.join(names)}, each once"
            raise DataError(option, got=repr(word), expected=expected)
        found[name] = value
    return found


def _cost(text: str) -> float | None:
    try:
        cost = float(text)
    except ValueError:
        return None
    return cost if is_cost(cost) else None


def _show(context: typer.Context, summary: dict[str, Any], *, as_json: bool) -> None:
    notes = [with_options(note, context.command) for note in summary["notes"]]
    if as_json:
        print_json({**summary, "notes": notes})
        return
    known = " (up to date, --restart records again)" if summary.get("up_to_date") else ""
    typer.echo(
        f"{summary['output']}: {summary['rows']} rows, {summary['classes']} classes, "
        f"{len(summary['members'])} members, {summary['seconds']:.1f} s{known}"
    )
    for name, member in summary["members"].items():
        if member["accuracy"] is not None and not member["random_weights"]:
            # Whole MACs have commas; what is small or huge has few digits.
            cost = f"{member['cost']:{',.0f' if 1000 <= member['cost'] < 1e15 else 'g'}}"
            length = member["mean_length"]
            mean = "" if length is None else f" on average, of rows {length:.1f} long"
            typer.echo(f"  {name}: accuracy {member['accuracy']:.4f}, cost {cost}{mean}")
    if "timing" in summary:
        typer.echo(f"Timed: {summary['timing']}")
    for note in notes:
        typer.echo(f"note: {note}")
