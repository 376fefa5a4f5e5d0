"""The pictures: one function per figure, each fed the report's numbers and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.progress import Advance, no_advance
from orchestrator.report.basis import Achieved
from orchestrator.report.curves import ClassFacts, Trade
from orchestrator.report.data import Report
from orchestrator.report.shares import Share
from orchestrator.report.theme import DARK, LIGHT, MARKERS, Named, Theme, drawn, write_names
from orchestrator.report.words import cost_words, percent, shortened, threshold_words

# More classes than this cannot be told apart on a screen; those that change most are kept.
CLASSES_DRAWN = 24
COLUMNS = 5
# Letters of a name beside a point.
NAME_LETTERS = 26


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One figure in both looks.

    Args:
        name: of its file, without the ending.
        alt: what it shows, for those who cannot see it.
        light, dark: PNG bytes.
    """

    name: str
    alt: str
    light: bytes
    dark: bytes


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A figure not drawn yet.

    Args:
        name, alt: as of the picture.
        paint: draws it on a matplotlib figure.
        height_in: of the figure.
    """

    name: str
    alt: str
    paint: Callable[[Any, Theme, Report], None]
    height_in: float


def sketches_from_report(report: Report) -> tuple[Sketch, ...]:
    """Every figure the report has numbers for."""
    word = report.measure.word
    lines = math.ceil(len(report.reliability) / COLUMNS)
    shown = min(len(report.classes), CLASSES_DRAWN)
    heights = {
        "frontier": 5.2, "exits": 1.3 + 0.42 * len(report.stages), "thresholds": 4.6, "confidence": 3.1,
        "reliability": 0.4 + 2.6 * lines, "classes": 1.2 + 0.26 * shown,
    }  # fmt: skip
    known = (
        ("frontier", f"{word} against mean cost", _frontier, True),
        ("exits", f"exit share, {word} and cost by stage", _exits, True),
        ("thresholds", f"{word} and mean cost against each threshold", _trades, bool(report.trades)),
        ("confidence", "scores of good and bad answers by stage", _confidence, True),
        ("reliability", "share right against confidence", _reliability, bool(report.reliability)),
        ("classes", "accuracy per class, plan minus reference, and share deferred", _classes, shown > 0),
    )
    return tuple(
        Sketch(name=name, alt=alt, paint=paint, height_in=heights[name])
        for name, alt, paint, wanted in known
        if wanted
    )


def pictures_from_report(report: Report, *, advance: Advance = no_advance) -> tuple[Picture, ...]:
    """Every figure, drawn; takes seconds, and tells of each figure.

    Raises:
        DataError: matplotlib is not installed.
    """
    return tuple(_both(sketch, report, advance) for sketch in sketches_from_report(report))


def _both(sketch: Sketch, report: Report, advance: Advance) -> Picture:
    light, dark = (
        drawn(lambda figure, theme: sketch.paint(figure, theme, report), theme=theme, height_in=sketch.height_in)
        for theme in (LIGHT, DARK)
    )
    advance(1)
    return Picture(name=sketch.name, alt=sketch.alt, light=light, dark=dark)


def _bar(share: Share) -> list[list[float]]:
    low, high = share.interval
    return [[100 * max(share.value - low, 0.0)], [100 * max(high - share.value, 0.0)]]


def _frontier(figure: Any, theme: Theme, report: Report) -> None:
    axes = figure.subplots()
    points = sorted(report.frontier, key=lambda one: one.mean_cost)
    if points:
        costs = [one.mean_cost for one in points]
        spans = np.array([one.quality.interval for one in points]) * 100
        colour = theme.colours["cascade"]
        axes.fill_between(costs, spans[:, 0], spans[:, 1], step="post", color=colour, alpha=0.13, linewidth=0)
        axes.step(costs, [100 * one.quality.value for one in points], where="post", color=colour, linewidth=1.2,
                  label="best plans of the search")  # fmt: skip
    for kind, marker in MARKERS.items():
        found = [one for one in points if one.kind == kind]
        axes.plot([one.mean_cost for one in found], [100 * one.quality.value for one in found], marker,
                  color=theme.colours[kind], markersize=3, alpha=0.8)  # fmt: skip
    names: list[Named] = []
    known = [one for one in report.rivals if one.mean_cost]
    for kind in ("member", "ensemble"):
        label: str | None = f"{kind}s"
        for one in (one for one in known if one.kind == kind):
            y = 100 * one.quality.value
            axes.errorbar(one.mean_cost, y, yerr=_bar(one.quality), fmt=MARKERS[kind], markersize=7, capsize=3,
                          color=theme.colours[kind], label=label, linewidth=1)  # fmt: skip
            label = None
            names.append(_named(one, theme.colours[kind]))
    plan, y = report.plan, 100 * report.plan.quality.value
    axes.errorbar(plan.mean_cost, y, yerr=_bar(plan.quality), fmt="*", markersize=17, capsize=4, zorder=5,
                  color=theme.mark, label="the chosen plan")  # fmt: skip
    if plan.mean_cost:
        axes.set_xscale("log")
        axes.margins(x=0.12)
    axes.set_xlabel(f"mean cost per row, {report.spec.cost_unit} (log scale)")
    axes.set_ylabel(f"{shortened(report.measure.word)}, %, with 95 % interval")
    axes.legend(loc="lower right")
    _plain_ticks(axes.xaxis)
    line = [(one.mean_cost, 100 * one.quality.value) for one in points]
    write_names(axes, [_named(plan, theme.mark), *names], line=line)


def _named(one: Achieved, colour: str) -> Named:
    low, high = one.quality.interval
    name = one.name if len(one.name) <= NAME_LETTERS or one.kind != "ensemble" else one.name.split(" + ")[0]
    more = one.name.count(" + ") if name != one.name else 0
    text = f"{shortened(name, NAME_LETTERS - 8)} + {more} more" if more else shortened(name, NAME_LETTERS)
    return Named(
        x=one.mean_cost or 0.0, y=100 * one.quality.value, low=100 * low, high=100 * high,
        text=text, colour=colour,
    )  # fmt: skip


def _plain_ticks(axis: Any) -> None:
    """Words instead of powers of ten, which are written as formulas."""
    from matplotlib.ticker import NullFormatter

    axis.set_major_formatter(lambda value, _: cost_words(value, "").strip())
    axis.set_minor_formatter(NullFormatter())


def _exits(figure: Any, theme: Theme, report: Report) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    places = np.arange(len(report.stages))
    reached, total = report.rows, report.rows * (report.plan.mean_cost or 1.0)
    for place, stage in zip(places, report.stages, strict=True):
        rows = ((panels[0], stage.exits), (panels[1], stage.good))
        for axes, share in rows:
            if not share.rows:
                continue
            axes.barh(place, 100 * share.value, color=theme.colours["member"], height=0.6)
            axes.errorbar(100 * share.value, place, xerr=_bar(share), color=theme.ink, capsize=3, linewidth=1)
        spent = 100 * reached * stage.cost / total
        panels[2].barh(place, spent, color=theme.colours["cascade"], height=0.6)
        reached -= stage.exits.hits
    titles = (
        "rows that stop here, %",
        f"{shortened(report.measure.word, 28)} of those, %",
        "share of all cost, %",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlabel(title)
        axes.set_xlim(0, 105)
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(places, [_stage_name(report, number) for number in places])
    panels[0].invert_yaxis()


def _stage_name(report: Report, stage: int, most: int = 30) -> str:
    return f"{stage}: {shortened(' + '.join(report.stages[stage].members), most)}"


def _trades(figure: Any, theme: Theme, report: Report) -> None:
    panels = figure.subplots(2, len(report.trades), sharex="col", sharey="row", squeeze=False)
    biggest = max(float(trade.mean_cost.max()) for trade in report.trades) or 1.0
    for column, trade in enumerate(report.trades):
        rows = ((100 * trade.quality, theme.colours["member"]),
                (100 * trade.mean_cost / biggest, theme.colours["cascade"]))  # fmt: skip
        for axes, (values, colour) in zip(panels[:, column], rows, strict=True):
            axes.plot(trade.place, values, color=colour, linewidth=1.8)
            axes.axvline(trade.place[trade.own], color=theme.mark, linestyle="--", linewidth=1)
            axes.plot(trade.place[trade.own], values[trade.own], "*", color=theme.mark, markersize=13)
        own = threshold_words(float(trade.threshold[trade.own]))
        panels[0, column].set_title(f"{_stage_name(report, trade.stage, 24)}, planned {own}")
        panels[1, column].set_xticks(*_ticks(trade))
        panels[1, column].set_xlabel("threshold, spaced by share of rows below it")
    panels[0, 0].set_ylabel(f"{shortened(report.measure.word, 26)}, %")
    panels[1, 0].set_ylabel("mean cost, % of the most")
    panels[1, 0].set_ylim(bottom=0)


def _ticks(trade: Trade) -> tuple[list[float], list[str]]:
    """Thresholds at every fifth of the rows, and never."""
    finite = len(trade.threshold) - 1
    places = [int(np.argmin(np.abs(trade.place[:finite] - share))) for share in (0.0, 0.2, 0.4, 0.6, 0.8)]
    places = sorted({*places, finite})
    values = [float(trade.threshold[place]) for place in places]
    words = [f"{value:.3f}" if math.isfinite(value) else "never" for value in values]
    return [float(trade.place[place]) for place in places], words


def _confidence(figure: Any, theme: Theme, report: Report) -> None:
    panels = figure.subplots(1, len(report.confidence), sharey=True, squeeze=False)[0]
    good, bad = ("right", "wrong") if report.measure.accuracy else ("agree", "differ")
    for axes, found in zip(panels, report.confidence, strict=True):
        axes.stairs(found.good, found.edges, fill=True, color=theme.good, alpha=0.45)
        axes.stairs(found.good, found.edges, color=theme.good, linewidth=1.5, label=good)
        axes.stairs(found.bad, found.edges, color=theme.bad, linewidth=1.8, label=bad)
        if found.threshold is not None:
            axes.axvline(found.threshold, color=theme.mark, linestyle="--", linewidth=1.3)
        rule = "answers all" if found.last else f"stops at {threshold_words(found.threshold)}"
        axes.set_title(f"{_stage_name(report, found.stage, 16)}\n{rule}")
        axes.set_xlabel(report.spec.score)
    panels[0].set_yscale("symlog", linthresh=1)
    # Room above for the legend.
    panels[0].set_ylim(0, 12 * max(int(max(one.good.max(), one.bad.max())) for one in report.confidence))
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panels[0].set_ylabel("rows that come here (log scale)")
    panels[0].legend(loc="upper left")


def _reliability(figure: Any, theme: Theme, report: Report) -> None:
    count = len(report.reliability)
    lines = math.ceil(count / COLUMNS)
    columns = math.ceil(count / lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for place, (axes, one) in enumerate(zip(panels.flat, report.reliability, strict=False)):
        colour = theme.mark if place == count - 1 else theme.colours["member"]
        axes.plot([0, 1], [0, 1], color=theme.ink, linewidth=0.8, linestyle=":")
        for confidence, share in zip(one.confidence, one.right, strict=True):
            low, high = share.interval
            axes.plot([confidence] * 2, [low, high], color=colour, linewidth=1, alpha=0.6)
        axes.plot(one.confidence, [share.value for share in one.right], "o-", color=colour, markersize=4)
        axes.set_title(f"{shortened(one.name, 22)}\ncalibration error {percent(one.error)}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    for axes in panels[:, 0]:
        axes.set_ylabel("share right")
    for axes in panels.flat[max(0, count - columns) : count]:
        axes.set_xlabel("probability of the answer")
        axes.set_xticks((0, 0.5, 1))
        axes.xaxis.set_tick_params(labelbottom=True)


def _classes(figure: Any, theme: Theme, report: Report) -> None:
    shown = classes_drawn(report.classes)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for place, one in enumerate(shown):
        low, high = one.interval
        colour = theme.bad if high < 0 else theme.colours["ensemble"] if low > 0 else theme.colours["member"]
        left.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.4, alpha=0.7)
        left.plot(100 * one.difference, place, "o", color=colour, markersize=5)
        right.barh(place, 100 * one.deferred.value, color=theme.colours["cascade"], height=0.6)
    left.axvline(0, color=theme.ink, linewidth=0.8)
    names = [shortened(class_name(report, one.number), 26) for one in shown]
    left.set_yticks(range(len(shown)), names)
    left.set_ylim(len(shown) - 0.4, -0.6)
    reference = "reference" if report.against is None else shortened(report.against.reference.name, 30)
    left.set_xlabel(f"accuracy minus that of {reference}, points, with 95 % interval")
    right.set_xlabel("rows past the first stage, %")
    right.set_xlim(0, 100)


def classes_drawn(classes: tuple[ClassFacts, ...]) -> tuple[ClassFacts, ...]:
    """All classes, or the half that pays most and the half that gains most."""
    if len(classes) <= CLASSES_DRAWN:
        return classes
    return (*classes[: CLASSES_DRAWN // 2], *classes[-(CLASSES_DRAWN // 2) :])


def class_name(report: Report, number: int) -> str:
    """Name of a class, its number where it has none."""
    return f"class {number}" if report.spec.labels is None else report.spec.labels[number]
