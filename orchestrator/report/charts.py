"""The charts of the report: one function per figure, fed the report's numbers and nothing else, drawn once.

In the page an SVG takes its colours from CSS variables, so that one drawing serves light and dark, and its text
from the page's fonts, so that names in any script are readable. The same drawing is kept as a PNG.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from orchestrator.progress import Advance, no_advance
from orchestrator.report.data import Report, ThresholdCurve
from orchestrator.report.inputs import QualityAndCost, Share
from orchestrator.report.words import cost_words, percent, shortened, threshold_words

# CSS variable -> light and dark value. Lightness differs too, so that nobody needs hues to tell them apart.
COLOURS = {
    "paper": ("#ffffff", "#181d24"),
    "ink": ("#1d2733", "#e3e8ee"),
    "line": ("#cfd6de", "#3b4552"),
    "member": ("#2563a8", "#74b4f0"),
    "ensemble": ("#1f7a4d", "#6fd3a0"),
    "cascade": ("#c2410c", "#ff9b5e"),
    "mark": ("#8b1a6b", "#f08bd0"),
    "right": ("#4a90c4", "#5a9fd4"),
}
PAPER, INK, LINE, MEMBER, ENSEMBLE, CASCADE, MARK, RIGHT = (light for light, _ in COLOURS.values())
KINDS = {"member": (MEMBER, "o"), "ensemble": (ENSEMBLE, "s"), "cascade": (CASCADE, "D")}
FONT = "DejaVu Sans"
STYLE: dict[str, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), PAPER),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "legend.edgecolor"), LINE),
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": [FONT],
    "font.size": 10,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9.5,
    # Names come from users: a dollar sign is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
}
# One unit of an SVG is one dot at SVG_DPI.
WIDTH_IN, PNG_DPI, SVG_DPI = 10.6, 140, 72
# Letters of a name beside a point.
NAME_LETTERS = 26
# More classes than this cannot be told apart on a screen; those that change most are kept.
CLASSES_DRAWN = 24
RELIABILITY_COLUMNS = 5
# More members than this cannot be named in the small chart beside the sliders.
NAMED_MEMBERS = 6
# Where a name may stand beside its point, in points; the first free place is taken.
_PLACES = (
    (9, -16), (9, -4), (-9, 9), (-9, -4), (9, 9), (-9, -16), (0, 26), (0, -34),
    (9, 26), (-9, 26), (9, -34), (-9, -34), (-9, -52), (-9, 44),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn figure; the name is that of its file, without the ending.

    Args:
        svg: element to put into the page.
        png: bytes, in the light colours.
        axes_box: left, right, top and bottom of the first axes, in units of the SVG.
        limits: of the first axes: low and high x, low and high y.
    """

    name: str
    svg: str
    png: bytes
    axes_box: tuple[float, float, float, float]
    limits: tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A figure not drawn yet: `alt` says what it shows, `paint` draws the report on a matplotlib figure."""

    name: str
    alt: str
    paint: Callable[[Any, Report], None]
    height_in: float
    width_in: float = WIDTH_IN

    def drawn(self, report: Report) -> Chart:
        """The chart; equal reports give equal bytes."""
        # The salt makes the ids in the SVG depend on nothing but the figure, and differ between figures.
        settings: Any = STYLE | {"svg.hashsalt": self.name}
        with mpl.rc_context(settings):
            figure = Figure(figsize=(self.width_in, self.height_in), dpi=SVG_DPI, layout="constrained")
            FigureCanvasAgg(figure)
            self.paint(figure, report)
            svg, png = io.StringIO(), io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            # The finer grid of the PNG lays the axes out a little otherwise.
            box = figure.axes[0].get_position()
            figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
        axes, width, height = figure.axes[0], self.width_in * SVG_DPI, self.height_in * SVG_DPI
        return Chart(
            name=self.name,
            svg=_for_page(svg.getvalue(), self.alt),
            png=png.getvalue(),
            axes_box=(width * box.x0, width * box.x1, height * (1 - box.y1), height * (1 - box.y0)),
            limits=(*axes.get_xlim(), *axes.get_ylim()),
        )


def _for_page(svg: str, alt: str) -> str:
    """Turns an SVG file into an element of the page: colours are CSS variables, and unused ids are left out."""
    variables = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}

    def tag(found: re.Match[str]) -> str:
        # matplotlib writes an artist's gid as the id of its group: here a text to show when the mouse is on it.
        if about := re.fullmatch('<g id="about ([^"]*)">', found[0]):
            return f"<g><title>{about[1]}</title>"
        text = re.sub("#[0-9a-f]{6}", lambda colour: variables.get(colour[0], colour[0]), found[0])
        return re.sub(r'^<g id="[\w.]+_\d+"', "<g", text.replace(f"font-family: '{FONT}'; ", ""))

    size = re.search('viewBox="[^"]*"', svg)
    content = re.sub("<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # No text holds a bare "<" or ">", so names that look like colours or ids are not touched.
    content = re.sub("<[^<>]+>", tag, content[content.index(">") + 1 :])
    return f'<svg class="chart" role="img" aria-label="{escape(alt)}" {size and size[0]}>{content}'


def write_names(axes: Any, points: Sequence[QualityAndCost], *, report: Report) -> None:
    """Writes names beside their points, where they hide neither each other nor a point nor the frontier."""
    figure = axes.figure
    figure.draw_without_rendering()
    renderer, inside = figure.canvas.get_renderer(), axes.get_window_extent()

    def box(start: tuple[float, float], end: tuple[float, float], room: float) -> Any:
        corners = np.sort(axes.transData.transform([start, end]), axis=0)
        return Bbox(corners).padded(room)

    taken = []
    for one in points:
        low, high = one.quality.interval
        taken.append(box((one.mean_cost or 0.0, 100 * low), (one.mean_cost or 0.0, 100 * high), 4))
    # The line goes right before it goes up.
    line = sorted((one.plan.mean_cost, 100 * one.quality.value) for one in report.frontier)
    for (x, y), (next_x, next_y) in itertools.pairwise(line):
        taken += [box((x, y), (next_x, y), 1), box((next_x, y), (next_x, next_y), 1)]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent(renderer))
    for one in points:
        colour = MARK if one is report.plan else KINDS[one.kind][0]
        text = axes.annotate(
            _point_name(one), (one.mean_cost, 100 * one.quality.value), xytext=(0, 0), textcoords="offset points",
            color=colour, fontsize=9.5,
        )  # fmt: skip
        # A name at the edge must not make the axes smaller.
        text.set_in_layout(False)
        tries = []
        for right, up in _PLACES:
            _place(text, right, up)
            found = text.get_window_extent(renderer)
            hidden = sum(found.overlaps(other) for other in taken)
            is_inside = inside.containsx(found.x0) and inside.containsx(found.x1)
            is_inside = is_inside and inside.containsy(found.y0) and inside.containsy(found.y1)
            tries.append((hidden + (0 if is_inside else len(taken) + 1), right, up))
        _place(text, *min(tries, key=lambda found: found[0])[1:])
        taken.append(text.get_window_extent(renderer))


def _place(text: Any, right: float, up: float) -> None:
    """Moves an annotation to a place beside its point, in points."""
    text.set_position((right, up))
    text.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")


def _point_name(one: QualityAndCost) -> str:
    names = one.name.split(" + ")
    if len(one.name) <= NAME_LETTERS or one.kind != "ensemble" or len(names) == 1:
        return shortened(one.name, NAME_LETTERS)
    return f"{shortened(names[0], NAME_LETTERS - 8)} + {len(names) - 1} more"


def sketches_from_report(report: Report) -> tuple[Sketch, ...]:
    """Every figure the report has numbers for, apart from the one beside the sliders."""
    quality, stages = report.criterion.name, len(report.stages)
    lines = math.ceil(len(report.reliability) / RELIABILITY_COLUMNS)
    classes = min(len(report.classes), CLASSES_DRAWN)
    # name, what it shows, painter, height in inches
    known = [
        ("frontier", f"{quality} against mean cost", _frontier, 5.2),
        ("exits", f"exit share, {quality} and cost by stage", _exits, 1.3 + 0.42 * stages),
        ("thresholds", f"{quality} and mean cost against each threshold", _thresholds, 4.6 * (stages > 1)),
        ("confidence", "scores of correct and wrong answers by stage", _confidence, 3.1),
        ("reliability", "share right against confidence", _reliability, lines and 0.4 + 2.6 * lines),
        ("classes", "accuracy per class, plan minus reference, and share deferred", _classes,
         classes and 1.2 + 0.26 * classes),
    ]  # fmt: skip
    return tuple(
        Sketch(name=name, alt=alt, paint=paint, height_in=height) for name, alt, paint, height in known if height
    )


def charts_from_report(report: Report, *, advance: Advance = no_advance) -> tuple[Chart, ...]:
    """Every figure of `sketches_from_report`, drawn; takes seconds, and calls `advance` after each."""
    charts = []
    for sketch in sketches_from_report(report):
        charts.append(sketch.drawn(report))
        advance(1)
    return tuple(charts)


def slider_chart(report: Report) -> Chart | None:
    """The small chart in which the page's script moves the dot; None where a cost has no logarithm."""
    if min(*report.outputs.cost, *(one.mean_cost for one in _drawn(report))) <= 0:
        return None
    alt = f"{report.criterion.name} against mean cost: members, the plan (star), and the sliders (dot)"
    return Sketch(name="sliders", alt=alt, paint=_sliders, width_in=4.8, height_in=3.6).drawn(report)


