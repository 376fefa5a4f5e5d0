"""`python -m perf text` and `text-study`: train the docstrings members, and see which plans they allow."""

import json
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from export.commands.console import needs, progress_on
from orchestrator.planner.records import write_records
from orchestrator.repository.files import write_all
from perf.harness.report import markdown_table
from perf.studies.training import show_members

REPOSITORY = Path("perf/text/model_repository")
PAGE = Path("docs/text-study.md")
_WIDTH = 118
_ABOUT = """
**No public benchmark.** Rows are paragraphs of the docstrings of scipy, scikit-learn and matplotlib, and the
question is which of 20 subpackages a paragraph documents. Names of libraries and of classes are taken out of
the text, duplicates are dropped, and all paragraphs of a docstring lie in the same part. It is real text that
needs no download; it says nothing of other text. The members are small and trained here, on the fit part, by
`python -m perf text`: TF-IDF with logistic regression, and encoders behind one tokeniser that learn from labels
and from linear models of letters and of pairs of words that had not seen the row. The large one has a table of
pairs of tokens beside it, which remembers phrases; alone it gets 74.7 % of the plan part
right; the model of letters (TF-IDF of three to five letters inside words, 67,535 of them) 74.1 %.

Plans are chosen on {plan:,} plan rows and judged once on {test:,} test rows. {groups} Intervals are 95 %
and, like the certificates, take rows for independent: paragraphs of one docstring or module are not, so
both are too narrow, as the two parts show. Time is CPU time of ONNX Runtime in one process, one thread per
call, on {cpu}, the tokeniser included, rows in their order: median, least and most of {rounds} rounds in
which all take turns. Other work on the machine still slows caches and memory, and what a server adds to
each request is not in it.
"""
_GROUPS = """
They come from {plan:,} and {test:,} docstrings; the rows that choose a plan and those that certify it are of
different ones.
"""
_PLANS = """
The most accurate member on the plan part is {best}; differences are from it, in points, on the test part. Times
as fast is that member's time over the plan's, one row at a time and in batches of 32; deferred rows are
gathered to full batches, and the decision between the stages is not in the time.
"""
# Times the rows per second of the most accurate member served alone.
TARGET = 4
_SERVED = """
The plan {asked}, served beside {best}, the rival: Triton's own ensemble of the tokenizer and the
member, with dynamic batching and an instance for each core. {in_process}All in one server, embedded Triton
{triton}, whose ONNX Runtime backend is a stand-in in Python; perf_analyzer on the same {cores} cores keeps
{in_flight} requests in flight, rows of the test part in their order. {rounds} windows of {seconds:g} s for each
route, {longer:g} s with 32 rows, in turns; medians, and the geometric mean of the ratios within rounds with its
95 % interval.
{busy}
"""
_SERVED_HEAD = ("request", "route", "rows/s", "CPU ms of the server per row", "p50, ms", "p99, ms")
_MEMBER_HEAD = (
    "member",
    "parameters",
    "MACs per row",
    "plan, %",
    "test, %",
    "CPU ms per row, 1 at a time",
    "32 at a time",
)
_PLAN_HEAD = ("asked for", "stages", "combine", "exits, %", "test, %", "difference", "times as fast, 1", "32")


