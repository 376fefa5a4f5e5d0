"""The claims as the document has them: the columns of each table, and what the table comes to in words.

What each claim asks stands in document.md.j2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from orchestrator.report.words import times_between, times_words
from perf.studies.reproduce.plans import NO_MARGIN

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
    rows = [[name for name, _ in columns], ["---"] * len(columns)]
    rows += [[_cell(one, line) for one in columns] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(column: Column, line: Line) -> str:
    if line["one"] is None and column not in _WITHOUT_PLAN:
        return (line["note"] or _NOTHING) if column is PLAN else _NOTHING
    return column[1](line)


Sentence = Callable[[Sequence[Line]], str]


def _with_plan(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["one"] is not None]


def _without_plan(lines: Sequence[Line]) -> list[str]:
    return [line["label"] for line in lines if line["one"] is None]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _surely(lines: Sequence[Line], key: str, neutral: float) -> tuple[list[Line], list[Line]]:
    """Lines whose whole interval lies above the neutral value, and those whose whole interval lies below it."""
    above = [line for line in lines if line[f"{key}_ci95"][0] > neutral]
    return above, [line for line in lines if line[f"{key}_ci95"][1] < neutral]


def _won_and_lost(what: str) -> Sentence:
    def sentence(lines: Sequence[Line]) -> str:
        found = _with_plan(lines)
        won, lost = ([line["label"] for line in some] for some in _surely(found, "difference", 0.0))
        undecided = [line["label"] for line in found if line["label"] not in (*won, *lost)]
        none = _without_plan(lines)
        return (
            f"{what}: surely more accurate (the interval is above 0) in {len(won)} of {len(found)} lines"
            f" ({_listed(won)}), surely less accurate in {len(lost)} ({_listed(lost)})"
            + (f", undecided: {_listed(undecided)}." if undecided else ".")
            + (f" No two members fit {_listed(none)}." if none else "")
        )

    return sentence


def _won_and_lost_short(lines: Sequence[Line]) -> str:
    found = _with_plan(lines)
    won, lost = _surely(found, "difference", 0.0)
    return f"Surely more accurate in {len(won)} of {len(found)} lines, surely less accurate in {len(lost)}."


def _cascades(lines: Sequence[Line]) -> str:
    """How many single models have a plan of claim 3, how much it saves, and where it loses accuracy or time."""
    found = _with_plan(lines)
    text = f"{len(found)} of {len(lines)} single models have such a plan"
    if not found:
        return text + "."
    worse = [line for line in found if line["difference"] < 0]
    sure = _surely(worse, "difference", 0.0)[1]
    text += f": {_median_macs(found)}."
    text += f" Test accuracy is lower than the single model's for {len(worse)} of {len(found)}"
    text += f", surely (the interval is below 0) for {len(sure)}." if worse else "."
    for batch in found[0].get("time_factor", ()):
        if slower := _slower(found, batch):
            text += (
                f" In batches of {batch} {slower} of {len(found)} take longer than the single model: there"
                " the decisions cost more time than networks this small save."
            )
    without = _without_plan(lines)
    return text + (f" No such plan for {_listed(without)}." if without else "")


def _cascades_short(lines: Sequence[Line]) -> str:
    strict, _ = _margin_apart(lines)
    found = _with_plan(strict)
    if not found:
        return "No single model has such a plan."
    sure = _surely(found, "difference", 0.0)[1]
    text = (
        f"{len(found)} of {len(strict)} single models have such a plan: {_median_macs(found)}."
        f" Surely less accurate on the test part: {len(sure)}."
    )
    slower = [f"{_slower(found, batch)} in batches of {batch}" for batch in found[0].get("time_factor", ())]
    return text + (f" Slower than the single model: {' and '.join(slower)}." if slower else "")


def _median_macs(found: Sequence[Line]) -> str:
    factors = [line["macs_factor"] for line in found]
    middle = float(np.median(factors))
    between = times_between((min(factors), max(factors)), middle, noun="MACs", form=".2f")
    return f"{fewer_macs(middle)} in the median, {between} in all"


def _slower(found: Sequence[Line], batch: str) -> int:
    return sum(line["time_factor"][batch]["median"] < 1 for line in found)


def _margin_apart(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Lines by the rule with the margin, and those by the rule without it."""
    level = [line for line in lines if line["label"].endswith(NO_MARGIN)]
    return [line for line in lines if line not in level], level


def _worst_case(lines: Sequence[Line]) -> str:
    """What claim 4 comes to: as `_cascades`, and what a plan without the margin would do."""
    strict, level = _margin_apart(lines)
    said = [
        f"{line['label'].removesuffix(NO_MARGIN)} {fewer_macs(line['macs_factor'])} at"
        f" {points(line['difference'])} points"
        for line in level
    ]
    return _cascades(strict) + (f" Without the margin {len(said)} more: {'; '.join(said)}." if said else "")