def _drawn(report: Report) -> list[QualityAndCost]:
    """The baselines with a known cost."""
    return [one for one in report.baselines if one.mean_cost is not None]


def _interval_bar(share: Share) -> list[list[float]]:
    """The 95 % interval as lengths below and above the share, in percent."""
    low, high = share.interval
    return [[100 * max(share.value - low, 0.0)], [100 * max(high - share.value, 0.0)]]


def _frontier(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    _quality_and_cost(axes, report, intervals=True)
    if report.plan.mean_cost:
        axes.margins(x=0.12)
        axes.set_xscale("log")
    axes.set_ylabel(f"{shortened(report.criterion.name)}, %, with 95 % interval")
    axes.legend(loc="lower right")
    _cost_axis(axes, report)
    write_names(axes, [report.plan, *(one for one in report.baselines if one.mean_cost)], report=report)


def _sliders(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    _quality_and_cost(axes, report, intervals=False)
    drawn = _drawn(report)
    # The limits hold everything that sliders can reach.
    costs = [*report.outputs.cost, *(one.mean_cost for one in drawn)]
    shares = [*report.stage_correct.mean(axis=1), *(one.quality.value for one in drawn)]
    shares += [end for curve in report.threshold_curves for end in (curve.quality.min(), curve.quality.max())]
    room = 0.06 * (max(shares) - min(shares)) or 0.01
    spread = (max(costs) / min(costs)) ** 0.06 if max(costs) > min(costs) else 1.6
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / spread, max(costs) * spread)
    axes.set_ylim(100 * (min(shares) - 2 * room), 100 * (max(shares) + room))
    axes.plot(report.plan.mean_cost, 100 * report.plan.quality.value, "o", color=INK, markersize=7, zorder=6,
              gid="slider-dot", clip_on=False)  # fmt: skip
    axes.set_ylabel(f"{shortened(report.criterion.name, 30)}, %")
    _cost_axis(axes, report)
    members = [one for one in drawn if one.kind == "member"]
    write_names(axes, members if len(members) <= NAMED_MEMBERS else [], report=report)


def _quality_and_cost(axes: Any, report: Report, *, intervals: bool) -> None:
    """The frontier of the search, baselines and plan: quality in percent against mean cost."""
    points = sorted(report.frontier, key=lambda one: one.plan.mean_cost)
    if points:
        costs, qualities = [one.mean_cost for one in points], [100 * one.quality.value for one in points]
        axes.step(costs, qualities, where="post", color=CASCADE, linewidth=1.2, label="best plans of the search")
        if intervals:
            low, high = np.transpose([one.quality.interval for one in points]) * 100
            axes.fill_between(costs, low, high, step="post", color=CASCADE, alpha=0.13, linewidth=0)
    for point in points:
        colour, marker = KINDS[point.kind]
        axes.plot(point.mean_cost, 100 * point.quality.value, marker, color=colour, markersize=3, alpha=0.8)
    labels = {"member": "members", "ensemble": "ensembles", "cascade": "the chosen plan"}
    for one in (*(one for one in report.baselines if one.mean_cost), report.plan):
        colour, marker = KINDS[one.kind] if one is not report.plan else (MARK, "*")
        bar = _interval_bar(one.quality) if intervals else None
        about = f"{one.name}: {percent(one.quality.value, 2)}, {cost_words(one.mean_cost, report.spec.cost_unit)}"
        axes.errorbar(one.mean_cost, 100 * one.quality.value, yerr=bar, fmt=marker, capsize=3, color=colour,
                      markersize=17 if marker == "*" else 7, linewidth=1, label=labels.pop(one.kind, None),
                      zorder=5 if marker == "*" else 2)[0].set_gid(f"about {about}")  # fmt: skip


def _cost_axis(axes: Any, report: Report) -> None:
    """Labels a logarithmic cost axis in words instead of powers of ten."""
    low, high = axes.get_xlim()
    if low > 0 and high < 10 * low:
        # Powers of ten are too few here.
        axes.set_xticks(np.geomspace(low, high, 5)[1:-1])
    axes.xaxis.set_major_formatter(lambda value, _: cost_words(value, "").strip())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"mean cost per row, {shortened(report.spec.cost_unit, 16)} (log scale)")


