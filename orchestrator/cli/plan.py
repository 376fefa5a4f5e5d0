"""`committee plan`: choose members, order and thresholds from records."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.console import progress
from orchestrator.cli.plan_pool import pool_from_records, restricted
from orchestrator.cli.plan_show import (
    check_output,
    echo_notes,
    show_imposed,
    show_json,
    show_plan,
    write_plan,
    write_plan_report,
)
from orchestrator.commandline import with_options
from orchestrator.errors import DataError, InfeasibleError
from orchestrator.planner import impose
from orchestrator.planner.chance import check_above_chance, notes_on_records
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from orchestrator.planner.records import records_from_path
from orchestrator.planner.subset_table import MOST_MEMBERS
from orchestrator.spec import COMBINES, SCORES, CascadeSpec

CALIBRATE = ("auto", "off")


def plan(
    records_path: Annotated[Path, typer.Argument(metavar="RECORDS", help="Records made by `committee record`.")],
    name: Annotated[str, typer.Option(help="Name of the cascade.")] = "cascade",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="cascade.json to write.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Cheapest plan with at least this accuracy.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Cheapest plan at most --epsilon worse than this member, or than `ensemble`: all of them, in the "
            f"mode of --combine that comes first in {', '.join(COMBINES)}. With a budget: the most accurate plan "
            "within it, held to the same."
        ),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="How much worse than the reference is still good.")] = None,
    max_mean_cost: Annotated[
        float | None, typer.Option(help="Most accurate plan with at most this mean cost per row.")
    ] = None,
    max_mean_cost_share: Annotated[
        float | None, typer.Option(help="The same as a share of the dearest member's cost.")
    ] = None,
    max_worst_cost: Annotated[
        float | None, typer.Option(help="Most that any row may cost: the sum of the members' costs.")
    ] = None,
    max_stages: Annotated[
        int | None, typer.Option(help="Longest cascade looked at, 1 to 4; 4 if none is given.", show_default=False)
    ] = None,
    label_free: Annotated[
        bool,
        typer.Option(
            "--label-free",
            help="Look at no labels: agreement with the reference (if none is named, the dearest member) counts.",
        ),
    ] = False,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify/--no-certify",
            help="Keep half of the rows to certify the plan, or choose on all rows and promise nothing.",
        ),
    ] = True,
    delta: Annotated[float, typer.Option(help="Chance that the guarantee does not hold.")] = 0.05,
    calibrate: Annotated[
        str, typer.Option(help="auto: temperatures are kept where they make a better plan. off: none are tried.")
    ] = "auto",
    combine: Annotated[
        str, typer.Option(help=f"Some of {', '.join(COMBINES)}, with commas, or all.")
    ] = "mean_logit",
    score: Annotated[str, typer.Option(help=f"Some of {', '.join(SCORES)}, with commas, or all.")] = "max_prob",
    gears: Annotated[
        int,
        typer.Option(
            min=0, max=8, help="Cheaper thresholds to shift to while more comes in than the plan can serve."
        ),
    ] = 0,
    members: Annotated[str | None, typer.Option(help="Choose from these only, with commas.")] = None,
    cost: Annotated[
        Path | None,
        typer.Option(help='Costs per row: {"cost": {"member": 1.5}, "unit": "ms"}. If none, the records\' own.'),
    ] = None,
    allow_near_chance: Annotated[
        bool,
        typer.Option("--allow-near-chance", help="Write a plan too whose accuracy is near that of guessing."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split in rows that choose and rows that certify.")] = 0,
    impose_exits: Annotated[
        str | None,
        typer.Option(
            help="For cost and speed work: shares of rows that exit at each stage but the last, such as 0.7,0.15; "
            "the stages are the recorded members in their order. No accuracy is computed."
        ),
    ] = None,
    header_pattern: Annotated[
        str | None,
        typer.Option(
            help="Request parameters with such names are headers that Triton forwards, and passed over: a regular "
            "expression, as its own options take it. If none: names with a dash, and registered ones of one word."
        ),
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository with the members' manifests.")] = Path(
        "model_repository"
    ),
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for a report: one page to read and try thresholds on, and its pictures."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Find the best committee for an accuracy or a budget, certify it, and write it as cascade.json.

    A plan that is near guessing is refused: most often the labels are in another order than the members' classes.
    Exit code 3 means that no plan does what was asked; --json then holds the best reachable one.

    Example: committee plan build/plan.npz --reference big_model --epsilon 0.01 --report build/report -o plan.json
    """
    check_output(output, inputs=[records_path, cost])
    if calibrate not in CALIBRATE:
        raise DataError("plan --calibrate", got=calibrate, expected=" or ".join(CALIBRATE))
    records = restricted(records_from_path(records_path), members)
    pool = pool_from_records(records, repository, name=name, cost=cost)
    base = dataclasses.replace(pool.spec, header_pattern=header_pattern)
    budget = _budget(base, max_mean_cost, max_mean_cost_share)
    options = SearchOptions(
        combines=_words("--combine", combine, COMBINES),
        scores=_words("--score", score, SCORES),
        seed=seed,
        calibrate=calibrate == "auto",
        gears=gears,
    )
    if impose_exits is not None:
        goal_options = (min_accuracy, reference, epsilon, budget, max_worst_cost, max_stages, label_free or None)
        _check_no_goal(goal_options, report=report)
        spec = impose.impose_exits(
            dataclasses.replace(base, combine=options.combines[0], score=options.scores[0]),
            records,
            exit_share=_shares(impose_exits),
            random_weights=pool.random_weights,
        )
        write_plan(output, spec)
        show_imposed(spec, output=output, as_json=as_json)
        echo_notes(pool.notes)
        return
    goal = Goal(
        min_accuracy=min_accuracy,
        reference=reference,
        epsilon=epsilon,
        max_mean_cost=budget,
        max_worst_cost=max_worst_cost,
        max_stages=MOST_MEMBERS if max_stages is None else max_stages,
        label_free=label_free,
        delta=delta,
        certify=certify,
    )
    found = plan_from_records(
        base, records, goal, options=options, random_weights=pool.random_weights, progress=progress
    )
    on_chance = [] if label_free else [with_options(note) for note in notes_on_records(records)]
    # Before anything is refused, which they often explain.
    echo_notes(on_chance)
    if isinstance(found, PlanResult):
        if not (label_free or allow_near_chance):
            assert found.spec.fit is not None
            check_above_chance(records, accuracy=found.accuracy, rows=found.spec.fit.rows)
        write_plan_report(report, found, records)
        write_plan(output, found.spec)
    if as_json:
        show_json(found, notes=[*on_chance, *pool.notes])
    if isinstance(found, Infeasible):
        left = None if report is None else "no report was written"
        fix = "; ".join(text for text in (found.unmet.fix, left) if text is not None)
        raise InfeasibleError("plan", got=found.unmet.got, expected=found.unmet.expected, fix=fix or None)
    if not as_json:
        show_plan(found, output=output, report=report)
    echo_notes(pool.notes)


def _check_no_goal(options: Sequence[object], *, report: Path | None) -> None:
    """Refuses options that have no meaning beside an imposed exit mix; None stands for one that is not given."""
    if report is not None:
        raise DataError("plan", got="--impose-exits and --report", expected="one of them")
    if any(option is not None for option in options):
        raise DataError("plan", got="--impose-exits and a goal", expected="one of them")


def _words(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a list with commas, in the order of the known ones; `all` is all of them."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return known
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise DataError(
            f"plan {option}", got=", ".join(unknown) or "nothing", expected=f"some of {', '.join(known)}"
        )
    return tuple(word for word in known if word in words)


def _budget(base: CascadeSpec, cost: float | None, share: float | None) -> float | None:
    if share is None:
        return cost
    if cost is not None:
        raise DataError("plan", got="--max-mean-cost and --max-mean-cost-share", expected="one of them")
    if not 0 < share < float("inf"):
        raise DataError("plan --max-mean-cost-share", got=f"{share:g}", expected="a finite number above 0")
    return share * max(member.cost for member in base.members)


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError("plan --impose-exits", got=text, expected="shares such as 0.7,0.15") from error
