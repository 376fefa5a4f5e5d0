"""Numbers in words, and the columns of the tables, for everything that is said of results."""

from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.report.words import times_between, times_words

Line = dict[str, Any]
Column = tuple[str, Callable[[Line], str]]
_NOTHING = "-"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.2f}"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * difference:+.2f}"


def times(factor: float) -> str:
    """A ratio."""
    return f"{factor:.2f}"


def mmacs(cost: float) -> str:
    """A cost in millions."""
    return f"{cost / 1e6:.3f}"


def fewer_macs(factor: float) -> str:
    """How many times fewer MACs, or more; `factor` is the other's MACs over these."""
    return times_words(factor, noun="MACs", form=".2f")


def fewer_macs_between(line: Line) -> str:
    """The interval of `fewer_macs`."""
    return times_between(line["macs_factor_ci95"], line["macs_factor"], noun="MACs", form=".2f")


def fewer_macs_ranged(line: Line) -> str:
    """`fewer_macs` with its interval, where it has one."""
    said = fewer_macs(line["macs_factor"])
    low, high = line["macs_factor_ci95"]
    return said if low == high else f"{said} ({fewer_macs_between(line)})"


def ranged(value: float, interval: Sequence[float], form: Callable[[float], str]) -> str:
    """A number with its interval, or alone where it cannot vary."""
    if interval[0] == interval[1]:
        return form(value)
    return f"{form(value)} [{form(interval[0])}, {form(interval[1])}]"


def accuracy(facts: dict[str, Any]) -> str:
    """Accuracy of a plan in percent, with its interval."""
    return ranged(facts["accuracy"], facts["accuracy_ci95"], percent)


def difference(line: Line) -> str:
    """Difference of accuracy in points, with its interval."""
    return ranged(line["difference"], line["difference_ci95"], points)


def exits(line: Line) -> str:
    """Shares of rows that each stage answers, in percent."""
    return " / ".join(f"{100 * share:.1f}" for share in line["one"]["exit_share"])


def spread(value: dict[str, float], form: Callable[[float], str] = times) -> str:
    """A median with the smallest and the largest of the rounds."""
    return f"{form(value['median'])} ({form(value['min'])} to {form(value['max'])})"


LABEL: Column = ("", lambda line: line["label"])
PLAN: Column = ("plan", lambda line: line["one"]["plan"])
ACCURACY: Column = ("accuracy %", lambda line: accuracy(line["one"]))
OTHER_ACCURACY: Column = ("its accuracy %", lambda line: accuracy(line["other"]))
DIFFERENCE: Column = ("difference, points", difference)
COST: Column = ("MMACs", lambda line: ranged(line["one"]["mean_cost"], line["one"]["mean_cost_ci95"], mmacs))
FACTOR: Column = (
    "its MACs over the plan's",
    lambda line: ranged(line["macs_factor"], line["macs_factor_ci95"], times),
)
WORST: Column = ("worst case, its MACs over the plan's", lambda line: times(line["worst_cost_factor"]))
EXITS: Column = ("exits %", exits)
ROWS: Column = ("n", lambda line: f"{line['other']['n']:,}")
_WITHOUT_PLAN = (LABEL, OTHER_ACCURACY, ROWS)


def time_column(batch: int) -> Column:
    """How many times as fast a plan is at a batch size."""
    return f"times as fast, batch {batch}", lambda line: spread(line["time_factor"][str(batch)])


def table(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    """A Markdown table; a line without a plan has the reason in its place."""
    return plain_table([name for name, _ in columns], [[_cell(one, line) for one in columns] for line in lines])


def _cell(column: Column, line: Line) -> str:
    if line["one"] is None and column not in _WITHOUT_PLAN:
        return (line["note"] or _NOTHING) if column is PLAN else _NOTHING
    return column[1](line)


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of ready cells."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"
