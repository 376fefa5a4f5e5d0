"""Results of a run as files: results.json, results.csv, plots and the report; no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from perf.harness.frame import write_tables
from perf.harness.report import COLOURS, draw_plot
from perf.harness.run import Results
from perf.studies.gpu.compare import CascadeSpeedup
from perf.studies.gpu.device import Device


@dataclass(frozen=True, kw_only=True)
class NetworkRates:
    """What one network did by itself.

    Args:
        family: its family.
        member: name.
        rows_per_s: by batch size, median over rounds; sizes that could not be run are missing.
    """

    family: str
    member: str
    rows_per_s: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class GpuResults:
    """Everything a run leaves.

    Args:
        device: it ran on.
        precision: of the networks.
        small: networks of a toy's size.
        bench: the served cells.
        alone: the networks by themselves.
        comparisons: of each cascade with its baseline.
    """

    device: Device
    precision: str
    small: bool
    bench: Results
    alone: Sequence[NetworkRates]
    comparisons: Sequence[CascadeSpeedup]

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        document = self.bench.as_json()
        del document["targets"]
        return {
            **document,
            "device": self.device.as_json(),
            "precision": self.precision,
            "small": self.small,
            "alone": [asdict(one) for one in self.alone],
            "comparisons": [one.as_json() for one in self.comparisons],
        }


def write_results(results: GpuResults, folder: Path) -> list[Path]:
    """Writes results.json, results.csv (a row per served cell) and alone.csv, and returns their paths."""
    written = write_tables(results.as_json(), results.bench.cells, folder)
    alone = folder / "alone.csv"
    rows = [
        (one.family, one.member, batch, round(rate, 2))
        for one in results.alone
        for batch, rate in one.rows_per_s.items()
    ]
    table = pd.DataFrame(rows, columns=["family", "member", "batch", "rows_per_s"])
    table.to_csv(alone, index=False, lineterminator="\n")
    return [*written, alone]


def draw_plots(results: GpuResults, folder: Path) -> list[Path]:
    """Draws speed-ups and what the networks do alone, and returns the files."""
    pictures = {"speedups": _speedups, "alone": _alone}
    return [
        path
        for name, draw in pictures.items()
        for path in draw_plot(folder / f"gpu-{name}.png", partial(draw, results=results))
    ]


def _speedups(axes: Any, results: GpuResults) -> None:
    """Measured online and offline beside what multiply-adds say."""
    kinds = (
        ("online, measured", "online_speedup", COLOURS["committee"]),
        ("offline, measured", "offline_speedup", COLOURS["tutorial"]),
        ("multiply-adds, arithmetic", "macs_speedup", COLOURS["pass_through"]),
    )
    places = range(len(results.comparisons))
    for number, (label, field, colour) in enumerate(kinds):
        values = [getattr(one, field) or 0.0 for one in results.comparisons]
        axes.barh([place - 0.27 * (number - 1) for place in places], values, 0.25, color=colour, label=label)
    axes.set_yticks(list(places), [one.cascade for one in results.comparisons])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed-up over the largest network alone; exit mix imposed, random weights")
    axes.legend(fontsize=8)


def _alone(axes: Any, results: GpuResults) -> None:
    """Rows/s over the batch size."""
    for one in results.alone:
        axes.plot(list(one.rows_per_s), list(one.rows_per_s.values()), marker="o", label=one.member)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows per batch, in this process")
    axes.set_ylabel("rows/s, median over rounds (log scale)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
