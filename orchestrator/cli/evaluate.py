"""`committee evaluate`: plans on rows they were not chosen on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from orchestrator.cli.console import new_table, print_json, stdout_console
from orchestrator.planner.records import records_from_path
from orchestrator.planner.replay import EvaluatedModel, Evaluation, PairedComparison, evaluate_plans
from orchestrator.report.words import times_words
from orchestrator.spec import CascadeSpec, cascade_from_path


class _Evaluated(NamedTuple):
    """One plan with its numbers."""

    path: Path
    # Its name, with the path where two plans have the same name.
    label: str
    spec: CascadeSpec
    found: Evaluation
    # None for the first plan.
    against: PairedComparison | None


def evaluate(
    plan_paths: Annotated[
        list[Path], typer.Argument(metavar="PLAN...", help="cascade.json of one plan or several.")
    ],
    records_path: Annotated[Path, typer.Argument(metavar="RECORDS", help="Records of rows kept aside.")],
    reference: Annotated[
        str | None, typer.Option(help="Recorded member to compare with; the most accurate one if none is named.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as JSON; of several plans a list.")
    ] = False,
) -> None:
    """Replay plans over recorded outputs: accuracy, cost and exits beside every member alone.

    Nothing is chosen here, so on rows a plan has not seen the numbers are those to expect of it. No model is
    asked: the answers are computed by the code that serves them. Several plans are put side by side, and each is
    compared with the first one row by row.

    Example: committee evaluate build/cascade.json build/other.json build/test.npz --reference big_model
    """
    specs = [cascade_from_path(path) for path in plan_paths]
    records = records_from_path(records_path)
    names = [spec.name for spec in specs]
    found = evaluate_plans(specs, records, reference=reference)
    evaluated = [
        _Evaluated(path, spec.name if names.count(spec.name) == 1 else f"{spec.name} ({path})", spec, *numbers)
        for path, spec, numbers in zip(plan_paths, specs, found, strict=True)
    ]
    if as_json:
        alone = len(evaluated) == 1
        print_json(_document(evaluated[0]) if alone else [_document_among(one) for one in evaluated])
        return
    _show(evaluated)


def _document(one: _Evaluated) -> dict[str, Any]:
    return {**dataclasses.asdict(one.found), "cost_unit": one.spec.cost_unit}


def _document_among(one: _Evaluated) -> dict[str, Any]:
    against = None if one.against is None else dataclasses.asdict(one.against)
    return {"plan": str(one.path), **_document(one), "against_first": against}


def _show(evaluated: Sequence[_Evaluated]) -> None:
    stdout_console().print(_table(evaluated))
    for one in evaluated:
        _say(one.label, one.found.reference, one.found)
    for one in evaluated:
        if one.against is not None:
            _say(one.label, evaluated[0].label, one.against)
    seen = [one.label for one in evaluated if one.found.rows_of_the_plan]
    if seen:
        alone = len(evaluated) == 1
        which = "the plan was" if alone else f"each of {', '.join(seen)} was"
        note = f"{which} chosen on these rows or some of them, so its numbers flatter it"
        typer.echo(f"note: {note}; evaluate it on others")


def _table(evaluated: Sequence[_Evaluated]) -> Table:
    """Members, then plans, one line each."""
    first = evaluated[0]
    units = list(dict.fromkeys(one.spec.cost_unit for one in evaluated))
    title = f"{first.found.rows} rows, costs in {' or '.join(units)} per row"
    table = new_table(title, ("", "accuracy", "95 % interval", "mean cost", "exits"), left="")
    for route in first.found.members:
        # Costs in two units do not belong in one column.
        table.add_row(*_cells(route if len(units) == 1 else dataclasses.replace(route, mean_cost=None)))
    for one in evaluated:
        unit = "" if len(units) == 1 else f" {one.spec.cost_unit}"
        name, accuracy, interval, cost, exits = _cells(dataclasses.replace(one.found.cascade, name=one.label))
        table.add_row(name, accuracy, interval, f"{cost}{unit}", exits)
    return table


def _say(name: str, other: str, found: Evaluation | PairedComparison) -> None:
    low, high = found.difference_ci95
    costs = "" if found.cost_factor is None else f"; it costs {times_words(found.cost_factor)}"
    typer.echo(
        f"{name} minus {other}: {found.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, "
        f"{found.gains} gains, {found.losses} losses){costs}"
    )


def _cells(route: EvaluatedModel) -> tuple[str, ...]:
    low, high = route.accuracy_ci95
    cost = "-" if route.mean_cost is None else f"{route.mean_cost:,.6g}"
    exits = "/".join(f"{share:.1%}" for share in route.exit_share) if len(route.exit_share) > 1 else "-"
    return route.name, f"{route.accuracy:.4f}", f"{low:.4f}-{high:.4f}", cost, exits
