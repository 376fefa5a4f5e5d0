"""frontier.png: accuracy on the test part against mean MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.report.words import times_words
from perf.studies.reproduce.choices import HEADLINE

# kind -> colour, marker, words; told apart without colour too.
LOOKS = {
    "single": ("#4c72b0", "o", "single models"),
    "ensemble": ("#8172b3", "s", "ensembles (2 to 4 averaged)"),
    "cascade": ("#c44e52", "D", "cascades"),
}


def draw_frontier(results: dict[str, Any], path: Path) -> None:
    """Draws every plan of the figure with the interval of its accuracy.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("perf reproduce", got="no matplotlib", fix="pip install 'committee[plan]'") from error
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, (colour, marker, words) in LOOKS.items():
        _points(axes, results["picture"][kind], colour=colour, marker=marker, words=words, joined=kind != "single")
    for facts in results["picture"]["single"]:
        if facts["plan"].endswith(("_s0", "_low", "_high")):
            axes.annotate(
                facts["plan"].removesuffix("_s0"), (facts["mean_cost"] / 1e6, 100 * facts["accuracy"]),
                xytext=(5, -13), textcoords="offset points", fontsize=8, color=LOOKS["single"][0],
            )  # fmt: skip
    _headline(axes, results)
    axes.set_xscale("log")
    axes.set_xlabel("mean MMACs per row (log scale)")
    axes.set_ylabel("accuracy on the test part, % (with 95 % interval)")
    axes.set_title(f"Glyphs (drawn by this project, not ImageNet), {results['test_part']['rows']:,} test rows")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def _points(axes: Any, plans: list[dict[str, Any]], *, colour: str, marker: str, words: str, joined: bool) -> None:
    order = sorted(plans, key=lambda facts: facts["mean_cost"])
    x = [facts["mean_cost"] / 1e6 for facts in order]
    y = [100 * facts["accuracy"] for facts in order]
    low = [value - 100 * facts["accuracy_ci95"][0] for value, facts in zip(y, order, strict=True)]
    high = [100 * facts["accuracy_ci95"][1] - value for value, facts in zip(y, order, strict=True)]
    axes.errorbar(
        x, y, yerr=[low, high], fmt=marker, color=colour, markersize=5, capsize=2, elinewidth=1, label=words,
        linestyle="-" if joined else "none", linewidth=0.8, alpha=0.9,
    )  # fmt: skip


def _headline(axes: Any, results: dict[str, Any]) -> None:
    """The headline plan and the single model it replaces, with a line between them."""
    line = results["claims"][HEADLINE][0]
    if line["one"] is None:
        return
    ends = [(facts["mean_cost"] / 1e6, 100 * facts["accuracy"]) for facts in (line["one"], line["other"])]
    axes.annotate(
        "", xy=ends[0], xytext=ends[1], arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.2}
    )
    axes.plot(*ends[0], "*", color="black", markersize=13, zorder=5, label="headline plan")
    axes.annotate(
        times_words(line["macs_factor"], noun="MACs", form=".1f"), ends[0], xytext=(-6, 12),
        textcoords="offset points", ha="right", fontsize=10, fontweight="bold",
    )  # fmt: skip
