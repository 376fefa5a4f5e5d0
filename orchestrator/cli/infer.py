"""`committee infer`: ask a served model about a few rows and see what each one got and cost."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.console import (
    GRPC_URL,
    HTTP_URL,
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
    progress,
    stdout_console,
)
from orchestrator.client import connect
from orchestrator.client.answers import ServedAnswers, parameters_from_policy, status_words
from orchestrator.client.sync import SyncClient
from orchestrator.commandline import with_options
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, RepositoryError
from orchestrator.planner.replay import StageExplanation, explain_rows
from orchestrator.repository.index import cascade_in, labels_in, picture_reader, trained_columns
from orchestrator.rows.blocks import ColumnNames
from orchestrator.rows.named import NamedRow, named_rows
from orchestrator.spec import CascadeSpec
from orchestrator.spec.derived import ordered
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import ModelInfo


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """One row, its own answer, the time from sending to having it, and what each stage makes of the row."""

    named: NamedRow
    answer: ServedAnswers
    latency_ms: float
    stages: tuple[StageExplanation, ...] = ()


def infer(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ROW...",
            help="A picture (.png, .jpg, ...), a .npy file, a table (.csv, .tsv, .jsonl), digit:INDEX; text; "
            "numbers with commas; a JSON object; - for a row in each line of stdin.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Cascade, ensemble or member to ask.")],
    url: Annotated[
        list[str] | None,
        typer.Option(
            help=f"host:port, or grpcs:// or https:// before it for TLS; {GRPC_URL}, or {HTTP_URL} with --http. "
            f"{SEVERAL}",
            show_default=False,
        ),
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Ask over HTTP instead of gRPC; http:// and https:// say it too.")
    ] = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    header: Headers = None,
    text: TextOption = None,
    columns: ColumnsOption = None,
    missing_as_nan: MissingOption = False,
    min_stage: Annotated[int, typer.Option(help="No exit before this stage.")] = 0,
    max_stage: Annotated[int | None, typer.Option(help="Answer at this stage at the latest.")] = None,
    threshold_shift: Annotated[float, typer.Option(help="Added to every threshold; positive is stricter.")] = 0.0,
    deadline_us: Annotated[int | None, typer.Option(help="Answer with what is known by then.")] = None,
    gear: Annotated[
        int | None, typer.Option(help="Judge by this gear's thresholds, 0 for the plan's own, whatever the load.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest wait for one answer.")] = 30.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show what every stage makes of each row.")
    ] = False,
    repository: Annotated[
        Path, typer.Option(help="Where cascade.json lies, for pictures, class names and --explain.")
    ] = Path("model_repository"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Ask a served model about rows, one request each, so that every latency is a row's own.

    A .npy file holds one row or a batch of them. Pictures go through the `preprocess` section of the model's
    cascade.json (or a member's manifest.json). A model of text is asked about the words themselves, one of a list
    of numbers about 5.1,3.5,1.4 (behind -- where the first is negative), one of several inputs about
    '{"text": "...", "age": 41}'. For whole data sets use `committee batch`.

    Example: committee infer --model digits_cascade digit:3 digit:1500 --explain

    Text: committee infer --model reviews "a sentence" "another one"
    """
    policy = Policy(
        min_stage=min_stage,
        max_stage=max_stage,
        threshold_shift=threshold_shift,
        deadline_us=deadline_us,
        gear=gear,
    )
    addresses = url or [HTTP_URL if http else GRPC_URL]
    endpoints = endpoints_from_options(addresses, ca=ca, cert=cert, key=key, header=header)
    with connect(endpoints, http=http, timeout_s=timeout_s) as client:
        info = client.metadata(model)
        spec = _plan(repository, info) if explain else None
        ignored = parameters_from_policy(policy)
        if ignored and not info.has_stages:
            typer.echo(f"note: {info.name} has no stages and ignores {', '.join(ignored)}", err=True)
        named = ColumnNames(
            text=text,
            columns=listed_names(columns),
            missing_as_nan=missing_as_nan,
            trained=trained_columns(repository, info),
        )
        rows = named_rows(sources, info, read_picture=picture_reader(repository, info), columns=named)
        for said in dict.fromkeys(note for row in rows for note in row.notes):
            typer.echo(f"note: {with_options(said)}", err=True)
        with progress(f"asking {model}", len(rows)) as advance:
            asked = []
            for row in rows:
                asked.append(_ask(client, model, row, policy=policy, spec=spec))
                advance(1)
        if (note := client.kinds.note(info)) is not None:
            typer.echo(f"note: {note}", err=True)
    labels = labels_in(repository, model, info.version)
    if as_json:
        print_json({"model": model, "rows": [_document(one, labels) for one in asked]})
        return
    console = stdout_console()
    console.print(answers_table(asked, labels, title=model))
    if spec is not None:
        console.print(stages_table(asked, labels))


