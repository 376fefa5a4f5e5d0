"""How a plan is shown, to people and to programs, and where plan and report are written."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.table import Table

from orchestrator.cli.console import print_json, progress, stdout_console
from orchestrator.errors import DataError
from orchestrator.files import nearest_existing
from orchestrator.planner.plan import FrontierPoint, Infeasible, PlanResult
from orchestrator.planner.records import Records
from orchestrator.repository.files import write_all
from orchestrator.spec import CascadeSpec, Gear, Gears, json_from_cascade

# Lines of the frontier that fit on a screen beside the plan.
FRONTIER_LINES = 12


def document_from_found(found: PlanResult | Infeasible, *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The document of --json; where no plan does what was asked, it is of the best reachable one.

    `reason` says why no plan does what was asked, or none but the reference itself; `more_rows` is how many
    more rows would change that, null where no number is known. `notes` go to stderr as well.
    """
    plan = found.best if isinstance(found, Infeasible) else found
    reason = found.unmet if isinstance(found, Infeasible) else found.fallback_reason
    return {
        "feasible": isinstance(found, PlanResult),
        "plan": json.loads(json_from_cascade(plan.spec)),
        "accuracy": plan.accuracy,
        "accuracy_lower": plan.accuracy_lower,
        "mean_cost": plan.mean_cost,
        "worst_cost": plan.worst_cost,
        "exit_share": list(plan.exit_share),
        "frontier": [dataclasses.asdict(point) for point in plan.frontier],
        "reason": None if reason is None else {"got": reason.got, "expected": reason.expected, "fix": reason.fix},
        "more_rows": None if reason is None else reason.more_rows,
        "notes": list(notes),
    }


def show_json(found: PlanResult | Infeasible, *, notes: Sequence[str] = ()) -> None:
    """One document on stdout."""
    print_json(document_from_found(found, notes=notes))


def echo_notes(notes: Sequence[str]) -> None:
    """Notes on stderr, one line each."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def show_plan(plan: PlanResult, *, output: Path | None, report: Path | None) -> None:
    """The plan, its guarantee and its frontier for people, and which files were written."""
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
    calibration = extra.get("calibration", {})
    kept = "kept" if calibration.get("kept") else "not used"
    typer.echo(f"temperatures {kept}: {calibration.get('reason')}")
    if spec.gears is not None:
        console.print(_gears_table(plan, spec.gears))
    console.print(_frontier_table(plan.frontier, noun))
    if output is not None:
        typer.echo(f"Written: {output}")
    if report is not None:
        typer.echo(f"Report: {report / 'index.html'}")


def show_imposed(spec: CascadeSpec, *, output: Path | None, as_json: bool) -> None:
    """A plan with imposed exits: its cascade.json, or a sentence."""
    if as_json:
        typer.echo(json_from_cascade(spec), nl=False)
        return
    assert spec.fit is not None
    stages = " -> ".join("+".join(member.name for member in stage.members) for stage in spec.stages)
    got = ", ".join(f"{share:.1%}" for share in spec.fit.exit_share)
    where = "" if output is None else f"{output}: "
    typer.echo(f"{where}{stages}, exits {got} imposed, mean cost {spec.fit.mean_cost:,.0f}; no accuracy")


def noun_of(spec: CascadeSpec) -> str:
    """What the accuracy of a plan counts: right answers, or agreement with a reference."""
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
    """Some points of the frontier, evenly chosen."""
    table = Table(title="plans nothing beats on the search part", box=box.SIMPLE_HEAD)
    for name in (noun, "mean cost", "worst cost", "stages"):
        table.add_column(name, justify="left" if name == "stages" else "right")
    step = max(1, -(-len(frontier) // FRONTIER_LINES))
    for point in (*frontier[:-1:step], *frontier[-1:]):
        stages = " -> ".join("+".join(stage) for stage in point.stages)
        table.add_row(f"{point.accuracy:.4f}", f"{point.mean_cost:,.6g}", f"{point.worst_cost:,.6g}", stages)
    return table


def check_output(output: Path | None, *, inputs: Sequence[Path | None]) -> None:
    """Refuses an output that would overwrite an input, or has no folder to be in.

    Args:
        output: file to write, if any.
        inputs: files that are read, those that are.

    Raises:
        DataError: naming what is there.
    """
    if output is None:
        return
    what = f"plan --output {output}"
    if output.is_dir():
        raise DataError(what, got="a folder", expected="a file, such as cascade.json")
    for path in inputs:
        # A path that does not exist cannot be the same file.
        with contextlib.suppress(OSError):
            if path is not None and output.samefile(path):
                raise DataError(what, got=f"{path}, which is read", expected="another file, such as cascade.json")
    place = nearest_existing(output.parent)
    if not place.is_dir():
        raise DataError(what, got=f"{place}, a file", expected="a folder to write in")


def write_plan(output: Path | None, spec: CascadeSpec) -> None:
    """Writes a cascade.json where one is wanted, whole or not at all.

    Raises:
        RepositoryError: the disk is full, or the place cannot be written to.
    """
    if output is None:
        return
    text = json_from_cascade(spec)
    # The target of a link is replaced, not the link; a pipe or a terminal cannot be replaced and is written to.
    path = output.resolve()
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    write_all(path.parent, {path.name: text})


def write_plan_report(folder: Path | None, found: PlanResult, records: Records) -> None:
    """Writes the report of a plan where one is wanted; costs are those that were planned with.

    Raises:
        DataError: a package is missing, or the place cannot be written to.
    """
    if folder is None:
        return
    try:
        # Needs matplotlib and jinja2, which are optional.
        from orchestrator.report.page import write_report
    except ImportError as error:
        raise DataError(
            "plan --report",
            got=f"no package {error.name}",
            expected="it installed",
            fix="pip install committee[plan]",
        ) from error
    write_report(
        folder,
        found.spec,
        dataclasses.replace(records, cost={member.name: member.cost for member in found.pool}),
        frontier=found.frontier,
        pool=found.pool,
        progress=progress,
    )
