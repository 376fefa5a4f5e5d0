"""The page: one HTML file that asks nobody for anything."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files

from orchestrator.report.data import Report
from orchestrator.report.live import live_from_report, sampled_rows
from orchestrator.report.pictures import CLASSES_DRAWN, Picture
from orchestrator.report.plot import svg_from_report
from orchestrator.report.summary import cards, opening, provenance
from orchestrator.report.tables import (
    classes_table,
    frontier_table,
    rivals_table,
    stages_table,
    temperatures_table,
)
from orchestrator.report.words import threshold_words

# Nothing may be fetched, whatever a name in the data might try.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
# Colours of stages in the bar; a longer cascade starts over.
_COLOURS = 4


def page_from_report(report: Report, pictures: Sequence[Picture]) -> str:
    """The whole text of index.html; equal reports give equal texts."""
    shown = {picture.name: _figure(picture) for picture in pictures}
    sections = [
        ("try", "Try thresholds", _try(report) if report.trades else ""),
        ("frontier", "Accuracy and cost", _frontier(report, shown)),
        ("stages", "Stages", _stages(report, shown)),
        ("thresholds", "What thresholds trade", _trades(report, shown)),
        ("confidence", "Confidence", _confidence(report, shown)),
        ("reliability", "Calibration", _reliability(report, shown)),
        ("classes", "Classes", _classes(report, shown)),
        ("measured", "How this was measured", provenance(report)),
    ]
    if not report.measure.accuracy:
        sections[1] = ("frontier", "Agreement and cost", sections[1][2])
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "\n".join(f'<section id="{name}"><h2>{title}</h2>\n{text}</section>' for name, title, text in sections)
    title = escape(f"{report.spec.name} on {report.data}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{_text_of("page.css")}</style>
</head>
<body>
<header><div>
<h1>{title}</h1>
{opening(report)}
{cards(report)}
</div></header>
<nav aria-label="Sections"><div>{links}</div></nav>
<main>
{body}
<footer>Made by <code>committee plan --report</code>. Intervals hold at 95 %.</footer>
</main>
{_script(report) if report.trades else ""}
</body>
</html>
"""


def _text_of(name: str) -> str:
    return files("orchestrator.report").joinpath(name).read_text(encoding="utf-8")


def _script(report: Report) -> str:
    # Inside a script element only "</" and "<!--" could end it early; no name gets to write a "<".
    data = json.dumps(live_from_report(report), allow_nan=False).replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="live-data">{data}</script>\n<script>\n{_text_of("page.js")}</script>'
    )


