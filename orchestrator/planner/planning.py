"""From records and a goal to a plan: split, temperatures, table, search, guarantee, each in its own module."""

from __future__ import annotations

import dataclasses

from orchestrator.errors import DataError
from orchestrator.planner.chains import Choice
from orchestrator.planner.decide import Part, decide
from orchestrator.planner.gears import gears_of
from orchestrator.planner.goal import ENSEMBLE, Goal, Options
from orchestrator.planner.records import Records, random_members
from orchestrator.planner.result import Infeasible, Origin, Planned, planned_from_decision
from orchestrator.planner.split import split_from_ids
from orchestrator.planner.table import in_cost_order, mode_of, table_from_records
from orchestrator.planner.trial import Trial, try_temperatures
from orchestrator.planner.yardstick import yardstick_of
from orchestrator.progress import Progress, no_progress
from orchestrator.spec import CascadeSpec, Gears


def plan_from_records(
    base: CascadeSpec,
    records: Records,
    goal: Goal,
    *,
    options: Options | None = None,
    progress: Progress = no_progress,
) -> Planned | Infeasible:
    """The best plan for a goal, or the best reachable one where there is none.

    Args:
        base: gives name, input, classes, labels and cost unit; its stages' members are the pool.
        records: n rows of every member of the pool.
        goal: what is wanted.
        options: how to look.
        progress: shows what takes long.

    Raises:
        DataError: records that cannot be planned with for this goal.
    """
    options = options or Options()
    goal = _checked(goal, base, records)
    share = options.certify_share if goal.certify else 0.0
    split = split_from_ids(records.ids, certify_share=share, seed=options.seed)
    trial = Trial(kept=False, reason="not asked for")
    if options.calibrate:
        trial = try_temperatures(base, records, goal, split=split, options=options, progress=progress)
        base = trial.applied(base)
    modes = len({mode_of(combine) for combine in options.combines})
    with progress("combining members", modes * records.rows) as advance:
        table = table_from_records(
            base, records, combines=options.combines, scores=options.scores, advance=advance
        )
    everything = Part(table=table, yardstick=yardstick_of(goal, table, records, combine=options.combines[0]))
    chosen_on, judged_on = everything.take(split.search), everything.take(split.certify)
    decision = decide(chosen_on, judged_on, goal, options, progress=progress)
    origin = Origin(base=base, records=records, split=split, trial=trial, goal=goal, combine=options.combines[0])
    found = planned_from_decision(decision, chosen_on, origin)
    if isinstance(found, Infeasible):
        return found
    return _geared(found, decision.choice, chosen_on, options, labelled=not goal.label_free)


def _geared(planned: Planned, choice: Choice, part: Part, options: Options, *, labelled: bool) -> Planned:
    """The plan with its cheaper gears, where some are wanted and there are any."""
    cheaper = gears_of(choice, part, count=options.gears, quantiles=options.quantiles)
    if not cheaper:
        return planned
    if not labelled:
        cheaper = tuple(dataclasses.replace(gear, accuracy=None) for gear in cheaper)
    return dataclasses.replace(planned, spec=dataclasses.replace(planned.spec, gears=Gears(cheaper=cheaper)))


def _checked(goal: Goal, base: CascadeSpec, records: Records) -> Goal:
    """The goal with its reference settled."""
    names = [member.name for member in in_cost_order(base.members)]
    if ENSEMBLE in names:
        raise DataError(
            "plan",
            got=f"a member named {ENSEMBLE}",
            expected="another name: this one means all members together",
            fix="rename it, or leave it out with --members",
        )
    random = [name for name in random_members(records) if name in names]
    if random:
        raise DataError(
            "plan",
            got=f"members with random weights, {', '.join(random)}",
            expected="trained ones: accuracy of random weights is no result",
            fix="for cost and speed work use --impose-exits",
        )
    if records.labels is None and not goal.label_free:
        fix = "record labelled data, or use --label-free to certify agreement instead"
        raise DataError("records", got="no labels", expected="labels int64 (n,)", fix=fix)
    if goal.label_free and goal.reference is None:
        goal = dataclasses.replace(goal, reference=names[-1])
    if goal.reference is not None and goal.reference not in (*names, ENSEMBLE):
        raise DataError(
            "plan --reference", got=goal.reference, expected=f"one of {', '.join(names)}, or {ENSEMBLE}"
        )
    return goal
