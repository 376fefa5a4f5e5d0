"""A pool of members from records alone: what is known of members that lie in no repository."""

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import DataError
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.members import check_probabilities, kind_seen
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.progress import Progress, no_progress
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.cascade import UNKNOWN_INPUT, UNKNOWN_OUTPUT
from orchestrator.spec.planned_models import data_files_of
from orchestrator.spec.validation import NAME

# Rows of one call where neither a manifest nor a configuration says how many a member takes.
USUAL_BATCH = 64
# Letters of a name no plan can have that an error shows.
_WRONG_NAME_LETTERS = 40


def check_names(records: Records) -> None:
    """Refuses members that no plan can name.

    Raises:
        DataError: with their names.
    """
    bad = [repr(name[:_WRONG_NAME_LETTERS]) for name in records.outputs if NAME.match(name) is None]
    if bad:
        got = f"members named {', '.join(bad)}"
        raise DataError("records", got=got, expected="up to 128 letters, digits, '_', '.', '-'")


def meta_of_members(records: Records) -> dict[str, dict[str, Any]]:
    """Member name -> what the records' meta says of it; members it does not mention are missing.

    Raises:
        DataError: the meta has another form.
    """
    known = records.meta.get("members", {})
    if not isinstance(known, dict) or any(not isinstance(facts, dict) for facts in known.values()):
        raise DataError("records", got="meta whose members are no objects", expected='{"members": {name: {...}}}')
    return known


def recorded_member(
    name: str, records: Records, facts: Mapping[str, Any], *, cost: float, max_batch_size: int = USUAL_BATCH
) -> Member:
    """A member as the records know it; whether its scores are logits is told from them where nobody says it.

    Args:
        name: of the member.
        records: of it.
        facts: what the records' meta says of it.
        cost: per row.
        max_batch_size: rows of one call.
    """
    return Member(
        name=name,
        output=facts.get("output") or UNKNOWN_OUTPUT,
        output_kind=facts.get("output_kind") or kind_seen(records.outputs[name]),
        cost=cost,
        max_batch_size=max_batch_size,
        sha256=facts.get("sha256"),
        data_files=data_files_of(facts.get("data_files") or {}),
    )


def plan(
    records: Records,
    goal: Goal,
    *,
    name: str = "cascade",
    options: SearchOptions | None = None,
    progress: Progress = no_progress,
) -> PlanResult | Infeasible:
    """The best plan for a goal, chosen from all recorded members.

    Tensors, class names and versions, which records do not know, are filled in when the plan is rendered.

    Args:
        records: n rows of every member, with costs in one unit.
        goal: what is wanted.
        name: of the cascade.
        options: how to search.
        progress: shows what takes long.

    Returns:
        the plan, or why there is none and the nearest one.

    Raises:
        DataError: records that cannot be planned with for this goal.
    """
    check_names(records)
    known = meta_of_members(records)
    members = [
        recorded_member(member, records, known.get(member, {}), cost=records.cost[member])
        for member in records.outputs
    ]
    for member in members:
        if member.output_kind == "probabilities":
            check_probabilities(member.name, records.outputs[member.name], records.ids)
    base = CascadeSpec(
        name=name,
        input=UNKNOWN_INPUT,
        classes=records.classes,
        cost_unit=str(records.meta.get("cost_unit", "MACs")),
        stages=tuple(Stage(members=(member,)) for member in members),
    )
    return plan_from_records(base, records, goal, options=options, progress=progress)
