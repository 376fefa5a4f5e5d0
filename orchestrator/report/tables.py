"""The tables of the page, as HTML. Every text is escaped here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from orchestrator.report.basis import Achieved
from orchestrator.report.data import Report
from orchestrator.report.pictures import class_name
from orchestrator.report.shares import Share
from orchestrator.report.words import between, cost_words, percent, signed, threshold_words


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell that is more than a text.

    Args:
        text: what it says.
        interval: said smaller, after it.
    """

    text: str
    interval: str


def share_cell(share: Share, digits: int = 1) -> Cell | str:
    """A share with its interval; a dash for no rows."""
    if not share.rows:
        return "-"
    return Cell(text=percent(share.value, digits), interval=between(share.interval, digits))


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, names: int = 1, marked: int | None = None
) -> str:
    """A table that scrolls sideways by itself where the window is narrow.

    Args:
        head: of the columns.
        rows: cells.
        names: so many leading columns hold names, and stand to the left.
        marked: which row is the plan.
    """
    kinds = [' class="name"' if place < names else "" for place in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, head, strict=True))
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        mark = ' class="plan"' if number == marked else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f'{escape(cell.text)} <span class="ci">{escape(cell.interval)}</span>'


def stages_table(report: Report) -> str:
    """The plan, stage by stage."""
    word = report.measure.word
    head = ("stage", "members", "stops when score ≥", "rows that stop here", f"{word} of those", "cost so far")
    rows = []
    for number, stage in enumerate(report.stages):
        last = number == len(report.stages) - 1
        low = report.spec.stages[number].low
        rule = "answers all" if last else threshold_words(stage.threshold)
        rule = rule if low is None else f"{rule}, or ≤ {low:.4f}"
        rows.append(
            (
                str(number), " + ".join(stage.members), rule, share_cell(stage.exits),
                share_cell(stage.good), cost_words(stage.total_cost, report.spec.cost_unit),
            )
        )  # fmt: skip
    return table(head, rows, names=2)


def rivals_table(report: Report) -> str:
    """The plan among members and ensembles, dearest first."""
    unit = report.spec.cost_unit
    known = [report.plan, *report.rivals]
    known.sort(key=lambda one: -(one.mean_cost if one.mean_cost is not None else -1.0))
    rows = [(one.name, _kind(one), share_cell(one.quality, 2), cost_words(one.mean_cost, unit)) for one in known]
    head = ("", "kind", report.measure.word, "mean cost per row")
    return table(head, rows, names=2, marked=known.index(report.plan))


def _kind(one: Achieved) -> str:
    return "the plan" if one.kind == "cascade" else one.kind


def frontier_table(report: Report) -> str:
    """Every plan of the frontier."""
    unit = report.spec.cost_unit
    head = ("stages", "thresholds", "combine, score", report.measure.word, "mean cost", "worst cost")
    rows = [
        (
            one.name, ", ".join(threshold_words(value) for value in one.thresholds) or "-",
            f"{one.combine}, {one.score}", share_cell(one.quality, 2),
            cost_words(one.mean_cost, unit), cost_words(one.worst_cost, unit),
        )
        for one in report.frontier
    ]  # fmt: skip
    return table(head, rows, names=3)


def classes_table(report: Report) -> str:
    """Every class, those that pay most first."""
    name = "" if report.against is None else report.against.reference.name
    head = ("class", "rows", "plan", name, "difference, points", "past the first stage")
    rows = []
    for one in report.classes:
        low, high = (signed(end, 1) for end in one.interval)
        difference = Cell(text=signed(one.difference, 1), interval=f"{low} to {high}")
        shares = (share_cell(one.right), share_cell(one.reference), difference, share_cell(one.deferred))
        rows.append((class_name(report, one.number), f"{one.right.rows:,}", *shares))
    return table(head, rows)


def temperatures_table(members: Mapping[str, Mapping[str, Any]]) -> str:
    """Temperatures with calibration errors before and after."""
    rows = [
        (
            name,
            f"{float(one['temperature']):.4g}",
            percent(float(one["ece_before"]), 2),
            percent(float(one["ece_after"]), 2),
        )
        for name, one in members.items()
    ]
    return table(("member", "temperature", "calibration error before", "after"), rows)


def facts_table(facts: Mapping[str, Any]) -> str:
    """Facts nobody wrote a sentence for."""
    return table(("fact", "value"), [(key, _fact(value)) for key, value in facts.items()], names=2)


def _fact(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