def _exits(figure: Any, report: Report) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    reached, total = report.rows, report.rows * (report.plan.mean_cost or 1.0)
    for place, stage in enumerate(report.stages):
        for axes, share in ((panels[0], stage.exits), (panels[1], stage.correct)):
            if share.rows:
                axes.barh(place, 100 * share.value, color=MEMBER, height=0.6)
                bar = _interval_bar(share)
                axes.errorbar(100 * share.value, place, xerr=bar, color=INK, capsize=3, linewidth=1)
        panels[2].barh(place, 100 * reached * stage.cost / total, color=CASCADE, height=0.6)
        reached -= stage.exits.hits
    quality = shortened(report.criterion.name, 28)
    titles = ("rows that stop here, %", f"{quality} of those, %", "share of all cost, %")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlabel(title)
        axes.set_xlim(0, 105)
        axes.grid(axis="y", visible=False)
    numbers = range(len(report.stages))
    panels[0].set_yticks(numbers, [_stage_name(report, number) for number in numbers])
    panels[0].invert_yaxis()


def _stage_name(report: Report, stage: int, most: int = 30) -> str:
    return f"{stage}: {shortened(report.stages[stage].members, most)}"


def _thresholds(figure: Any, report: Report) -> None:
    curves = report.threshold_curves
    panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
    biggest = max(float(curve.mean_cost.max()) for curve in curves) or 1.0
    for (upper, lower), curve in zip(panels.T, curves, strict=True):
        own = curve.rows_below[curve.planned]
        for axes, values, colour in (
            (upper, 100 * curve.quality, MEMBER), (lower, 100 * curve.mean_cost / biggest, CASCADE)
        ):  # fmt: skip
            axes.plot(curve.rows_below, values, color=colour, linewidth=1.8)
            axes.axvline(own, color=MARK, linestyle="--", linewidth=1)
            axes.plot(own, values[curve.planned], "*", color=MARK, markersize=13)
        planned = threshold_words(float(curve.threshold[curve.planned]))
        upper.set_title(f"{_stage_name(report, curve.stage, 24)}, planned {planned}")
        lower.set_xticks(*_threshold_ticks(curve))
        lower.set_xlabel("threshold, spaced by share of rows below it")
    panels[0, 0].set_ylabel(f"{shortened(report.criterion.name, 26)}, %")
    panels[1, 0].set_ylabel("mean cost, % of the most")
    panels[1, 0].set_ylim(bottom=0)


