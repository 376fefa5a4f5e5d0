"""The small picture beside the sliders, as SVG, in which the page's script moves a dot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from orchestrator.report.basis import Achieved
from orchestrator.report.data import Report
from orchestrator.report.words import cost_words, percent, shortened

WIDTH, HEIGHT = 416, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 404, 12, 264
# More names than this would write over each other at this size.
NAMES = 6


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Which costs and shares the picture spans.

    Args:
        start, end: natural logarithms of costs.
        low, high: shares.
    """

    start: float
    end: float
    low: float
    high: float

    def x(self, cost: float) -> float:
        """Place of a cost."""
        return LEFT + (math.log(cost) - self.start) / (self.end - self.start) * (RIGHT - LEFT)

    def y(self, share: float) -> float:
        """Place of a share."""
        return BOTTOM - (share - self.low) / (self.high - self.low) * (BOTTOM - TOP)


def frame_of(report: Report) -> Frame | None:
    """A frame that holds everything the sliders can reach; None where a cost has no logarithm."""
    drawn = _drawn(report)
    costs = [*report.ladder.cost.tolist(), *(one.mean_cost for one in drawn)]
    if min(costs) <= 0:
        return None
    start, end = math.log(min(costs)), math.log(max(costs))
    room = 0.06 * (end - start) or 0.5
    shares = [*report.good.mean(axis=1).tolist(), *(one.quality.value for one in drawn)]
    shares += [value for trade in report.trades for value in (trade.quality.min(), trade.quality.max())]
    space = 0.06 * (max(shares) - min(shares)) or 0.01
    return Frame(start=start - room, end=end + room, low=min(shares) - 2 * space, high=max(shares) + space)


def _drawn(report: Report) -> list[Achieved]:
    return [one for one in report.rivals if one.mean_cost is not None]


def svg_from_report(report: Report) -> str:
    """The picture; empty where it cannot be drawn."""
    frame = frame_of(report)
    if frame is None:
        return ""
    title = escape(f"{report.measure.word} against mean cost: members, the plan (ring), and the sliders (dot)")
    x, y = frame.x(report.plan.mean_cost or 1.0), frame.y(report.plan.quality.value)
    return "\n".join(
        [
            f'<svg id="live-plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
            f'data-left="{LEFT}" data-right="{RIGHT}" data-top="{TOP}" data-bottom="{BOTTOM}" '
            f'data-low="{frame.low}" data-high="{frame.high}" data-from="{frame.start}" data-to="{frame.end}">',
            *_axes(frame, report),
            *_frontier(frame, report),
            *_rivals(frame, report),
            f'<circle class="own" cx="{x:.1f}" cy="{y:.1f}" r="9"><title>the plan</title></circle>',
            f'<circle id="live-dot" class="now" cx="{x:.1f}" cy="{y:.1f}" r="5"></circle>',
            "</svg>",
        ]
    )


def _axes(frame: Frame, report: Report) -> list[str]:
    parts = []
    for step in range(5):
        share = frame.low + (frame.high - frame.low) * (step + 0.5) / 5
        y = frame.y(share)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{100 * share:.1f}</text>')
    for step in range(3):
        cost = math.exp(frame.start + (frame.end - frame.start) * (step + 0.5) / 3)
        words = escape(cost_words(cost, "").strip())
        parts.append(f'<text x="{frame.x(cost):.1f}" y="{BOTTOM + 16}" text-anchor="middle">{words}</text>')
    unit = escape(f"mean cost, {shortened(report.spec.cost_unit, 16)} (log scale); up: {report.measure.word}, %")
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 32}" text-anchor="middle">{unit}</text>')
    return parts


def _frontier(frame: Frame, report: Report) -> list[str]:
    points = sorted((one for one in report.frontier if one.mean_cost > 0), key=lambda one: one.mean_cost)
    inside = [
        (frame.x(one.mean_cost), frame.y(one.quality.value))
        for one in points
        if frame.low <= one.quality.value <= frame.high and frame.start <= math.log(one.mean_cost) <= frame.end
    ]
    return (
        [f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in inside)}"/>'] if inside else []
    )


def _rivals(frame: Frame, report: Report) -> list[str]:
    parts = []
    drawn = _drawn(report)
    named = sum(one.kind == "member" for one in drawn) <= NAMES
    for one in drawn:
        x, y = frame.x(one.mean_cost or 1.0), frame.y(one.quality.value)
        about = escape(
            f"{one.name}: {percent(one.quality.value, 2)}, {cost_words(one.mean_cost, report.spec.cost_unit)}"
        )
        parts.append(f'<circle class="{one.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{about}</title></circle>')
        if named and one.kind == "member":
            # Below and to the right there is no frontier.
            side, step = ("end", 6) if x > RIGHT - 60 else ("start", 6)
            name = escape(shortened(one.name, 18))
            parts.append(f'<text x="{x + step:.1f}" y="{y + 17:.1f}" text-anchor="{side}">{name}</text>')
    return parts
