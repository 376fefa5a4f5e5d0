"""What breaks first as the rate grows, drawn: what one server uses of each part, and the cores of designs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.planner.queueing import QueueStage
from orchestrator.planner.size import Demand, sized
from perf.harness.report import draw_plots

# Rows per second that are drawn, and those that the page speaks of.
_RATES = np.logspace(2, 6, 33)
_MARKED = (1e2, 1e4, 1e6)


def draw_figures(
    folder: Path, stages: Sequence[QueueStage], alone: Sequence[QueueStage], *, cores: int, largest: str
) -> list[Path]:
    """Draws both figures and returns their paths.

    Args:
        folder: of the figures.
        stages: of the plan.
        alone: the largest member, asked about every row.
        cores: of a server.
        largest: name of that member.
    """
    few = max(2, len(stages))
    designs = {
        f"cascade, servers of {cores} cores": (stages, cores, True),
        f"cascade, servers of {few} cores": (stages, few, True),
        f"{largest} alone, servers of {cores} cores": (alone, cores, False),
    }
    return draw_plots(
        {
            folder / "scaling-parts.png": lambda axes: _parts(axes, stages, cores),
            folder / "scaling-cores.png": lambda axes: _cores(axes, designs),
        }
    )


def _parts(axes: Any, stages: Sequence[QueueStage], cores: int) -> None:
    parts = {f"stage {place}, one batch at a time": stage.load(1e-3) for place, stage in enumerate(stages)}
    parts[f"all {cores} cores"] = sum(parts.values()) / cores
    for name, load in parts.items():
        axes.plot(_RATES, 100 * load * _RATES, label=name)
    axes.axhline(100 * MOST_LOAD, color="#606060", linestyle="--", linewidth=1)
    axes.annotate("most that is planned for", (_RATES[0], 100 * MOST_LOAD * 1.15), fontsize=8)
    axes.set_ylim(1e-1, 1e4)
    axes.set_ylabel("percent of what it can carry (log scale)")
    axes.set_title("What one server uses of each part; the first line to cross breaks first")
    _rates(axes)


def _cores(axes: Any, designs: Mapping[str, tuple[Sequence[QueueStage], int, bool]]) -> None:
    for name, (stages, cores, one_at_once) in designs.items():
        needed = [
            cores * sized(name, stages, Demand(rate=float(rate), cores=cores), one_at_once=one_at_once).servers
            for rate in _RATES
        ]
        axes.plot(_RATES, needed, label=name, drawstyle="steps-mid")
    axes.set_ylabel("cores of all servers (log scale)")
    axes.set_title("Cores that are needed, at a load of at most 80 %")
    _rates(axes)


def _rates(axes: Any) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for rate in _MARKED:
        axes.axvline(rate, color="#b0b0b0", linewidth=0.8)
    axes.set_xlabel("rows per second")
    axes.legend(fontsize=8, frameon=False)