def _threshold_ticks(curve: ThresholdCurve) -> tuple[list[float], list[str]]:
    """Thresholds at every fifth of the rows, and never."""
    finite = len(curve.threshold) - 1
    nearest = {int(np.argmin(np.abs(curve.rows_below[:finite] - share))) for share in (0.0, 0.2, 0.4, 0.6, 0.8)}
    places = sorted({*nearest, finite})
    words = [f"{value:.3f}" if math.isfinite(value) else "never" for value in curve.threshold[places]]
    return curve.rows_below[places].tolist(), words


def _confidence(figure: Any, report: Report) -> None:
    panels = figure.subplots(1, len(report.histograms), sharey=True, squeeze=False)[0]
    correct, wrong = ("right", "wrong") if report.criterion.by_labels else ("agree", "differ")
    for axes, one in zip(panels, report.histograms, strict=True):
        axes.stairs(one.correct, one.edges, fill=True, color=RIGHT, alpha=0.45)
        axes.stairs(one.correct, one.edges, color=RIGHT, linewidth=1.5, label=correct)
        axes.stairs(one.wrong, one.edges, color=CASCADE, linewidth=1.8, label=wrong)
        if one.threshold is not None:
            axes.axvline(one.threshold, color=MARK, linestyle="--", linewidth=1.3)
        rule = "answers all" if one.last else f"stops at {threshold_words(one.threshold)}"
        axes.set_title(f"{_stage_name(report, one.stage, 16)}\n{rule}")
        axes.set_xlabel(report.spec.score)
    panels[0].set_yscale("symlog", linthresh=1)
    # Room above for the legend.
    panels[0].set_ylim(0, 12 * max(int(max(one.correct.max(), one.wrong.max())) for one in report.histograms))
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panels[0].set_ylabel("rows that come here (log scale)")
    panels[0].legend(loc="upper left")


