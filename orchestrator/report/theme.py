"""How pictures look, light and dark. Colours differ in lightness too, so that anybody can tell them apart."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import DataError

DOTS_PER_INCH = 140
WIDTH_IN = 10.6
MARKERS = {"member": "o", "ensemble": "s", "cascade": "D"}
# Where a name may stand beside its point, in points; the first place that is free is taken.
_PLACES = (
    (9, -16), (9, -4), (-9, 9), (-9, -4), (9, 9), (-9, -16), (0, 26), (0, -34),
    (9, 26), (-9, 26), (9, -34), (-9, -34), (-9, -52), (-9, 44),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one look.

    Args:
        name: "light" or "dark".
        paper, ink, grid: background, text and lines.
        colours: of members, ensembles, cascades.
        good, bad: of answers.
        mark: of what the plan chose.
    """

    name: str
    paper: str
    ink: str
    grid: str
    colours: dict[str, str]
    good: str
    bad: str
    mark: str

    def settings(self) -> dict[str, Any]:
        """As matplotlib takes it."""
        lines = dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), self.ink
        )
        return {
            **lines,
            "figure.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "savefig.facecolor": self.paper,
            "legend.facecolor": self.paper,
            "legend.edgecolor": self.grid,
            "axes.edgecolor": self.grid,
            "grid.color": self.grid,
            "axes.grid": True,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.family": ["DejaVu Sans"],
            "font.size": 10,
            "axes.titlesize": 10.5,
            "legend.fontsize": 9.5,
            # Names come from users: a dollar sign is no formula.
            "text.parse_math": False,
        }


LIGHT = Theme(
    name="light", paper="#ffffff", ink="#1d2733", grid="#cfd6de",
    colours={"member": "#2563a8", "ensemble": "#1f7a4d", "cascade": "#c2410c"},
    good="#4a90c4", bad="#c2410c", mark="#8b1a6b",
)  # fmt: skip
DARK = Theme(
    name="dark", paper="#181d24", ink="#e3e8ee", grid="#3b4552",
    colours={"member": "#74b4f0", "ensemble": "#6fd3a0", "cascade": "#ff9b5e"},
    good="#5a9fd4", bad="#ff9b5e", mark="#f08bd0",
)  # fmt: skip


def drawn(paint: Callable[[Any, Theme], None], *, theme: Theme, height_in: float) -> bytes:
    """A PNG, the same bytes for the same numbers.

    Args:
        paint: draws on a matplotlib figure.
        theme: its look.
        height_in: of the figure; all are equally wide.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("report", got="no matplotlib", fix="pip install 'committee[plan]'") from error
    settings: Any = theme.settings()
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure, theme)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Named:
    """A point with an interval, and its name.

    Args:
        x, y: where it is.
        low, high: ends of the interval of y.
        text: the name.
        colour: of the name.
    """

    x: float
    y: float
    low: float
    high: float
    text: str
    colour: str


def write_names(axes: Any, points: Sequence[Named], *, line: Sequence[tuple[float, float]] = ()) -> None:
    """Writes names beside their points, where they hide neither each other nor a point nor the line.

    Args:
        axes: with its limits set.
        points: the most important first.
        line: corners of a line in steps, which go right before they go up.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    inside = axes.get_window_extent(renderer)
    taken = [_box(axes, (one.x, one.low), (one.x, one.high), room=4) for one in points]
    for (x, y), (next_x, next_y) in itertools.pairwise(line):
        taken += [_box(axes, (x, y), (next_x, y), room=1), _box(axes, (next_x, y), (next_x, next_y), room=1)]
    if (legend := axes.get_legend()) is not None:
        taken.append(legend.get_window_extent(renderer))
    for one in points:
        tries = []
        for right, up in _PLACES:
            align = "left" if right > 0 else "right" if right < 0 else "center"
            written = axes.annotate(
                one.text, (one.x, one.y), xytext=(right, up), textcoords="offset points", ha=align,
                color=one.colour, fontsize=9.5,
            )  # fmt: skip
            # A name at the edge must not make the axes smaller.
            written.set_in_layout(False)
            box = written.get_window_extent(renderer)
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            hidden = sum(box.overlaps(other) for other in taken) + (0 if fits else len(taken) + 1)
            tries.append((hidden, written, box))
        best = min(tries, key=lambda found: found[0])
        for found in tries:
            if found is not best:
                found[1].remove()
        taken.append(best[2])


def _box(axes: Any, start: tuple[float, float], end: tuple[float, float], *, room: float) -> Any:
    from matplotlib.transforms import Bbox

    (x0, y0), (x1, y1) = axes.transData.transform([start, end])
    return Bbox.from_extents(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)).padded(room)
