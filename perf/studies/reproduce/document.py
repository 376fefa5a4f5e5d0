"""docs/reproduce.md and its figure, from results.json: neither has a number that is not in there.

The text stands in document.md.j2.
"""

import textwrap
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.report.words import times_words
from perf.studies.reproduce import tables
from perf.studies.reproduce.choices import HEADLINE, short
from perf.studies.reproduce.claims import SECTIONS, ClaimSection

_TEMPLATE = Path(__file__).with_name("document.md.j2")
_WIDTH = 115
# Kind of plan -> its colour, its marker and its name; they differ without colour too.
_LOOKS = {
    "single": ("#4c72b0", "o", "single models"),
    "ensemble": ("#8172b3", "s", "ensembles (2 to 4 averaged)"),
    "cascade": ("#c44e52", "D", "cascades"),
}


def md_from_results(results: dict[str, Any], *, folder: str) -> str:
    """The document.

    Args:
        results: as results.json holds them.
        folder: folder of the figure, relative to the document.

    Raises:
        DataError: jinja2 is not installed.
    """
    try:
        import jinja2  # optional
    except ImportError as error:
        raise DataError("perf reproduce", got="no jinja2", fix="pip install 'committee[plan]'") from error
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"paragraph": _filled, "bullet": lambda text: _filled(text, first="- ", rest="  ")}
    names = ("accuracy", "difference", "exits", "fewer_macs", "fewer_macs_between", "fewer_macs_ranged")
    plan = results["plan_part"]
    headline, *certified = results["claims"][HEADLINE]
    loads = (
        f"batches of {one['batch']} ({one['rows']:,} rows, {one['rounds']} rounds)"
        for one in results["timing"]["loads"]
    )
    there = [section for section in SECTIONS if section.claim in results["claims"]]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        **{name: getattr(tables, name) for name in names},
        r=results,
        folder=folder,
        plan=plan,
        machine=results["machine"],
        best=short(plan["most_accurate"]),
        headline=headline,
        certified=certified,
        test_best=results["against_test_best"],
        times_as_fast=_times_as_fast,
        epsilons=" or ".join(f"{epsilon:g}" for epsilon in plan["epsilons"]),
        loads=" and ".join(loads),
        summary=_summary(there, results),
        margins=_margins(results),
        members=_members(results),
        sections=[_section(section, results) for section in there],
    )


def _filled(text: str, *, first: str = "", rest: str = "") -> str:
    """Text in lines of one width, whatever the width it was written in."""
    return (
        textwrap.fill(
            " ".join(text.split()),
            _WIDTH,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        + "\n"
    )


def _times_as_fast(line: dict[str, Any]) -> str:
    return " and ".join(
        f"{tables.spread(factor)} times as fast in batches of {batch}"
        for batch, factor in line["time_factor"].items()
    )


def _summary(sections: list[ClaimSection], results: dict[str, Any]) -> str:
    lines = [(section.title, section.short(results["claims"][section.claim])) for section in sections]
    return tables.plain_table(("claim", "what came of it on glyphs"), lines)


def _margins(results: dict[str, Any]) -> str:
    head = (
        "margin, standard errors",
        "plans found",
        "mean difference, points",
        "less accurate",
        "its MACs over the plan's",
    )
    rows = [
        (
            f"{line['margin_se']:g}",
            f"{line['plans']} of {line['splits']}",
            tables.points(line["mean_difference"]) if line["plans"] else "-",
            f"{line['lower']} of {line['plans']}",
            tables.times(line["mean_macs_factor"]) if line["plans"] else "-",
        )
        for line in results["rehearsal"]
    ]
    return tables.plain_table(head, rows)


def _members(results: dict[str, Any]) -> str:
    batches = [str(load["batch"]) for load in results["timing"]["loads"]]
    routes = {route["plan"]: route["ms_per_row"] for route in results["timing"]["routes"]}
    rows = []
    for facts in results["picture"]["single"]:
        known = results["members"][facts["stages"][0][0]]
        rows.append(
            [
                facts["plan"],
                str(known["resolution_px"]),
                tables.mmacs(known["macs"]),
                tables.mmacs(known["preprocess_macs"]),
                tables.accuracy(facts),
                tables.percent(facts["plan_part_accuracy"]),
                *(tables.spread(routes[facts["plan"]][batch], "{:.4f}".format) for batch in batches),
            ]
        )
    head = ["member", "px", "MMACs", "resizing", "test accuracy %", "plan part %"]
    return tables.plain_table([*head, *(f"ms per row, batch {batch}" for batch in batches)], rows)


def _section(section: ClaimSection, results: dict[str, Any]) -> dict[str, str]:
    lines = results["claims"][section.claim]
    columns = list(section.columns)
    if any("time_factor" in line for line in lines):
        columns += [tables.time_column(load["batch"]) for load in results["timing"]["loads"]]
    table, verdict = tables.table(columns, lines), section.verdict(lines)
    return {"title": section.title, "text": section.text, "table": table, "verdict": verdict}


def draw_frontier(results: dict[str, Any], path: Path) -> None:
    """Draws every plan of the figure with the interval of its accuracy.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional, and start-up time
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DataError("perf reproduce", got="no matplotlib", fix="pip install 'committee[plan]'") from error
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, (colour, marker, words) in _LOOKS.items():
        _points(axes, results["picture"][kind], colour=colour, marker=marker, words=words, joined=kind != "single")
    for facts in results["picture"]["single"]:
        if facts["plan"].endswith(("_s0", "_low", "_high")):
            axes.annotate(
                facts["plan"].removesuffix("_s0"), (facts["mean_cost"] / 1e6, 100 * facts["accuracy"]),
                xytext=(5, -13), textcoords="offset points", fontsize=8, color=_LOOKS["single"][0],
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