def _self_cascade(lines: Sequence[Line]) -> str:
    said = [
        f"{line['label']}: {fewer_macs(line['macs_factor'])}, {points(line['difference'])} points"
        for line in _with_plan(lines)
    ]
    return ("; ".join(said) or "No plan") + "."


def _self_cascade_short(lines: Sequence[Line]) -> str:
    first = lines[0]
    if first["one"] is None:
        return "No such plan."
    fewer, difference = fewer_macs(first["macs_factor"]), points(first["difference"])
    return f"{fewer} than the high resolution alone, {difference} points."


def _beside_default(key: str, neutral: float, words: tuple[str, str], form: Callable[[float], str]) -> Sentence:
    """Which lines differ from the first, the planner's defaults, by more than their interval."""

    def sentence(lines: Sequence[Line]) -> str:
        better, worse = (
            [f"{line['label']} ({form(line[key])})" for line in some]
            for some in _surely(_with_plan(lines)[1:], key, neutral)
        )
        return f"Beside the defaults, surely {words[0]}: {_listed(better)}; surely {words[1]}: {_listed(worse)}."

    return sentence


def _beside_default_short(key: str, neutral: float, words: tuple[str, str]) -> Sentence:
    def sentence(lines: Sequence[Line]) -> str:
        others = _with_plan(lines)[1:]
        better, worse = _surely(others, key, neutral)
        counts = f"surely {words[0]}: {len(better)}; surely {words[1]}: {len(worse)}"
        return f"Of {len(others)} pairs of mode and score beside the defaults, {counts}."

    return sentence


def _stages(lines: Sequence[Line]) -> str:
    said: dict[str, list[str]] = {}
    for line in lines:
        target, _, count = line["label"].partition(", ")
        factor = "no plan" if line["one"] is None else fewer_macs(line["macs_factor"])
        said.setdefault(target, []).append(f"{factor} with {count}")
    return "; ".join(f"{target}: {', '.join(parts)}" for target, parts in said.items()) + "."


def _stages_short(lines: Sequence[Line]) -> str:
    last = lines[-1]["label"].partition(", ")[0]
    return "For " + _stages([line for line in lines if line["label"].startswith(f"{last}, ")])


class ClaimSection(NamedTuple):
    """One claim in the document: the key of its lines in results.json, and what they come to, also in short.

    Columns of times are added to the table where times were measured.
    """

    claim: str
    title: str
    columns: tuple[Column, ...]
    verdict: Sentence
    short: Sentence


_VALUES = (ACCURACY, OTHER_ACCURACY, DIFFERENCE, FACTOR)
_HEAD = (LABEL, ROWS, PLAN)
_MODES = (*_HEAD, ACCURACY, COST, DIFFERENCE, FACTOR)
_CHEAPER, _BETTER = ("cheaper", "dearer"), ("more accurate", "less accurate")

SECTIONS = (
    ClaimSection(
        "1",
        "1. Two averaged models against one bigger",
        (*_HEAD, *_VALUES),
        _won_and_lost("Two averaged models against the bigger one"),
        _won_and_lost_short,
    ),
    ClaimSection(
        "2",
        "2. Ensembles against single models over the range of costs",
        (*_HEAD, *_VALUES),
        _won_and_lost("The best ensemble against the single model of its cost"),
        _won_and_lost_short,
    ),
    ClaimSection(
        "3",
        "3. Cascades against every single model at no lower accuracy",
        (*_HEAD, EXITS, *_VALUES),
        _cascades,
        _cascades_short,
    ),
    ClaimSection(
        "4",
        "4. The same with a bound on the worst case",
        (*_HEAD, EXITS, *_VALUES, WORST),
        _worst_case,
        _cascades_short,
    ),
    ClaimSection("5", "5. A self-cascade", (*_HEAD, EXITS, *_VALUES), _self_cascade, _self_cascade_short),
    ClaimSection(
        "6a",
        "6a. Combine modes and scores at the same accuracy",
        _MODES,
        _beside_default("macs_factor", 1.0, _CHEAPER, fewer_macs),
        _beside_default_short("macs_factor", 1.0, _CHEAPER),
    ),
    ClaimSection(
        "6b",
        "6b. Combine modes and scores at the same cost",
        _MODES,
        _beside_default("difference", 0.0, _BETTER, points),
        _beside_default_short("difference", 0.0, _BETTER),
    ),
    ClaimSection(
        "7", "7. Two stages against three and four", (*_HEAD, EXITS, DIFFERENCE, FACTOR), _stages, _stages_short
    ),
)
