"""`committee plan`: choose members, order and thresholds from records."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from orchestrator.cli.console import DeriveOption, listed_names, new_table, print_json, progress, stdout_console
from orchestrator.cli.plan_clock import ClockOptions, show_clock
from orchestrator.cli.plan_pool import pool_from_records, restricted
from orchestrator.commandline import with_options
from orchestrator.errors import DataError, InfeasibleError
from orchestrator.files import nearest_existing
from orchestrator.planner import replay
from orchestrator.planner.candidates import MOST_MEMBERS
from orchestrator.planner.clock import ClockPricing
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.intervals import check_above_chance, notes_on_records
from orchestrator.planner.plan import FrontierPoint, Infeasible, PlanResult, plan_from_records
from orchestrator.planner.predict import predicted_plan
from orchestrator.planner.records import NON_FINITE, Records, records_from_path
from orchestrator.repository.files import write_all
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, Gear, Gears, json_from_cascade
from orchestrator.spec.cascade import MEMBER_TIMEOUT_MS, UNKNOWN_INPUT
from orchestrator.spec.request import NON_FINITE_INPUT, InputSpec

# Lines of the frontier that fit on a screen beside the plan.
FRONTIER_LINES = 12
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
    timing: Annotated[
        Path | None,
        typer.Option(
            help="Plan by the clock: timing.json of `committee time`, with --batch or --rate. Costs are ms."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Offline: rows per call; deferred rows gather until they fill one.")
    ] = None,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="With --batch: one call at a time, so that deferred rows do not gather."),
    ] = False,
    rate: Annotated[float | None, typer.Option(help="Online: rows per second, at random times.")] = None,
    servers: Annotated[
        int | None,
        typer.Option(help="With --rate: machines that share it; 1 if none is given.", show_default=False),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(help="With --rate: cores of each; if none is given those of the timed machine.")
    ] = None,
    allow_near_chance: Annotated[
        bool, typer.Option("--allow-near-chance", help="Write a plan too whose accuracy is near that of guessing.")
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
    non_finite: Annotated[
        str,
        typer.Option(
            help="What the cascade does with rows that hold NaN or infinity. reject: refuses them. pass: asks the "
            "members, as trees that know missing values want it."
        ),
    ] = "reject",
    member_timeout_ms: Annotated[
        int,
        typer.Option(
            help="How long a stage waits for its members; then it has failed for those without an answer."
        ),
    ] = MEMBER_TIMEOUT_MS,
    repository: Annotated[Path, typer.Option(help="Model repository with the members' manifests.")] = Path(
        "model_repository"
    ),
    derive: DeriveOption = None,
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

    By the clock: committee plan build/plan.npz --min-accuracy 0.95 --timing timing.json --batch 32 -o plan.json
    """
    check_output(output, inputs=[records_path, cost, timing])
    clock = ClockOptions(timing=timing, batch=batch, alone=alone, rate=rate, servers=servers, cores=cores)
    clock.check(cost=cost)
    if calibrate not in CALIBRATE:
        raise DataError("plan --calibrate", got=calibrate, expected=" or ".join(CALIBRATE))
    records = restricted(records_from_path(records_path), members)
    pool = pool_from_records(records, repository, name=name, cost=cost, derive=listed_names(derive))
    limits = dataclasses.replace(pool.spec.limits, member_timeout_ms=member_timeout_ms)
    inputs = _inputs(pool.spec, non_finite)
    base = dataclasses.replace(pool.spec, header_pattern=header_pattern, limits=limits, inputs=inputs)
    base, pricing, on_clock = clock.applied(base, budget=max_mean_cost)
    notes = [*pool.notes, *_notes_on_missing(base, records), *on_clock]
    budget = _budget(base, max_mean_cost, max_mean_cost_share)
    options = SearchOptions(
        combines=_words("--combine", combine, COMBINES),
        scores=_words("--score", score, SCORES),
        seed=seed,
        calibrate=calibrate == "auto",
        gears=gears,
        pricing=pricing,
    )
    if impose_exits is not None:
        goal_options = (min_accuracy, reference, epsilon, budget, max_worst_cost, max_stages, label_free or None)
        _check_no_goal(goal_options, report=report)
        spec = _imposed(base, records, options, shares=impose_exits, random_weights=pool.random_weights)
        write_plan(output, spec)
        show_imposed(spec, output=output, as_json=as_json)
        echo_notes(notes)
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
        print_json(document_from_found(found, notes=[*on_chance, *notes]))
    if isinstance(found, Infeasible):
        left = None if report is None else "no report was written"
        fix = "; ".join(text for text in (found.unmet.fix, left) if text is not None)
        raise InfeasibleError("plan", got=found.unmet.got, expected=found.unmet.expected, fix=fix or None)
    if not as_json:
        show_plan(found, output=output, report=report)
    echo_notes(notes)


