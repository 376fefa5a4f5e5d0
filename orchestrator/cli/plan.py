"""`committee plan`: choose members, order and thresholds from records."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import DataError, InfeasibleError
from orchestrator.planner.impose import impose
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.records import Records, random_members, records_from_path
from orchestrator.planner.search import Infeasible, Point, search
from orchestrator.spec import (
    COMBINES,
    SCORES,
    CascadeSpec,
    Fit,
    InputSpec,
    Manifest,
    Member,
    Stage,
    json_from_cascade,
    manifest_from_path,
)


def plan(
    records_path: Annotated[Path, typer.Argument(metavar="RECORDS", help="Records made by `committee record`.")],
    name: Annotated[str, typer.Option(help="Name of the cascade.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="cascade.json to write.")],
    max_mean_cost: Annotated[
        float | None, typer.Option(help="Mean cost per row allowed, in the members' cost unit.")
    ] = None,
    max_mean_cost_share: Annotated[
        float | None, typer.Option(help="The same as a share of the dearest member's cost.")
    ] = None,
    impose_exits: Annotated[
        str | None,
        typer.Option(
            help="For cost and speed work: shares of rows that exit at each stage but the last, such as 0.7,0.15; "
            "the stages are the recorded members in their order. No accuracy is computed."
        ),
    ] = None,
    combine: Annotated[str, typer.Option(help=f"One of {', '.join(COMBINES)}.")] = "mean_logit",
    score: Annotated[str, typer.Option(help=f"One of {', '.join(SCORES)}.")] = "max_prob",
    max_stages: Annotated[int, typer.Option(min=1, max=4, help="Longest cascade looked at.")] = 4,
    repository: Annotated[Path, typer.Option(help="Model repository with the members' manifests.")] = Path(
        "model_repository"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Find the most accurate cascade within a mean cost and write it as cascade.json.

    Example: committee plan build/plan.npz --name my_cascade --max-mean-cost-share 0.25 -o build/cascade.json
    """
    if output.is_dir():
        raise DataError(f"plan --output {output}", got="a folder", expected="a file, such as cascade.json")
    records = records_from_path(records_path)
    base = _pool(records, repository, name=name, combine=combine, score=score)
    if impose_exits is not None:
        if max_mean_cost is not None or max_mean_cost_share is not None:
            raise DataError("plan", got="--impose-exits and a budget", expected="one of them")
        found = impose(base, records, exit_share=_shares(impose_exits))
        target = f"imposed exits {impose_exits}"
    else:
        budget = _budget(records, max_mean_cost, max_mean_cost_share)
        found = _most_accurate(base, records, budget=budget, max_stages=max_stages)
        target = f"most accurate with mean cost <= {budget:g}, ties to the dearer"
    spec = dataclasses.replace(found.spec, fit=_fit(found, records, target=target))
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json_from_cascade(spec)
    output.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(text, nl=False)
        return
    stages = " -> ".join("+".join(member.name for member in stage.members) for stage in spec.stages)
    if found.accuracy is None:
        shares = ", ".join(f"{share:.1%}" for share in found.exit_share)
        typer.echo(f"{output}: {stages}, exits {shares} imposed, mean cost {found.mean_cost:,.0f}; no accuracy")
        return
    typer.echo(
        f"{output}: {stages}, accuracy {found.accuracy:.4f}, mean cost {found.mean_cost:,.0f} on the plan rows"
    )


def _most_accurate(base: CascadeSpec, records: Records, *, budget: float, max_stages: int) -> Point:
    random = random_members(records)
    if random:
        raise DataError(
            "plan",
            got=f"members with random weights, {', '.join(random)}",
            expected="trained ones: accuracy of random weights is no result",
            fix="for cost and speed work use --impose-exits",
        )
    found = search(base, records, max_mean_cost=budget, max_stages=max_stages)
    if isinstance(found, Infeasible):
        point = found.cheapest
        raise InfeasibleError(
            "plan",
            got=f"max mean cost {budget:g}",
            expected=f"at least {point.mean_cost:g}, where accuracy is {point.accuracy:.4f}",
        )
    return found


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError("plan --impose-exits", got=text, expected="shares such as 0.7,0.15") from error


def _budget(records: Records, cost: float | None, share: float | None) -> float:
    options = {"--max-mean-cost": cost, "--max-mean-cost-share": share}
    given = {name: value for name, value in options.items() if value is not None}
    if len(given) != 1:
        raise DataError("plan", got=" and ".join(given) or "no budget", expected=f"one of {', '.join(options)}")
    name, value = next(iter(given.items()))
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"plan {name}", got=f"{value:g}", expected="a finite number above 0")
    return value if share is None else value * max(records.cost.values())


def _pool(records: Records, repository: Path, *, name: str, combine: str, score: str) -> CascadeSpec:
    """A spec whose stages are all recorded members, one each: what the search chooses from."""
    manifests = {member: manifest_from_path(repository / member / "manifest.json") for member in records.outputs}
    first = next(iter(manifests.values()))
    known = records.meta.get("members", {})
    for member, manifest in manifests.items():
        recorded = known.get(member, {}).get("sha256", manifest.sha256)
        if recorded != manifest.sha256:
            raise DataError(f"records of {member}", got="another model file", fix="record again")
    # The records do not know it where outputs were computed elsewhere, the manifests always do.
    for member, manifest in manifests.items():
        if manifest.random_weights:
            known.setdefault(member, {})["random_weights"] = True
    records.meta["members"] = known
    return CascadeSpec(
        name=name,
        input=InputSpec(
            name=first.input.name, dtype=first.input.dtype, dims=first.input.dims, preprocess=first.preprocess
        ),
        classes=records.classes,
        labels=first.labels,
        combine=combine,
        score=score,
        stages=tuple(Stage(members=(_member(manifest),)) for manifest in manifests.values()),
    )


def _member(manifest: Manifest) -> Member:
    return Member(
        name=manifest.name,
        output=manifest.output.name,
        output_kind=manifest.output_kind,
        cost=float(manifest.macs),
        max_batch_size=manifest.max_batch_size,
        sha256=manifest.sha256,
    )


def _fit(point: Point, records: Records, *, target: str) -> Fit:
    accuracy = point.accuracy
    interval = None if accuracy is None else clopper_pearson(round(accuracy * records.rows), records.rows)
    return Fit(
        data_sha256=str(records.meta.get("data_sha256", "")),
        rows=records.rows,
        split=str(records.meta.get("data", "")),
        target=target,
        accuracy=accuracy,
        accuracy_ci95=interval,
        exit_share=point.exit_share,
        mean_cost=point.mean_cost,
        random_weights=bool(random_members(records)),
    )
