"""Numbers in words, and the columns of each claim's table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.report.words import times_between, times_words

Line = dict[str, Any]
Column = tuple[str, Callable[[Line], str]]
NOTHING = "-"


def percent(share: float) -> str:
    """An accuracy."""
    return f"{100 * share:.2f}"


def points(difference: float) -> str:
    """A difference of accuracies, in percentage points."""
    return f"{100 * difference:+.2f}"


def times(factor: float) -> str:
    """A ratio."""
    return f"{factor:.2f}"


def fewer_macs(factor: float) -> str:
    """How many times fewer MACs, or more, where the other's are `factor` times these."""
    return times_words(factor, noun="MACs", form=".2f")


def fewer_macs_ranged(line: Line) -> str:
    """The same with its interval, of a line."""
    factor, interval = line["macs_factor"], line["macs_factor_ci95"]
    if interval[0] == interval[1]:
        return fewer_macs(factor)
    return f"{fewer_macs(factor)} ({times_between(interval, factor, noun='MACs', form='.2f')})"


def mmacs(cost: float) -> str:
    """A cost in millions."""
    return f"{cost / 1e6:.3f}"


def ranged(value: float, interval: Sequence[float], form: Callable[[float], str]) -> str:
    """A number with its interval, or alone where it cannot vary."""
    if interval[0] == interval[1]:
        return form(value)
    return f"{form(value)} [{form(interval[0])}, {form(interval[1])}]"


def spread(value: dict[str, float]) -> str:
    """A median with the smallest and the largest of the rounds."""
    return f"{times(value['median'])} ({times(value['min'])} to {times(value['max'])})"


def _accuracy(key: str) -> Callable[[Line], str]:
    return lambda line: ranged(line[key]["accuracy"], line[key]["accuracy_ci95"], percent)


def _time(batch: int) -> Callable[[Line], str]:
    return lambda line: spread(line["time_factor"][str(batch)])


LABEL: Column = ("", lambda line: line["label"])
PLAN: Column = ("plan", lambda line: line["one"]["plan"])
OTHER: Column = ("against", lambda line: line["other"]["plan"])
ACCURACY: Column = ("accuracy %", _accuracy("one"))
OTHER_ACCURACY: Column = ("its accuracy %", _accuracy("other"))
DIFFERENCE: Column = (
    "difference, points",
    lambda line: ranged(line["difference"], line["difference_ci95"], points),
)
COST: Column = ("MMACs", lambda line: ranged(line["one"]["mean_cost"], line["one"]["mean_cost_ci95"], mmacs))
FACTOR: Column = (
    "its MACs over the plan's",
    lambda line: ranged(line["macs_factor"], line["macs_factor_ci95"], times),
)
WORST: Column = ("worst case, its MACs over the plan's", lambda line: times(line["worst_cost_factor"]))
EXITS: Column = ("exits %", lambda line: " / ".join(f"{100 * share:.1f}" for share in line["one"]["exit_share"]))
ROWS: Column = ("n", lambda line: f"{line['other']['n']:,}")


def time_column(batch: int) -> Column:
    """How many times as fast at a batch size."""
    return f"times as fast, batch {batch}", _time(batch)


def table(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    """A Markdown table; lines without a plan say why in place of it."""
    rows = [[name for name, _ in columns], ["---"] * len(columns)]
    for line in lines:
        rows.append([_cell(column, line) for column in columns])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _cell(column: Column, line: Line) -> str:
    if line["one"] is None and column not in (LABEL, OTHER, OTHER_ACCURACY, ROWS):
        return (line["note"] or NOTHING) if column is PLAN else NOTHING
    return column[1](line)


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of ready cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
