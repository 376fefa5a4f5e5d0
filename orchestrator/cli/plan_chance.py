"""Members and plans near guessing: a plan of labels in another order would be certified, served, and wrong.

A member is only noted, since a search leaves it out where others are better. A plan is refused.
"""

from __future__ import annotations

from orchestrator.errors import DataError
from orchestrator.planner.chance import near_chance
from orchestrator.planner.chance_notes import Labels, accuracy_text, chance_notes, order_hint
from orchestrator.planner.plan import PlanResult
from orchestrator.planner.records import Records


def notes_on_chance(records: Records) -> list[str]:
    """Notes on recorded members whose accuracy is near guessing; none where nobody knows the labels."""
    if records.labels is None:
        return []

    def count(name: str, labels: Labels) -> int:
        return int((records.outputs[name].argmax(axis=1) == labels).sum())

    return chance_notes(
        {name: count(name, records.labels) for name in records.outputs},
        count,
        labels=records.labels,
        classes=records.classes,
        labels_by=records.meta.get("labels_by"),
    )


def refuse_near_chance(found: PlanResult, records: Records) -> None:
    """Refuses a plan whose accuracy on the search part is near guessing.

    Raises:
        DataError: it is.
    """
    assert found.spec.fit is not None
    rows = found.spec.fit.rows
    right = round(found.accuracy * rows)
    interval = near_chance(right, rows, records.classes)
    if interval is None:
        return
    raise DataError(
        "plan",
        got=f"{accuracy_text(right, rows, records.classes, interval)}",
        expected="a plan that is better than guessing",
        fix=f"{order_hint(records.meta.get('labels_by'))}; or write it all the same with --allow-near-chance",
    )
