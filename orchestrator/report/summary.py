"""The head of the page and its small print: what the plan is, does and promises, in sentences."""

from __future__ import annotations

from html import escape

from orchestrator.report.data import Report
from orchestrator.report.tables import facts_table
from orchestrator.report.words import (
    between,
    cost_words,
    percent,
    share_words,
    signed,
    threshold_words,
    times_words,
)

# Facts of the guarantee that the sentence already says.
_SAID = ("statement", "certified", "rows", "losses", "gains", "counted", "bound", "method", "delta")


def opening(report: Report) -> str:
    """What was asked for, what the plan is, and what is promised."""
    fit = report.spec.fit
    parts = []
    if report.measure.why_not is not None:
        quality = report.plan.quality
        text = (
            f"No accuracy is shown: {report.measure.why_not}. Instead this page shows {report.measure.word}: the "
            f"plan disagrees on {share_words(quality.rest, 2)}."
        )
        parts.append(f'<p class="warning">{escape(text)}</p>')
    if fit is not None and fit.target:
        parts.append(f"<p>Asked for: {escape(fit.target)}.</p>")
    parts.append(f"<p>{escape(_plan_words(report))}</p>")
    if report.certify:
        parts.append(_guarantee(report))
    return "\n".join(parts)


def _plan_words(report: Report) -> str:
    steps = []
    for number, stage in enumerate(report.stages):
        names = " + ".join(stage.members)
        if number == len(report.stages) - 1:
            steps.append(f"{names} answers {'the rest' if number else 'every row'}")
        elif stage.threshold is None:
            steps.append(f"{names} never stops a row")
        else:
            steps.append(f"{names} stops rows with {report.spec.score} ≥ {threshold_words(stage.threshold)}")
    return f"The plan ({report.spec.combine}): {'; then '.join(steps)}."


def _guarantee(report: Report) -> str:
    facts = report.certify
    holds = facts.get("certified", True)
    said = str(facts.get("statement", "")).strip() or "what was asked holds"
    text = f"Guarantee: {said}." if holds else f"Not certified: {said}."
    if facts.get("rows"):
        text += f" Judged on {facts['rows']:,} rows {_say(report)}"
        if facts.get("losses") is not None and facts.get("gains") is not None:
            text += f": {_counts(report)}"
        if isinstance(facts.get("bound"), int | float):
            text += f"; bound {facts['bound']:.4g}"
        text += f" ({facts['method']})." if facts.get("method") else "."
    if facts.get("method") == "identity" and "tested" in facts:
        text += " No other plan could be certified: this is the reference itself."
    mark = "" if holds else ' class="warning"'
    return f"<p{mark}>{escape(text)}</p>"


def _say(report: Report) -> str:
    """What the rows kept to certify had to do with the choice."""
    if report.sifted:
        return "kept to certify, which only decide how far down a fixed list of plans to go"
    return "that had no say in the choice"


def _counts(report: Report) -> str:
    facts = report.certify
    counted = facts.get("counted") or ("lost" if report.measure.accuracy else "in disagreement")
    said = f"{facts['losses']:,} {counted}"
    return f"{said}, {facts['gains']:,} gained" if counted == "lost" else said


def cards(report: Report) -> str:
    """The four numbers that matter."""
    unit, quality, mean = report.spec.cost_unit, report.plan.quality, report.plan.mean_cost or 0.0
    low, high = report.mean_cost_ci95
    found = [
        (report.measure.word, percent(quality.value, 2),
         [f"95 % interval {between(quality.interval, 2)}", f"{quality.rows:,} rows of {report.data}"]),
        ("mean cost per row", cost_words(mean, unit),
         [f"95 % interval {cost_words(low, unit)} to {cost_words(high, unit)}",
          f"worst row {cost_words(report.worst_cost, unit)}"]),
    ]  # fmt: skip
    if report.kept is not None:
        which = "kept to certify" if report.sifted else "without a say in the plan"
        found[0][2].append(f"{percent(report.kept.value, 2)} on the {report.kept.rows:,} {which}")
    fit = report.spec.fit
    if fit is not None and fit.rows != report.rows:
        # A budget is kept on these rows alone.
        found[1][2].append(f"{cost_words(fit.mean_cost, unit)} on the {fit.rows:,} it was chosen on")
    against = report.against
    if against is not None:
        other = against.reference
        low, high = against.interval
        found.append(
            (f"accuracy minus {other.name}", f"{signed(against.difference)} points",
             [f"95 % interval {signed(low)} to {signed(high)}, paired",
              f"{against.losses:,} rows lost, {against.gains:,} gained"])
        )  # fmt: skip
        if other.mean_cost and mean > 0:
            found.append(
                (f"cost against {other.name}", times_words(other.mean_cost / mean),
                 [f"{cost_words(other.mean_cost, unit)} there"])
            )  # fmt: skip
    return f'<div class="cards">{"".join(_card(*one) for one in found)}</div>'


def _card(title: str, value: str, lines: list[str]) -> str:
    small = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return f'<div class="card"><span>{escape(title)}</span><b>{escape(value)}</b>{small}</div>'


def provenance(report: Report) -> str:
    """Which rows, which plan, and what to be careful about."""
    fit, parts = report.spec.fit, []
    text = f"All numbers come from replaying the plan over {report.rows:,} recorded rows of {report.data}."
    if fit is not None:
        text += f" Thresholds were chosen on {fit.rows:,} rows of {fit.split or 'unnamed data'}."
        text += " Where those rows are among these, the plan looks a little better here than it is."
    parts.append(f"<p>{escape(text)}</p>")
    if report.kept is not None:
        text = f"On the rows {_say(report)}, {report.measure.word} is {share_words(report.kept, 2)}."
        text += " Having chosen a plan by them makes it look a little better there too." if report.sifted else ""
        parts.append(f"<p>{escape(text)}</p>")
    parts.append(
        "<p>Intervals of shares are exact (Clopper-Pearson); those of differences are paired and normal, "
        "their variance padded a little so that none is certain; that of the mean cost is normal. None is "
        "corrected for being one of many.</p>"
    )
    left = {key: value for key, value in report.certify.items() if key not in _SAID and value is not None}
    if left:
        parts.append(f"<details><summary>More of the guarantee</summary>{facts_table(left)}</details>")
    return "\n".join(parts)
