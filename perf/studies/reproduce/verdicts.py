"""What each table comes to, in a sentence made from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from orchestrator.report.words import times_between
from perf.studies.reproduce.tables import fewer_macs, points

Line = dict[str, Any]
NO_MARGIN = ", no margin"
NONE = "no plan"


def two_against_one(lines: Sequence[Line]) -> str:
    """Claim 1."""
    return _won_and_lost(lines, "Two averaged models against the bigger one")


def ensembles(lines: Sequence[Line]) -> str:
    """Claim 2."""
    return _won_and_lost(lines, "The best ensemble against the single model of its cost")


def cascades(lines: Sequence[Line]) -> str:
    """Claim 3."""
    found = _with_plan(lines)
    text = f"{len(found)} of {len(lines)} single models have such a plan"
    if not found:
        return text + "."
    factors = [line["macs_factor"] for line in found]
    worse = [line for line in found if line["difference"] < 0]
    sure = [line for line in worse if line["difference_ci95"][1] < 0]
    middle = float(np.median(factors))
    between = times_between((min(factors), max(factors)), middle, noun="MACs", form=".2f")
    text += f": {fewer_macs(middle)} in the median, {between} in all."
    text += f" Test accuracy is lower than the single model's for {len(worse)} of {len(found)}"
    text += f", surely (the interval is below 0) for {len(sure)}." if worse else "."
    for batch in found[0].get("time_factor", ()):
        slower = [line["label"] for line in found if line["time_factor"][batch]["median"] < 1]
        if slower:
            text += (
                f" In batches of {batch} {len(slower)} of {len(found)} take longer than the single model: there"
            )
            text += " the decisions cost more time than networks this small save."
    without = [line["label"] for line in lines if line["one"] is None]
    return text + (f" No such plan for {_listed(without)}." if without else "")


def worst_case(lines: Sequence[Line]) -> str:
    """Claim 4."""
    strict = [line for line in lines if not line["label"].endswith(NO_MARGIN)]
    level = [line for line in lines if line["label"].endswith(NO_MARGIN)]
    text = cascades(strict)
    if level:
        text += f" Without the margin {len(level)} more: "
        text += "; ".join(
            f"{line['label'].removesuffix(NO_MARGIN)} {fewer_macs(line['macs_factor'])} at"
            f" {points(line['difference'])} points"
            for line in level
        )
        text += "."
    return text


def self_cascade(lines: Sequence[Line]) -> str:
    """Claim 5."""
    said = [
        f"{line['label']}: {fewer_macs(line['macs_factor'])}, {points(line['difference'])} points"
        for line in _with_plan(lines)
    ]
    return ("; ".join(said) or "No plan") + "."


def same_target(lines: Sequence[Line]) -> str:
    """Claim 6, at the same accuracy."""
    return _beside_default(lines, "macs_factor", 1.0, words=("cheaper", "dearer"), form=fewer_macs)


def same_cost(lines: Sequence[Line]) -> str:
    """Claim 6, at the same cost."""
    return _beside_default(lines, "difference", 0.0, words=("more accurate", "less accurate"), form=points)


def stages(lines: Sequence[Line]) -> str:
    """Claim 7."""
    said: dict[str, list[str]] = {}
    for line in lines:
        target, _, count = line["label"].partition(", ")
        factor = NONE if line["one"] is None else fewer_macs(line["macs_factor"])
        said.setdefault(target, []).append(f"{factor} with {count}")
    return "; ".join(f"{target}: {', '.join(parts)}" for target, parts in said.items()) + "."


VERDICTS: dict[str, Callable[[Sequence[Line]], str]] = {
    "1": two_against_one,
    "2": ensembles,
    "3": cascades,
    "4": worst_case,
    "5": self_cascade,
    "6a": same_target,
    "6b": same_cost,
    "7": stages,
}


def _with_plan(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["one"] is not None]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _won_and_lost(lines: Sequence[Line], what: str) -> str:
    found = _with_plan(lines)
    won = [line["label"] for line in found if line["difference_ci95"][0] > 0]
    lost = [line["label"] for line in found if line["difference_ci95"][1] < 0]
    open_ = [line["label"] for line in found if line["label"] not in (*won, *lost)]
    none = [line["label"] for line in lines if line["one"] is None]
    text = (
        f"{what}: surely more accurate (the interval is above 0) in {len(won)} of {len(found)} lines"
        f" ({_listed(won)}), surely less accurate in {len(lost)} ({_listed(lost)})"
    )
    text += f", undecided: {_listed(open_)}." if open_ else "."
    return text + (f" No two members fit {_listed(none)}." if none else "")


def _beside_default(
    lines: Sequence[Line], key: str, neutral: float, *, words: tuple[str, str], form: Callable[[float], str]
) -> str:
    """Which lines differ from the first, the planner's defaults, by more than their interval."""
    found = _with_plan(lines)[1:]
    better = [f"{line['label']} ({form(line[key])})" for line in found if line[f"{key}_ci95"][0] > neutral]
    worse = [f"{line['label']} ({form(line[key])})" for line in found if line[f"{key}_ci95"][1] < neutral]
    return f"Beside the defaults, surely {words[0]}: {_listed(better)}; surely {words[1]}: {_listed(worse)}."