def text(
    output: Annotated[Path, typer.Option("--output", "-o", help="Model repository to write into.")] = REPOSITORY,
    only: Annotated[list[str] | None, typer.Option(help="A member to make, may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, masked words and dropout.")] = 0,
    force: Annotated[bool, typer.Option(help="Train again even where a member is up to date.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Train a linear model and encoders on docstrings, which subpackage is a paragraph about?, and export them.

    It takes about nine minutes of one core's time; the members are committed, so nobody has to. The encoders'
    tokeniser goes into the repository as a model.

    Example: python -m perf text --only docstrings_tiny -o build/text/model_repository
    """
    with needs("perf text"):
        # Optional packages, and slow to import.
        from perf.studies.text.members import export_text
    start = time.monotonic()
    with progress_on("text") as progress:
        done = export_text(output, only=only or (), seed=seed, force=force, progress=progress)
    show_members(done, folder=output, start_s=start, as_json=as_json)


def text_study(
    repository: Annotated[Path, typer.Option(help="Model repository of the members.")] = REPOSITORY,
    page: Annotated[Path, typer.Option(help="Page to write; its figures go beside it as JSON.")] = PAGE,
    records: Annotated[
        Path, typer.Option(help="Folder for plan.npz and test.npz, which `committee plan` and `evaluate` read.")
    ] = Path("build/text"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 3,
    served: Annotated[
        bool,
        typer.Option(
            "--served",
            help="Also serve the plan with the strictest certificate beside the most accurate member, in turns.",
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, help="Of each window of single rows served; of 32 rows four times as long.")
    ] = 8.0,
) -> None:
    """Record the docstrings members on the plan and test parts, time them here, plan, and write what comes out.

    Without --served the page keeps no figures of served routes.

    Example: python -m perf text-study --served --rounds 5
    """
    with needs("perf text-study"):
        # Optional packages, and slow to import.
        from perf.studies.text.members import MEMBERS
        from perf.studies.text.served import served_study
        from perf.studies.text.study import CERTIFIED, study
    with progress_on("text-study") as progress:
        results, parts, plans = study(repository, list(MEMBERS), rounds=rounds, say=progress)
        for part, found in parts.items():
            records.mkdir(parents=True, exist_ok=True)
            write_records(found, records / f"{part}.npz")
        _write_page(page, results)
        if served and plans:
            # The first that promises something, else the first.
            asked = next((words for words in plans if words.startswith(CERTIFIED)), next(iter(plans)))
            how: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "say": progress}
            figures = served_study(plans[asked], parts["test"], results["best"], repository, **how)
            _write_page(page, results | {"served": {"asked": asked, **figures}})
    typer.echo(f"Written: {page}, {page.with_suffix('.json')}, {records}/plan.npz, {records}/test.npz")


def _write_page(page: Path, results: dict[str, Any]) -> None:
    figures = json.dumps(results, indent=1) + "\n"
    write_all(page.parent, {page.with_suffix(".json").name: figures, page.name: md_from_results(results)})


def md_from_results(results: dict[str, Any]) -> str:
    """The page about the study, from its figures."""
    rows, machine = results["rows"], results["machine"]["cpu"]
    groups = _GROUPS.format(**results["groups"]) if "groups" in results else ""
    about = _ABOUT.format(**rows, groups=groups, cpu=machine, rounds=results["rounds"])
    paragraphs = [_filled(one) for one in about.split("\n\n")]
    members = markdown_table(_MEMBER_HEAD, map(_member_row, results["members"]))
    plans = markdown_table(_PLAN_HEAD, map(_plan_row, results["plans"]))
    parts = (
        "# A text committee: docstrings",
        "<!-- Written by `python -m perf text-study`; edits are lost. -->",
        *paragraphs,
        "## Members",
        "\n".join(members),
        "## Plans",
        _filled(_PLANS.format(best=results["best"])),
        "\n".join(plans),
        _filled(_outcome(results)),
        *(_served_parts(results) if "served" in results else ()),
    )
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _member_row(line: dict[str, Any]) -> list[str]:
    at = "" if line["macs_at"] is None else f" ({line['macs_at']} tokens)"
    return [
        line["name"],
        f"{line['parameters']:,}",
        f"{line['macs'] / 1e6:.2f} M{at}",
        *(_accuracy(line[part]) for part in ("plan", "test")),
        *(_time(line["ms"][batch]) for batch in ("1", "32")),
    ]


def _accuracy(facts: dict[str, Any]) -> str:
    low, high = facts["ci95"]
    return f"{100 * facts['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _time(facts: dict[str, float]) -> str:
    return f"{facts['median']:.3f} ({facts['least']:.3f} to {facts['most']:.3f})"


def _plan_row(line: dict[str, Any]) -> list[str]:
    if line["stages"] is None:
        return [line["asked"], f"none: {line['said']}", *[""] * 6]
    test = line["test"]
    low, high = test["difference_ci95"]
    return [
        line["asked"],
        ", then ".join(" + ".join(stage) for stage in line["stages"]),
        line["combine"],
        " / ".join(f"{100 * share:.0f}" for share in test["exit_share"]),
        _accuracy(test),
        f"{100 * test['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        *(f"{line['times_as_fast'][batch]:.1f}" for batch in ("1", "32")),
    ]


def _outcome(results: dict[str, Any]) -> str:
    """What the tables come to."""
    found = [line for line in results["plans"] if line["stages"] is not None]
    if not found:
        return "No plan is cheaper than the most accurate member at its accuracy."
    line = found[0]
    fast, (low, high) = line["times_as_fast"], line["test"]["difference_ci95"]
    return (
        f"Asked to be {line['asked']}, the plan is {fast['1']:.1f} times as fast one row at a time and "
        f"{fast['32']:.1f} times in batches of 32, at {100 * line['test']['difference']:+.1f} "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] points of accuracy on the test part. "
        + _against_test_best(line, results)
    )


def _against_test_best(line: dict[str, Any], results: dict[str, Any]) -> str:
    """The plan beside the member that is the most accurate on the test part, which may be cheaper."""
    best = max(results["members"], key=lambda one: one["test"]["accuracy"])
    fast = {batch: best["ms"][batch]["median"] / line["ms"][batch]["median"] for batch in ("1", "32")}
    change = 100 * (line["test"]["accuracy"] - best["test"]["accuracy"])
    return (
        f"On the test part {best['name']} is the most accurate member, which was known only afterwards: against "
        f"it the plan is {fast['1']:.1f} and {fast['32']:.1f} times as fast, at {change:+.1f} points. Members "
        "whose intervals overlap are not told apart by these rows."
    )


def _served_parts(results: dict[str, Any]) -> list[str]:
    """The section about served routes."""
    served = results["served"]
    line = next(one for one in results["plans"] if one["asked"] == served["asked"])
    low, high = line["test"]["difference_ci95"]
    right = (
        f"Its answers are right as often as replay says: {100 * line['test']['difference']:+.1f} "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] points against {served['best']} on these rows, paired."
    )
    rows = [
        [f"{batch} rows" if batch != "1" else "1 row", *_served_row(name, figures, times, served["best"])]
        for batch, times in served["batches"].items()
        for name, figures in times["routes"].items()
    ]
    busy = served["cores_in_use"]
    said = _SERVED.format(
        asked=served["asked"],
        best=served["best"],
        in_flight=served["in_flight"],
        rounds=served["rounds"],
        seconds=served["seconds"],
        longer=served["seconds_of_32"],
        cores=served["cores"],
        triton=served["triton"],
        in_process=f"{served['in_process']} is the same plan, rendered with `--in-process 1`. "
        if "in_process" in served
        else "",
        busy=f"Other work used {busy:.1f} of the {served['cores']} cores when it began: rows per second are "
        "less than an idle machine gives and their ratios uncertain, more so for the slower side, whose windows "
        "hold few requests. CPU time per row hardly feels that. "
        if busy > served["cores"] / 8
        else "",
    )
    held = " ".join(
        f"Held to replay: of {checked['rows']:,} answers of {name}, each row a request of its own and "
        f"{checked['in_flight']} in flight, {checked['differing']} differ in label or exit stage; "
        f"{checked['near']} rows within 1e-5 of a threshold are not counted."
        for name, checked in served["checked"].items()
    )
    return [
        "## Served",
        _filled(said),
        "\n".join(markdown_table(_SERVED_HEAD, rows)),
        *map(_filled, (_times(served), f"{held} {right}")),
    ]


def _served_row(name: str, figures: dict[str, float], times: dict[str, Any], best: str) -> list[str]:
    is_rival = name.startswith(f"{best}_alone_")
    instances = name.rpartition("_")[2]
    return [
        f"tokenizer, then {best}, instances: {instances}" if is_rival else name,
        f"{figures['rows_per_s']:.0f}" + (" (the rival)" if name == times["rival"] else ""),
        f"{figures['cpu_ms_per_row']:.2f}",
        f"{figures['p50_ms']:.1f}",
        f"{figures['p99_ms']:.1f}",
    ]


def _times(served: dict[str, Any]) -> str:
    """The ratios with their intervals, and whether the target is met."""
    parts = []
    for batch, found in served["batches"].items():
        words = "requests of one row" if batch == "1" else f"requests of {batch} rows"
        for name, times in found["times"].items():
            fast, cpu = times["rows_per_s"], times["less_cpu"]
            met = "met" if fast["low"] >= TARGET else "not met" if fast["high"] < TARGET else "within the interval"
            parts.append(
                f"With {words} {name} answers {fast['times']:.2f} [{fast['low']:.2f}, {fast['high']:.2f}] times "
                f"as many rows per second as the rival (target {TARGET}: {met}), for {cpu['times']:.2f} "
                f"[{cpu['low']:.2f}, {cpu['high']:.2f}] times less CPU time of the server per row."
            )
    return " ".join(parts)