def _plan(repository: Path, info: ModelInfo) -> CascadeSpec:
    spec = cascade_in(repository, info.name, info.version)
    if spec is None:
        got = f"no {repository / info.name / str(info.version) / 'cascade.json'}, the version that is served"
        fix = "name the repository with --repository; only cascades can be explained"
        raise RepositoryError(f"--explain of {info.name}", got=got, fix=fix)
    return spec


def _ask(
    client: SyncClient, model: str, named: NamedRow, *, policy: Policy, spec: CascadeSpec | None
) -> InferResult:
    start = time.perf_counter()
    try:
        answer = client.infer(model, named.row, policy=policy)
        latency_ms = (time.perf_counter() - start) * 1000
        stages: list[StageExplanation] = []
        if spec is not None:
            rows = _rows_of_members(client, spec, named.row)
            outputs = {
                one.name: client.ask(one.name, rows[one.name], version=one.version, output=one.output)
                for one in spec.members
            }
            stages = explain_rows(spec, outputs, policy=policy)
    except ClientError as error:
        # Only this process knows the user's name of the row.
        raise type(error)(f"{named.name}: {error.what}", got=error.got, fix=error.fix) from error
    return InferResult(named=named, answer=answer, latency_ms=latency_ms, stages=tuple(stages))


def _rows_of_members(client: SyncClient, spec: CascadeSpec, row: AnyRows) -> dict[str, AnyRows]:
    """What each member of a plan reads of a row; tensors that models make are made anew."""
    if spec.has_one_tensor:
        return {one.name: row for one in spec.members}
    tensors = dict(row) if isinstance(row, Mapping) else {spec.inputs[0].name: np.asarray(row)}
    for model in ordered(spec.derived, tensors)[0]:
        read = {theirs: tensors[ours] for theirs, ours in spec.tensors_of(model).items()}
        made = client.outputs(model.name, read)
        tensors |= {one.name: made[one.source or one.name] for one in model.outputs}
    return {
        one.name: {theirs: tensors[ours] for theirs, ours in spec.tensors_of(one).items()} for one in spec.members
    }


def answers_table(asked: Sequence[InferResult], labels: Sequence[str] | None, *, title: str) -> Table:
    """One line per row."""
    truths = any(one.named.truth is not None for one in asked)
    notes = any(one.answer.status[0] for one in asked)
    table = Table("row", title=title, title_justify="left")
    for name in ("label", *["true label"] * truths, "confidence", "exit stage", "cost", "latency ms"):
        table.add_column(name, justify="right")
    if notes:
        table.add_column("status")
    for one in asked:
        answer = one.answer
        truth = -1 if one.named.truth is None else one.named.truth
        table.add_row(
            escape(one.named.name),
            escape(label_text(int(answer.label[0]), labels)),
            *[escape(label_text(truth, labels))] * truths,
            f"{answer.confidence[0]:.4f}",
            str(answer.exit_stage[0]),
            f"{answer.cost[0]:,.0f}",
            f"{one.latency_ms:.2f}",
            *[status_words(int(answer.status[0]))] * notes,
        )
    return table


def stages_table(asked: Sequence[InferResult], labels: Sequence[str] | None) -> Table:
    """One line per row and stage."""
    table = Table("row", "stage", "members", title="stages", title_justify="left")
    for name in ("score", "threshold"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    table.add_column("top 3")
    for one in asked:
        for stage in one.stages:
            top = ", ".join(f"{escape(label_text(label, labels))} {p:.4f}" for label, p in stage.top)
            table.add_row(
                escape(one.named.name),
                str(stage.stage),
                " + ".join(stage.members),
                f"{stage.score:.6f}",
                "-" if stage.threshold is None else f"{stage.threshold:.6f}",
                ("answers" if stage.exits else "passes on") if stage.reached else "not asked",
                top,
                style=None if stage.reached else "dim",
            )
    return table


def label_text(label: int, labels: Sequence[str] | None) -> str:
    """The name of a class, or its number; "-" for a row without an answer."""
    if label < 0:
        return "-"
    return labels[label] if labels is not None and label < len(labels) else str(label)


def _document(one: InferResult, labels: Sequence[str] | None) -> dict[str, Any]:
    answer = one.answer
    name = one.named.name if one.named.words is None else one.named.words
    value: dict[str, Any] = {"row": name, "label": answer.label[0]}
    if labels is not None:
        value["label_name"] = label_text(int(answer.label[0]), labels)
    if one.named.truth is not None:
        value["true_label"] = one.named.truth
    value |= {name: getattr(answer, name)[0] for name in ("confidence", "exit_stage", "cost", "status")}
    value |= {"latency_ms": one.latency_ms, "probabilities": answer.probabilities[0]}
    if one.stages:
        value["stages"] = [dataclasses.asdict(stage) for stage in one.stages]
    return value