def _inputs(spec: CascadeSpec, non_finite: str) -> tuple[InputSpec, ...]:
    """The plan's inputs, those of floating-point numbers with what is done to NaN and infinity."""
    if non_finite not in NON_FINITE_INPUT:
        raise DataError("plan --non-finite", got=non_finite, expected=" or ".join(NON_FINITE_INPUT))
    if non_finite != "reject" and UNKNOWN_INPUT in spec.inputs:
        fix = "name the repository that holds the members with --repository"
        raise DataError("plan --non-finite", got="members whose inputs nothing describes", fix=fix)
    return tuple(
        dataclasses.replace(one, non_finite=non_finite) if "FP" in one.dtype else one for one in spec.inputs
    )


def _notes_on_missing(spec: CascadeSpec, records: Records) -> list[str]:
    """A note where members were asked about rows that the cascade refuses."""
    count = records.meta.get(NON_FINITE, 0)
    if not count or not any("FP" in one.dtype and one.non_finite == "reject" for one in spec.inputs):
        return []
    text = "which the cascade refuses although the plan counts them; --non-finite pass takes them"
    return [f"the members were recorded over {count} rows with NaN or infinity, {text}"]


def _check_no_goal(options: Sequence[object], *, report: Path | None) -> None:
    """Refuses options that have no meaning beside an imposed exit mix; None stands for one that is not given."""
    clashing = "--report" if report is not None else "a goal"
    if report is not None or any(option is not None for option in options):
        raise DataError("plan", got=f"--impose-exits and {clashing}", expected="one of them")


def _imposed(
    base: CascadeSpec, records: Records, options: SearchOptions, *, shares: str, random_weights: Sequence[str]
) -> CascadeSpec:
    """The pool as a cascade with imposed exits, with a prediction where it is planned by the clock."""
    spec = replay.impose_exits(
        dataclasses.replace(base, combine=options.combines[0], score=options.scores[0]),
        records,
        exit_share=_shares(shares),
        random_weights=random_weights,
    )
    return predicted_plan(spec, options.pricing) if isinstance(options.pricing, ClockPricing) else spec


