"""Drawing a figure once, with matplotlib, for the page and as a PNG.

In the page an SVG takes its colours from CSS variables, so that one drawing serves light and dark, and its text
from the page's fonts, so that names in any script are readable.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from orchestrator.report.data import Report
from orchestrator.report.inputs import QualityAndCost
from orchestrator.report.words import shortened

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
WIDTH_IN = 10.6
PNG_DPI = 140
# One unit of an SVG is one dot at this resolution.
SVG_DPI = 72
# Letters of a name beside a point.
NAME_LETTERS = 26
# Where a name may stand beside its point, in points; the first free place is taken.
_PLACES = (
    (9, -16), (9, -4), (-9, 9), (-9, -4), (9, 9), (-9, -16), (0, 26), (0, -34),
    (9, 26), (-9, 26), (9, -34), (-9, -34), (-9, -52), (-9, 44),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawn figure.

    Args:
        name: of its file, without the ending.
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
    """A figure not drawn yet.

    Args:
        name: of its file, without the ending.
        alt: what it shows, for those who cannot see it.
        paint: draws the report on a matplotlib figure.
        width_in, height_in: of the figure.
    """

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