def _figure(picture: Picture) -> Callable[[str], str]:
    light, dark = (base64.b64encode(png).decode("ascii") for png in (picture.light, picture.dark))

    def written(caption: str) -> str:
        return (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{dark}">'
            f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{light}"></picture>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    return written


Figures = dict[str, Callable[[str], str]]


def _paragraph(text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{escape(text)}</p>"


def _rows(report: Report) -> str:
    return f"{report.rows:,} rows of {report.data}"


def _try(report: Report) -> str:
    count = len(sampled_rows(report.rows))
    which = "all" if count == report.rows else "an even draw from the"
    note = f"Recomputed from {which} {_rows(report)}"
    note += "." if count == report.rows else f": {count:,} rows travel in this page."
    picture = svg_from_report(report)
    legend = "Ring: the plan. Dot: the sliders. Circles: members and ensembles."
    legend = f"{legend} Line: the frontier." if report.frontier else legend
    legend = legend if picture else "No picture: a cost of 0 has no place on a logarithmic axis."
    word, sliders = report.measure.word, "\n".join(_slider(report, stage) for stage in range(report.ladder.last))
    exits = "\n".join(_exit(report, stage) for stage in range(len(report.stages)))
    bar = "".join(
        f'<i id="live-bar-{stage}" style="background:var(--stage{stage % _COLOURS})"></i>'
        for stage in range(len(report.stages))
    )
    return f"""{_paragraph(f"{note} Arrow keys move a slider by one step; an empty field is never.", "soft")}
<noscript><p class="warning">The sliders need JavaScript, which is off.</p></noscript>
<div class="try">
<div class="panel">
{sliders}
<div class="numbers" aria-live="polite">
<div><span>{escape(word)}</span><b id="live-quality">-</b><span id="live-quality-ci"></span>
<span id="live-quality-change"></span></div>
<div><span>mean cost per row</span><b id="live-cost">-</b><span id="live-cost-change"></span>
<button type="button" id="live-reset">Back to the plan</button></div>
</div>
<div class="bar" aria-hidden="true">{bar}</div>
<table><tbody>{exits}</tbody></table>
</div>
<div class="panel">{picture}
{_paragraph(legend, "soft")}
</div>
</div>
"""


def _slider(report: Report, stage: int) -> str:
    names = escape(" + ".join(report.stages[stage].members))
    own = escape(threshold_words(report.stages[stage].threshold))
    score = escape(report.spec.score)
    return f"""<div class="slider">
<label for="slider-{stage}">Stage {stage}, {names}: stop when {score} ≥ (planned {own})</label>
<div><input type="range" id="slider-{stage}" min="0" max="1" step="1" value="0">
<input type="number" id="number-{stage}" step="any" placeholder="never"
aria-label="threshold of stage {stage}"></div>
</div>"""


def _exit(report: Report, stage: int) -> str:
    names = escape(" + ".join(report.stages[stage].members))
    key = f'<span class="key" style="background:var(--stage{stage % _COLOURS})"></span>'
    return f'<tr><td class="name">{key}stops at stage {stage}, {names}</td><td id="live-exit-{stage}">-</td></tr>'


def _frontier(report: Report, shown: Figures) -> str:
    text = f"Members, ensembles and the plan: {_rows(report)}, with Clopper-Pearson intervals."
    if report.frontier:
        text += (
            f" The line joins the {len(report.frontier):,} best plans of the search, as counted on the "
            f"{report.fit_rows:,} rows they were chosen on, which makes them look a little better than they are."
        )
    if any(one.mean_cost is None for one in report.rivals):
        text += " Members whose cost is not known in the plan's unit are in the table only."
    parts = [shown["frontier"](text), rivals_table(report)]
    if report.frontier:
        title = f"The {len(report.frontier):,} plans of the frontier"
        parts.append(f"<details><summary>{title}</summary>{frontier_table(report)}</details>")
    return "\n".join(parts)


def _stages(report: Report, shown: Figures) -> str:
    caption = f"{_rows(report)}; bars carry Clopper-Pearson intervals. Cost counts what was spent at each stage."
    return f"{stages_table(report)}\n{shown['exits'](caption)}"


def _trades(report: Report, shown: Figures) -> str:
    if "thresholds" not in shown:
        return ""
    caption = f"One threshold moves, the others stay as planned; the star is the plan. {_rows(report)}."
    return shown["thresholds"](caption)


def _confidence(report: Report, shown: Figures) -> str:
    split = "where their answer there is right and where it is wrong"
    if not report.measure.accuracy:
        split = f"those that agree and those that differ ({report.measure.word})"
    caption = f"Scores ({report.spec.score}) of the rows that come to each stage, {split}; the dashed line is the "
    caption += f"threshold. {_rows(report)}."
    return shown["confidence"](caption)


def _reliability(report: Report, shown: Figures) -> str:
    facts, parts = report.calibration, []
    if facts:
        kept = "Temperatures are used" if facts.get("kept") else "Temperatures are not used"
        parts.append(_paragraph(f"{kept}: {facts.get('reason', 'no reason given')}."))
    if report.measure.accuracy and facts.get("members"):
        parts.append(temperatures_table(facts["members"]))
    if "reliability" in shown:
        caption = (
            f"Points on the dotted line mean what they say. Bins hold equal widths of probability, intervals are "
            f"Clopper-Pearson. The last panel is the plan, at whichever stage it stopped. {_rows(report)}."
        )
        parts.append(shown["reliability"](caption))
    return "\n".join(parts)


def _classes(report: Report, shown: Figures) -> str:
    if "classes" not in shown or report.against is None:
        return ""
    worse = sum(one.interval[1] < 0 for one in report.classes)
    better = sum(one.interval[0] > 0 for one in report.classes)
    text = (
        f"Against {report.against.reference.name}, {worse} of {len(report.classes):,} classes lose and {better} "
        "gain by more than their intervals allow for; one class in twenty would do so by chance."
    )
    which = (
        ""
        if len(report.classes) <= CLASSES_DRAWN
        else f" The {CLASSES_DRAWN // 2} that lose most and the {CLASSES_DRAWN // 2} that gain most."
    )
    caption = f"Paired differences on the same rows, {_rows(report)}.{which}"
    details = f"<details><summary>All {len(report.classes):,} classes</summary>{classes_table(report)}</details>"
    return "\n".join([_paragraph(text), shown["classes"](caption), details])