def _words(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a list with commas, in the order of the known ones; `all` is all of them."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return known
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        expected = f"some of {', '.join(known)}"
        raise DataError(f"plan {option}", got=", ".join(unknown) or "nothing", expected=expected)
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


def document_from_found(found: PlanResult | Infeasible, *, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The document of --json; where no plan does what was asked, it is of the best reachable one.

    `reason` says why no plan does what was asked, or none but the reference itself; `more_rows` is how many
    more rows would change that, null where no number is known. `notes` go to stderr as well.
    """
    plan = found.best if isinstance(found, Infeasible) else found
    reason = found.unmet if isinstance(found, Infeasible) else found.fallback_reason
    document = {
        "feasible": isinstance(found, PlanResult),
        "plan": json.loads(json_from_cascade(plan.spec)),
        "accuracy": plan.accuracy,
        "accuracy_lower": plan.accuracy_lower,
        "mean_cost": plan.mean_cost,
        "worst_cost": plan.spec.worst_cost,
        "exit_share": list(plan.exit_share),
        "frontier": [dataclasses.asdict(point) for point in plan.frontier],
        "reason": None if reason is None else {"got": reason.got, "expected": reason.expected, "fix": reason.fix},
        "more_rows": None if reason is None else reason.more_rows,
        "notes": list(notes),
    }
    # Beside the plan, which has it too, because what is predicted is what was asked for.
    timing = {} if plan.spec.fit is None else plan.spec.fit.extra.get("timing")
    return {**document, "timing": timing} if timing else document


def echo_notes(notes: Sequence[str]) -> None:
    """Notes on stderr, one line each."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def show_plan(plan: PlanResult, *, output: Path | None, report: Path | None) -> None:
    """The plan, its guarantee and its frontier for people, and which files were written."""
    spec, console = plan.spec, stdout_console()
    assert spec.fit is not None
    extra = spec.fit.extra
    # What accuracy counts: right answers, or agreement with a reference.
    noun = f"agreement with {extra['agreement']['reference']}" if "agreement" in extra else "accuracy"
    console.print(_stages_table(plan))
    lower = "" if plan.accuracy_lower is None else f", at least {plan.accuracy_lower:.4f} by the certify part"
    typer.echo(
        f"{noun} {plan.accuracy:.4f} on {spec.fit.rows} search rows{lower}; "
        f"mean cost {plan.mean_cost:,.6g} {spec.cost_unit}, worst {spec.worst_cost:,.6g}"
    )
    if "timing" in extra:
        show_clock(extra["timing"], is_fallback=plan.fallback_reason is not None)
    if "guarantee" in extra:
        said = "{statement} ({losses} of {rows} certify rows {counted}, {method})".format(**extra["guarantee"])
        typer.echo(f"guarantee: {said}")
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
    cost = f"{spec.fit.mean_cost:,.6g} {spec.cost_unit}"
    typer.echo(f"{where}{stages}, exits {got} imposed, mean cost {cost}; no accuracy")
    if "timing" in spec.fit.extra:
        show_clock(spec.fit.extra["timing"], is_fallback=True)


def _stages_table(plan: PlanResult) -> Table:
    title = f"{plan.spec.name}: {plan.spec.combine}, {plan.spec.score}"
    table = new_table(title, ("stage", "members", "exits at", "exit share", "cost"), left="members")
    for place, (stage, share) in enumerate(zip(plan.spec.stages, plan.exit_share, strict=True)):
        threshold = "always" if stage.threshold is None else f">= {stage.threshold:.6f}"
        names = " + ".join(member.name for member in stage.members)
        table.add_row(str(place), names, threshold, f"{share:.1%}", f"{stage.cost:,.6g}")
    return table


def _gears_table(plan: PlanResult, gears: Gears) -> Table:
    table = new_table("gears", ("gear", "exits at", "accuracy", "mean cost", "exit shares"), left="")
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
    title = "plans nothing beats on the search part"
    table = new_table(title, (noun, "mean cost", "worst cost", "stages"), left="stages")
    step = max(1, -(-len(frontier) // FRONTIER_LINES))
    for point in (*frontier[:-1:step], *frontier[-1:]):
        stages = " -> ".join("+".join(stage) for stage in point.stages)
        table.add_row(f"{point.accuracy:.4f}", f"{point.mean_cost:,.6g}", f"{point.worst_cost:,.6g}", stages)
    return table


def check_output(output: Path | None, *, inputs: Sequence[Path | None]) -> None:
    """Refuses an output that would overwrite an input, or has no folder to be in.

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
        got, fix = f"no package {error.name}", "pip install committee[plan]"
        raise DataError("plan --report", got=got, expected="it installed", fix=fix) from error
    write_report(
        folder,
        found.spec,
        dataclasses.replace(records, cost={member.name: member.cost for member in found.pool}),
        frontier=found.frontier,
        pool=found.pool,
        progress=progress,
    )
