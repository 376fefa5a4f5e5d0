"""`committee time`: how long members take, batch by batch, in this process or on a server."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

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
    new_table,
    print_json,
    progress,
    stdout_console,
)
from orchestrator.errors import DataError
from orchestrator.files import write_file
from orchestrator.recording.job import RecordOptions
from orchestrator.recording.served_timing import ServedCascade, cascade_of, own_server
from orchestrator.recording.timing import BATCHES, TimeOptions, lines_of_timing, time_members
from orchestrator.rows.blocks import ColumnNames
from orchestrator.spec.documents import value_from_json
from orchestrator.spec.timing import Timing, interpolation_error, json_from_timing

# A line that far off at a batch between two measured ones deserves a batch more.
MUCH_OFF = 0.2


def time(
    names: Annotated[list[str], typer.Argument(metavar="MEMBERS...", help="Members to time.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="timing.json to write, for `committee plan --timing`.")
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Rows per call, with commas; none beyond what a member takes in one call.")
    ] = ",".join(map(str, BATCHES)),
    rounds: Annotated[
        int, typer.Option(min=1, help="Times that every member is asked with every batch, in turns.")
    ] = 11,
    slot_ms: Annotated[
        float, typer.Option(min=0, help="How long a batch is repeated within a round; once at least.")
    ] = 20.0,
    threads: Annotated[int, typer.Option(min=1, help="Of each member in this process.")] = 1,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows to ask about, as for `committee record`; if none, rows of ones.", show_default=False
        ),
    ] = None,
    length: Annotated[
        int, typer.Option(min=1, help="Without --data: values along an axis that varies, words of a text.")
    ] = 64,
    column: Annotated[str | None, typer.Option(help="Array or column that holds the rows.")] = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    missing_as_nan: MissingOption = False,
    derive: DeriveOption = None,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the members.")] = Path(
        "model_repository"
    ),
    url: Annotated[
        str | None,
        typer.Option(help=f"gRPC endpoint of a Triton that is asked instead of this process: {ADDRESS}"),
    ] = None,
    served: Annotated[
        bool,
        typer.Option(
            "--served", help="Serve the members here, with a cascade of two of them, and ask that server."
        ),
    ] = False,
    cascade: Annotated[
        str | None,
        typer.Option(help="With --url: a cascade of these members that is served there, to time what it adds."),
    ] = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest wait for a server's answer.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the timing as JSON.")] = False,
) -> None:
    """Measure milliseconds per call of members at each batch, in turns, and what the runtime adds.

    In this process that is ONNX Runtime, and the runtime's part is the time of its decisions. With --served or
    --url a server's members are asked, one request at a time, and a cascade of them, which shows what a first
    and a later stage add. Nothing else should run on the machine meanwhile.

    Example: committee time digits_small digits_medium digits_large --batches 1,4,16,64 -o build/timing.json

    As served: committee time digits_small digits_large --served -o build/served.json
    """
    check_timing_output(output)
    _check_server(url, served=served, cascade=cascade)
    server = None if url is None else endpoint_from_options(url, ca=ca, cert=cert, key=key, header=header)
    names_of_columns = ColumnNames(
        column=column, text=text, columns=listed_names(columns), missing_as_nan=missing_as_nan
    )
    options = TimeOptions(
        batches=batches_from_text(batches),
        rounds=rounds,
        slot_ms=slot_ms,
        length=length,
        threads=threads,
        data=None if data is None else RecordOptions(data=data, skip_bad=True, columns=names_of_columns),
        derive=listed_names(derive),
    )
    members = listed_names(names)
    with contextlib.ExitStack() as stack:
        found: ServedCascade | None = None
        if served:
            found = stack.enter_context(own_server(members, repository, derive=options.derive))
        elif server is not None and cascade is not None:
            found = cascade_of(repository, cascade, server, [*members, *options.derive])
        asked = server if found is None else found.url
        timing = time_members(
            members, repository, options, url=asked, cascade=found, timeout_s=timeout_s, progress=progress
        )
    write_timing(output, timing)
    if as_json:
        print_json(value_from_json(json_from_timing(timing)))
    else:
        show_timing(timing, output=output)
    for note in timing_notes(timing):
        typer.echo(f"note: {note}", err=True)


def _check_server(url: str | None, *, served: bool, cascade: str | None) -> None:
    """Refuses options about a server that do not fit together."""
    if served and url is not None:
        raise DataError("time", got="--served and --url", expected="one of them")
    if cascade is not None and url is None:
        raise DataError("time --cascade", got=cascade, expected="--url with it: the server that has it")


def check_timing_output(output: Path | None) -> None:
    """Refuses a folder as output, before anything is measured."""
    if output is not None and output.is_dir():
        raise DataError(f"timing {output}", got="a folder", expected="a file, such as timing.json")


def batches_from_text(text: str) -> tuple[int, ...]:
    """Numbers with commas between them, ascending, each once."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise DataError("--batches", got=text or "nothing", expected="whole numbers with commas, such as 1,8,32")
    return tuple(sorted({int(word) for word in words}))


def write_timing(output: Path | None, timing: Timing) -> None:
    """Writes a timing where one is wanted, its folder made where it is missing."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, json_from_timing(timing))


def show_timing(timing: Timing, *, output: Path | None) -> None:
    """The timing for people."""
    asked = timing.asked if timing.is_served else f"{timing.asked}, {timing.threads} threads each"
    table = new_table(
        f"{asked}; {timing.machine.words}",
        ("member", "batch", "ms per call", "quartiles", "ms per row"),
        left="member",
    )
    for line in lines_of_timing(timing):
        table.add_row(*line)
    stdout_console().print(table)
    errors = [error for one in timing.members if (error := interpolation_error(one.calls)) is not None]
    if errors:
        typer.echo(f"a batch held out lies at most {max(errors):.0%} off the line between its neighbours")
    for one in timing.members:
        if one.memory_bytes is not None:
            typer.echo(f"{one.name}: {one.memory_bytes / 2**20:,.1f} MiB of memory")
    if output is not None:
        typer.echo(f"Written: {output}")


def timing_notes(timing: Timing) -> Sequence[str]:
    """Members whose times do not lie near lines between the measured batches, and what could not be measured."""
    errors = {one.name: interpolation_error(one.calls) for one in timing.members}
    notes = [
        f"{name}: a batch held out lies {error:.0%} off the line between its neighbours; "
        "name more --batches, or time on a machine that is idle"
        for name, error in errors.items()
        if error is not None and error > MUCH_OFF
    ]
    unknown = [one.name for one in timing.members if one.memory_bytes is None]
    if unknown:
        text = "not known of models without a process of their own on this machine"
        notes.append(f"memory of {', '.join(unknown)}: {text}")
    return notes
