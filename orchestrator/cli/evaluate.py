"""`committee evaluate`: a plan on records that had no say in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from orchestrator.cli.console import print_json, stdout_console
from orchestrator.planner.evaluate import Evaluation, Route, check_reference
from orchestrator.planner.evaluate import evaluate as evaluate_plan
from orchestrator.planner.records import records_from_path
from orchestrator.spec import CascadeSpec, cascade_from_path


def evaluate(
    plan_path: Annotated[Path, typer.Argument(metavar="PLAN", help="cascade.json made by `committee plan`.")],
    records_path: Annotated[Path, typer.Argument(metavar="RECORDS", help="Records of rows kept aside.")],
    reference: Annotated[
        str | None, typer.Option(help="Recorded member to compare with; the most accurate one if none is named.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Replay a plan over recorded outputs: accuracy, cost and exits beside every member alone.

    Nothing is chosen here, so on rows the plan has not seen the numbers are those to expect of it. No model is
    asked: the answers are computed by the code that serves them.

    Example: committee evaluate build/cascade.json build/test.npz --reference big_model
    """
    spec = cascade_from_path(plan_path)
    records = records_from_path(records_path)
    check_reference(records, reference)
    found = evaluate_plan(spec, records, reference=reference)
    if as_json:
        print_json({**dataclasses.asdict(found), "cost_unit": spec.cost_unit})
        return
    _show(found, spec)


def _show(found: Evaluation, spec: CascadeSpec) -> None:
    table = Table(title=f"{found.rows} rows, costs in {spec.cost_unit} per row", box=box.SIMPLE_HEAD)
    for name in ("", "accuracy", "95 % interval", "mean cost", "exits"):
        table.add_column(name, justify="left" if not name else "right")
    for route in (*found.members, found.cascade):
        table.add_row(*_cells(route))
    stdout_console().print(table)
    low, high = found.difference_ci95
    cheaper = "" if found.cost_factor is None else f"; it costs {found.cost_factor:.2f} times less"
    typer.echo(
        f"{spec.name} minus {found.reference}: {found.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, "
        f"{found.gains} gains, {found.losses} losses){cheaper}"
    )
    if found.rows_of_the_plan:
        note = "the plan was chosen on these rows or some of them, so its numbers flatter it"
        typer.echo(f"note: {note}; evaluate it on others")


def _cells(route: Route) -> tuple[str, ...]:
    low, high = route.accuracy_ci95
    cost = "-" if route.mean_cost is None else f"{route.mean_cost:,.6g}"
    exits = "/".join(f"{share:.1%}" for share in route.exit_share) if len(route.exit_share) > 1 else "-"
    return route.name, f"{route.accuracy:.4f}", f"{low:.4f}-{high:.4f}", cost, exits
