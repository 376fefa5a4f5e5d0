"""docs/reproduce.md: the results in tables and sentences. It has no numbers but those of results.json."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from orchestrator.report.words import times_between
from perf.studies.reproduce import tables
from perf.studies.reproduce.choices import HEADLINE, short
from perf.studies.reproduce.sections import SECTIONS, ClaimSection
from perf.studies.reproduce.tables import (
    fewer_macs,
    fewer_macs_ranged,
    mmacs,
    percent,
    plain_table,
    points,
    ranged,
    spread,
    table,
    times,
)
from perf.studies.reproduce.verdicts import VERDICTS

WIDTH = 115


def md_from_results(results: dict[str, Any], *, folder: str) -> str:
    """The document.

    Args:
        results: as results.json holds them.
        folder: where the figure lies, relative to the document.
    """
    parts = [
        "# The paper's claims on glyphs, data of our own\n",
        f"<!-- Written by `{results['command']}` from {folder}/results.json; edits are lost. -->\n",
        _about(results),
        _headline(results),
        f"![accuracy against MACs of single models, ensembles and cascades]({folder}/frontier.png)\n",
        _method(results),
        _rehearsal(results),
        _members(results),
    ]
    parts += [_section(section, results) for section in SECTIONS if section.claim in results["claims"]]
    parts.append(_again(results))
    return "\n".join(parts)


def paragraph(text: str) -> str:
    """Text in lines of one width, whatever the width it was written in."""
    return _filled(text) + "\n"


def bullets(texts: Sequence[str]) -> str:
    """A list of such texts."""
    return "\n".join(_filled(text, first="- ", next_="  ") for text in texts) + "\n"


def _filled(text: str, *, first: str = "", next_: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=next_,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _about(results: dict[str, Any]) -> str:
    return paragraph(
        f"""**Not ImageNet.** Glyphs are pictures of letters and digits that this project draws from fonts and a
        seed ({len(results["classes"])} classes), and the members are small networks trained on them here. They can
        show whether a claim holds on such data, and by how much there. They say nothing of the paper's networks or
        of photographs."""
    )


def _headline(results: dict[str, Any]) -> str:
    plan, *certified = results["claims"][HEADLINE]
    best = short(results["plan_part"]["most_accurate"])
    text = f"The most accurate single model on the plan part is {best}."
    if plan["one"] is None:
        return "## Headline\n\n" + paragraph(f"{text} There is no headline: {plan['note']}.")
    factor, full = plan["macs_factor"], plan["macs_factor_with_resizing"]
    between = times_between(plan["macs_factor_ci95"], factor, noun="MACs", form=".2f")
    text += f""" The cascade **{plan["one"]["plan"]}** takes **{fewer_macs(factor)}** (95 % interval {between};
        {fewer_macs(full)} with those of the resizing inside the graphs) and is measured {_clocked(plan)}."""
    return (
        "## Headline\n\n"
        + paragraph(text)
        + "\n"
        + bullets(
            [
                _accuracies(plan),
                f"""By the test part alone it is, with probability 0.95 over the rows drawn, less accurate than
                {best} by at most {100 * plan["worse_by_at_most"]:.2f} points (exact bound from {plan["losses"]}
                rows lost and {plan["gains"]} won).""",
                _hardest(results["against_test_best"], best),
                *(_certified(line) for line in certified),
                "For context only: the paper reports 5.4 times on ImageNet, with other networks on other data.",
            ]
        )
    )


def _clocked(line: dict[str, Any]) -> str:
    return " and ".join(
        f"{spread(factor)} times as fast in batches of {batch}" for batch, factor in line["time_factor"].items()
    )


def _accuracies(line: dict[str, Any]) -> str:
    one, other = line["one"], line["other"]
    return f"""Test accuracy {ranged(one["accuracy"], one["accuracy_ci95"], percent)} % against
        {ranged(other["accuracy"], other["accuracy_ci95"], percent)} % on {one["n"]:,} rows; paired difference
        {ranged(line["difference"], line["difference_ci95"], points)} points. Exits at each stage:
        {tables.EXITS[1](line)} %."""


def _hardest(line: dict[str, Any], best: str) -> str:
    """The headline against the single model that only the test part shows to be the most accurate."""
    other = line["other"]
    if other["plan"] == best:
        return f"On the test part, too, {best} is the most accurate single model."
    return f"""On the test part {other["plan"]} is the most accurate single model, at
        {ranged(other["accuracy"], other["accuracy_ci95"], percent)} %. That was known only after every choice;
        against it the cascade takes {fewer_macs_ranged(line)} and is measured {_clocked(line)}, and the paired
        difference is {ranged(line["difference"], line["difference_ci95"], points)} points."""


def _certified(line: dict[str, Any]) -> str:
    if line["one"] is None:
        return f"The planner's guarantee ({line['label']}): {line['note']}."
    promised = line["guarantee"]
    change = ranged(line["difference"], line["difference_ci95"], points)
    return f"""The planner's guarantee ({line["label"]}), for a plan of its own: {promised["statement"]}
        ({promised["losses"]} rows lost and {promised["gains"]} won of {promised["rows"]:,} that had no part in
        proposing it). That plan, {line["one"]["plan"]}, takes {fewer_macs_ranged(line)} and differs by {change}
        points on the test part."""


def _method(results: dict[str, Any]) -> str:
    plan, test = results["plan_part"], results["test_part"]
    epsilons = " or ".join(f"{epsilon:g}" for epsilon in plan["epsilons"])
    loads = " and ".join(
        f"batches of {load['batch']} ({load['rows']:,} rows, {load['rounds']} rounds)"
        for load in results["timing"]["loads"]
    )
    return "## How it is measured\n\n" + bullets(
        [
            f"""**Two parts.** Every plan is chosen on {plan["rows"]:,} plan rows, by rules fixed beforehand, and
            written to `choices.json`. Only then are the {test["rows"]:,} test rows drawn, asked about and judged,
            once. Members were trained on rows of neither.""",
            f"""**The rule with the margin** (headline, 3, 4, 5): the cheapest plan that is ahead of the single
            model by {plan["margin_se"]:g} standard errors of the paired difference on the plan part, and
            cheaper.""",
            """**The rule without** (5, 6, 7): the optimum on the plan part, so that ways of planning can be
            compared. Test accuracy then tends to lie below what was seen while choosing.""",
            f"""**The guarantee**: the planner's, with epsilon {epsilons} and delta {plan["delta"]:g}.
            {plan["rows_propose"]:,} plan rows propose plans and {plan["rows_confirm"]:,} others confirm them.""",
            f"""**Search**: every subset of up to four members in cost order, {plan["quantiles"]} thresholds per
            stage and "never", exact on that grid. Logits are averaged and the largest probability is the score
            where nothing else is said. No temperatures.""",
            """**Cost**: MACs per row of the networks, as `committee record` takes them from the manifests. Those
            of the resizing inside the graphs come on top and are counted only where that is said.""",
            """**Intervals** are 95 %: accuracies exact (Clopper-Pearson); differences paired by row, normal, with
            half a row added each way, and none where a plan is held against itself; ratios of MACs paired by
            row, by the delta method, and without an interval where neither cost varies. They are about the test
            rows drawn, each line by itself.""",
            f"""**Time**: ONNX Runtime with one thread, in one process, {loads}. All take turns within each round;
            factors are formed within a round, and the median stands with the smallest and the largest round.
            Cascades run the decision core that serves them; deferred rows gather until they fill a batch.""",
        ]
    )


def _rehearsal(results: dict[str, Any]) -> str:
    rows = []
    for line in results["rehearsal"]:
        some = line["plans"] > 0
        rows.append(
            [
                f"{line['margin_se']:g}",
                f"{line['plans']} of {line['splits']}",
                points(line["mean_difference"]) if some else "-",
                f"{line['lower']} of {line['plans']}",
                times(line["mean_macs_factor"]) if some else "-",
            ]
        )
    head = [
        "margin, standard errors",
        "plans found",
        "mean difference, points",
        "less accurate",
        "its MACs over the plan's",
    ]
    text = """Plan rows only: plans were chosen on a random 60 % of them and judged on the rest, against the most
        accurate single model. A plan that is just level where it was chosen is less accurate elsewhere; that is
        what the margin is for. (Splits overlap, so their number says little about chance.)"""
    return "### The margin, rehearsed\n\n" + paragraph(text) + "\n" + plain_table(head, rows)


def _members(results: dict[str, Any]) -> str:
    batches = [str(load["batch"]) for load in results["timing"]["loads"]]
    routes = {route["plan"]: route for route in results["timing"]["routes"]}
    rows = []
    for facts in results["picture"]["single"]:
        known = results["members"][facts["stages"][0][0]]
        taken = [routes[facts["plan"]]["ms_per_row"][batch] for batch in batches]
        rows.append(
            [
                facts["plan"],
                str(known["resolution_px"]),
                mmacs(known["macs"]),
                mmacs(known["preprocess_macs"]),
                ranged(facts["accuracy"], facts["accuracy_ci95"], percent),
                percent(facts["plan_part_accuracy"]),
                *(f"{one['median']:.4f} ({one['min']:.4f} to {one['max']:.4f})" for one in taken),
            ]
        )
    head = ["member", "px", "MMACs", "resizing", "test accuracy %", "plan part %"]
    head += [f"ms per row, batch {batch}" for batch in batches]
    return "## Members\n\n" + plain_table(head, rows)


def _section(section: ClaimSection, results: dict[str, Any]) -> str:
    lines: Sequence[dict[str, Any]] = results["claims"][section.claim]
    columns = list(section.columns)
    if any("time_factor" in line for line in lines):
        columns += [tables.time_column(load["batch"]) for load in results["timing"]["loads"]]
    said = paragraph(VERDICTS[section.claim](lines))
    return f"## {section.title}\n\n{paragraph(section.text)}\n{table(columns, lines)}\n{said}"


def _again(results: dict[str, Any]) -> str:
    machine, drawn = results["machine"], results["drawn_with"]
    text = f"""Times are of {machine["cpu"]} ({machine["cores"]} cores usable), {machine["platform"]}, Python
        {machine["python"]}, ONNX Runtime {machine["onnxruntime"]}, numpy {machine["numpy"]}. Pictures were drawn
        with Pillow {drawn["pillow"]} and the fonts of matplotlib {drawn["matplotlib"]}. With these two versions
        everything but times is the same on another machine, up to the last bits of floating-point sums; another
        Pillow draws some pictures with other levels, so that accuracies, plans and factors move a little. Hashes
        of both parts, thresholds and exact numbers are in `choices.json` and `results.json`."""
    return f"## Again\n\n```bash\n{results['command']}\n```\n\n{paragraph(text)}"
