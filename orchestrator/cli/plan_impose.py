"""`committee plan --impose-exits`: an exit mix for cost and speed work, whatever the answers are worth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import typer

from orchestrator.cli.plan_write import write_plan
from orchestrator.errors import DataError
from orchestrator.planner.impose import impose_exits
from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, json_from_cascade


def check_alone(wishes: Sequence[object], *, report: Path | None) -> None:
    """Refuses what has no meaning beside an imposed exit mix.

    Args:
        wishes: options of a goal; None where one is not given.
        report: folder for a report, if any.

    Raises:
        DataError: one of them is given.
    """
    if report is not None:
        raise DataError("plan", got="--impose-exits and --report", expected="one of them")
    if any(wish is not None for wish in wishes):
        raise DataError("plan", got="--impose-exits and a goal", expected="one of them")


def imposed(
    base: CascadeSpec,
    records: Records,
    shares: str,
    *,
    random_weights: Collection[str],
    output: Path | None,
    as_json: bool,
) -> None:
    """Finds the thresholds that give the shares, writes the plan and shows it.

    Args:
        base: the chain: all recorded members, one per stage.
        records: n rows of them.
        shares: as given on the command line, such as 0.7,0.15.
        random_weights: members that were never trained, by their manifests.
        output: cascade.json to write, if any.
        as_json: print the cascade.json instead of a sentence.
    """
    spec = impose_exits(base, records, exit_share=_shares(shares), random_weights=random_weights)
    if output is not None:
        write_plan(output, spec)
    if as_json:
        typer.echo(json_from_cascade(spec), nl=False)
        return
    assert spec.fit is not None
    stages = " -> ".join("+".join(member.name for member in stage.members) for stage in spec.stages)
    got = ", ".join(f"{share:.1%}" for share in spec.fit.exit_share)
    where = "" if output is None else f"{output}: "
    typer.echo(f"{where}{stages}, exits {got} imposed, mean cost {spec.fit.mean_cost:,.0f}; no accuracy")


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError("plan --impose-exits", got=text, expected="shares such as 0.7,0.15") from error