def _reliability(figure: Any, report: Report) -> None:
    count = len(report.reliability)
    lines = math.ceil(count / RELIABILITY_COLUMNS)
    columns = math.ceil(count / lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for axes, one in zip(panels.flat, report.reliability, strict=False):
        colour = MARK if one is report.reliability[-1] else MEMBER
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        low, high = np.transpose([share.interval for share in one.right])
        axes.vlines(one.confidence, low, high, color=colour, linewidth=1, alpha=0.6)
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


def _classes(figure: Any, report: Report) -> None:
    shown = report.classes
    if len(shown) > CLASSES_DRAWN:  # the half that loses most and the half that gains most
        shown = (*shown[: CLASSES_DRAWN // 2], *shown[-(CLASSES_DRAWN // 2) :])
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    for place, one in enumerate(shown):
        low, high = one.interval
        colour = CASCADE if high < 0 else ENSEMBLE if low > 0 else MEMBER
        left.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.4, alpha=0.7)
        left.plot(100 * one.difference, place, "o", color=colour, markersize=5)
        right.barh(place, 100 * one.deferred.value, color=CASCADE, height=0.6)
    left.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(shown)), [shortened(one.name, 26) for one in shown])
    left.set_ylim(len(shown) - 0.4, -0.6)
    reference = "reference" if report.comparison is None else shortened(report.comparison.reference.name, 30)
    left.set_xlabel(f"accuracy minus that of {reference}, points, with 95 % interval")
    right.set_xlabel("rows past the first stage, %")
    right.set_xlim(0, 100)
