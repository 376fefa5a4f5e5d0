"""How a plan is shown: a table and sentences for people, one document for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import typer
from rich import box
from rich.table import Table

from orchestrator.cli.console import print_json, stdout_console
from orchestrator.planner.plan import FrontierPoint, Infeasible, PlanResult
from orchestrator.spec import CascadeSpec, Gear, Gears, json_from_cascade

# Lines of the frontier that fit on a screen beside the plan.
FRONTIER_LINES = 12


def document_from_found(found: PlanResult | Infeasible, *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """What --json prints; where nothing is feasible, of the best reachable plan.

    `reason` says why no plan does what was asked, or why none but the reference itself; `more_rows` is how many
    more rows would change that, null where no number is known. `notes` is what is said on stderr as well.
    """
    plan = found.best if isinstance(found, Infeasible) else found
    short = found.unmet if isinstance(found, Infeasible) else found.fallback_reason
    return {
        "feasible": isinstance(found, PlanResult),
        "plan": json.loads(json_from_cascade(plan.spec)),
        "accuracy": plan.accuracy,
        "accuracy_lower": plan.accuracy_lower,
        "mean_cost": plan.mean_cost,
        "worst_cost": plan.worst_cost,
        "exit_share": list(plan.exit_share),
        "frontier": [dataclasses.asdict(row) for row in plan.frontier],
        "reason": None if short is None else {"got": short.got, "expected": short.expected, "fix": short.fix},
        "more_rows": None if short is None else short.more_rows,
        "notes": list(notes),
    }


def show_json(found: PlanResult | Infeasible, *, notes: Sequence[str] = ()) -> None:
    """One document on stdout."""
    print_json(document_from_found(found, notes=notes))


def show_plan(plan: PlanResult) -> None:
    """What was found, for people."""
    spec = plan.spec
    console = stdout_console()
    console.print(_stages_table(plan))
    noun = noun_of(spec)
    lower = "" if plan.accuracy_lower is None else f", at least {plan.accuracy_lower:.4f} by the certify part"
    typer.echo(
        f"{noun} {plan.accuracy:.4f} on {_rows(spec)} search rows{lower}; "
        f"mean cost {plan.mean_cost:,.6g} {spec.cost_unit}, worst {plan.worst_cost:,.6g}"
    )
    extra = {} if spec.fit is None else spec.fit.extra
    guarantee = extra.get("guarantee")
    if guarantee is not None:
        typer.echo(
            f"guarantee: {guarantee['statement']} "
            f"({guarantee['losses']} of {guarantee['rows']} certify rows {guarantee['counted']}, "
            f"{guarantee['method']})"
        )
    if plan.fallback_reason is not None:
        typer.echo(f"note: no plan but the reference itself could be certified: {plan.fallback_reason.text}")
    trial = extra.get("calibration", {})
    typer.echo(f"temperatures {'kept' if trial.get('kept') else 'not used'}: {trial.get('reason')}")
    if spec.gears is not None:
        console.print(_gears_table(plan, spec.gears))
    console.print(_frontier_table(plan.frontier, noun))


def noun_of(spec: CascadeSpec) -> str:
    """What the accuracy of a plan is."""
    extra = {} if spec.fit is None else spec.fit.extra
    agreement = extra.get("agreement")
    return "accuracy" if agreement is None else f"agreement with {agreement['reference']}"


def _rows(spec: CascadeSpec) -> int:
    return 0 if spec.fit is None else spec.fit.rows


def _stages_table(plan: PlanResult) -> Table:
    table = Table(title=f"{plan.spec.name}: {plan.spec.combine}, {plan.spec.score}", box=box.SIMPLE_HEAD)
    for name in ("stage", "members", "exits at", "exit share", "cost"):
        table.add_column(name, justify="left" if name == "members" else "right")
    for place, (stage, share) in enumerate(zip(plan.spec.stages, plan.exit_share, strict=True)):
        threshold = "always" if stage.threshold is None else f">= {stage.threshold:.6f}"
        names = " + ".join(member.name for member in stage.members)
        table.add_row(str(place), names, threshold, f"{share:.1%}", f"{stage.cost:,.6g}")
    return table


def _gears_table(plan: PlanResult, gears: Gears) -> Table:
    table = Table(title="gears", box=box.SIMPLE_HEAD)
    for name in ("gear", "exits at", "accuracy", "mean cost", "exit shares"):
        table.add_column(name, justify="right")
    own = Gear(
        thresholds=tuple(stage.threshold for stage in plan.spec.stages[:-1]),
        mean_cost=plan.mean_cost,
        accuracy=plan.accuracy if gears.cheaper[0].accuracy is not None else None,
        exit_share=plan.exit_share,
    )
    for number, gear in enumerate((own, *gears.cheaper)):
        table.add_row(
            str(number),
            ", ".join("never" if t is None else f"{t:.6f}" for t in gear.thresholds),
            "-" if gear.accuracy is None else f"{gear.accuracy:.4f}",
            f"{gear.mean_cost:,.6g}",
            " ".join(f"{share:.1%}" for share in gear.exit_share),
        )
    return table


def _frontier_table(frontier: Sequence[FrontierPoint], noun: str) -> Table:
    """An even choice of the frontier."""
    table = Table(title="plans nothing beats on the search part", box=box.SIMPLE_HEAD)
    for name in (noun, "mean cost", "worst cost", "stages"):
        table.add_column(name, justify="left" if name == "stages" else "right")
    step = max(1, -(-len(frontier) // FRONTIER_LINES))
    for row in (*frontier[:-1:step], *frontier[-1:]):
        stages = " -> ".join("+".join(stage) for stage in row.stages)
        table.add_row(f"{row.accuracy:.4f}", f"{row.mean_cost:,.6g}", f"{row.worst_cost:,.6g}", stages)
    return table
