"""`python -m perf reproduce`: choose on the plan part, write the choices, then draw the test part and evaluate.

docs/reproduce.md (its text stands in document.md.j2) and its figure have no number that is not in results.json.
"""

import json
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from export.commands.console import needs
from orchestrator.cli.console import progress as bar
from orchestrator.errors import DataError, RepositoryError
from orchestrator.local import LocalMembers
from orchestrator.progress import Advance
from orchestrator.report.words import times_words
from orchestrator.repository.files import disk_errors, sha256_of_path, write_all
from perf.studies.reproduce import claims
from perf.studies.reproduce.choose import choose
from perf.studies.reproduce.claims import SECTIONS, ClaimSection, fewer_macs, points, times
from perf.studies.reproduce.evaluate import RESULTS, TimingLoad, check_same, kept_results, results_of
from perf.studies.reproduce.parts import CACHE, MEMBERS, DrawPart, PartRecorder, Say, draw_glyphs, require_members
from perf.studies.reproduce.plans import CHOICES, HEADLINE, choices_from_path, short, write_choices, write_document
from perf.studies.training import REPOSITORY

_TEMPLATE = Path(__file__).with_name("document.md.j2")
_WIDTH = 115
_IN_TEMPLATE = (
    "accuracy", "difference", "exits", "fewer_macs", "fewer_macs_between", "fewer_macs_ranged", "mmacs", "percent",
    "points", "spread", "times",
)  # fmt: skip
# Kind of plan -> its colour, its marker and its name; they differ without colour too.
_LOOKS = {
    "single": ("#4c72b0", "o", "single models"),
    "ensemble": ("#8172b3", "s", "ensembles (2 to 4 averaged)"),
    "cascade": ("#c44e52", "D", "cascades"),
}


def md_from_results(results: dict[str, Any], *, folder: str) -> str:
    """The document of results, with the figure in a folder relative to it.

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
    plan = results["plan_part"]
    headline, *certified = results["claims"][HEADLINE]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        **{name: getattr(claims, name) for name in _IN_TEMPLATE},
        r=results,
        folder=folder,
        plan=plan,
        machine=results["machine"],
        best=short(plan["most_accurate"]),
        headline=headline,
        certified=certified,
        test_best=results["against_test_best"],
        sections={one.claim: _section(one, results) for one in SECTIONS if one.claim in results["claims"]},
    )


def _filled(text: str, *, first: str = "", rest: str = "") -> str:
    """Text in lines of one width, whatever the width it was written in."""
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    text = " ".join(text.split())
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=rest, **whole) + "\n"


def _section(section: ClaimSection, results: dict[str, Any]) -> dict[str, str]:
    lines = results["claims"][section.claim]
    columns = list(section.columns)
    if any("time_factor" in line for line in lines):
        columns += [claims.time_column(load["batch"]) for load in results["timing"]["loads"]]
    said = {"short": section.short(lines), "verdict": section.verdict(lines)}
    return {"title": section.title, "table": claims.table(columns, lines), **said}


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
    y = 100 * np.array([facts["accuracy"] for facts in order])
    low, high = 100 * np.array([facts["accuracy_ci95"] for facts in order]).T
    axes.errorbar(
        x, y, yerr=[y - low, high - y], fmt=marker, color=colour, markersize=5, capsize=2, elinewidth=1,
        label=words, linestyle="-" if joined else "none", linewidth=0.8, alpha=0.9,
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


DOCS, QUICK_DOCS = Path("docs/reproduce"), Path("build/reproduce")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a run does.

    Args:
        rows: number of rows of each part; None takes all.
        quantiles: number of thresholds tried per stage.
        margin_splits: number of splits of the plan part on which margins are validated.
        loads: how plans are asked while they are timed.
    """

    rows: int | None
    quantiles: int
    margin_splits: int
    loads: tuple[TimingLoad, ...]


FULL = Effort(
    rows=None,
    quantiles=100,
    margin_splits=10,
    loads=(TimingLoad(batch=32, rows=4096, rounds=7), TimingLoad(batch=1, rows=1024, rounds=7)),
)
QUICK = Effort(
    rows=2000,
    quantiles=20,
    margin_splits=2,
    loads=(TimingLoad(batch=32, rows=256, rounds=3), TimingLoad(batch=1, rows=64, rounds=3)),
)


def reproduce(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder of the results; the document lies beside it.  [docs/reproduce]"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A try with few rows and thresholds, written to build/reproduce.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Judge the choices that lie in the folder once more, on the same pictures; nothing is chosen and "
            "the measured times stay.",
        ),
    ] = False,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the glyphs members.")] = REPOSITORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check the paper's claims on glyphs, data of our own: tables with intervals, a figure, a headline.

    Plans are chosen on the plan part and judged once on the test part. Takes some minutes; close other programs,
    for times are measured too.

    Example: python -m perf reproduce --quick
    """
    folder = folder_by_name(output or (QUICK_DOCS if quick else DOCS))
    command = "python -m perf reproduce" + (" --quick" if quick else "")
    with needs("perf reproduce"):  # loads Pillow and matplotlib: optional, and start-up time
        from perf.studies.glyphs_data import CLASSES
    results = run(
        folder,
        effort=QUICK if quick else FULL,
        repository=repository,
        names=MEMBERS,
        draw=draw_glyphs,
        classes=CLASSES,
        cache=CACHE,
        command=command,
        again=again,
        say=lambda text: typer.echo(text, err=True),
    )
    if as_json:
        typer.echo(json.dumps(results, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join(_summary(results)))
    typer.echo(f"Written: {document_beside(folder)}, {folder}/")


def document_beside(folder: Path) -> Path:
    """Path of the document that belongs to a folder of results."""
    return folder.with_name(f"{folder.name}.md")


def folder_by_name(folder: Path) -> Path:
    """The folder by its own name, which the document beside it takes; "." and ".." have none.

    Raises:
        DataError: the folder is the root, which has nothing beside it.
    """
    named = folder.resolve() if folder.name in ("", "..") else folder
    if not named.name:
        raise DataError(f"perf reproduce --output {folder}", got="the root folder", expected="one inside a folder")
    return named


def require_writable(folder: Path) -> None:
    """Refuses, before any work, a place where results or the document beside them cannot be written.

    Raises:
        RepositoryError: names the place.
    """
    document = document_beside(folder)
    if document.is_dir():
        raise RepositoryError(f"document {document}", got="a folder", expected="a file, or nothing yet")
    for place in (folder, folder.parent):
        with disk_errors(f"results in {place}"):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass


def run(
    folder: Path,
    *,
    effort: Effort,
    repository: Path,
    names: Sequence[str],
    draw: DrawPart,
    classes: Sequence[str],
    cache: Path,
    command: str,
    say: Say,
    again: bool = False,
) -> dict[str, Any]:
    """Everything the command does, with any members and any data.

    Args:
        folder: gets choices.json, results.json and frontier.png; `<folder>.md` is written too.
        effort: how much the run does.
        repository: model repository that holds the members.
        names: of the members, in the shape of `parts.MEMBERS`.
        draw: draws the rows of a part.
        classes: their names.
        cache: folder that keeps records between runs.
        command: that repeats the run.
        say: called with a line before each step.
        again: evaluate the choices that lie in the folder and keep the times, the number of rows and the command
            of its results.

    Raises:
        CommitteeError: members are missing or do not fit, or a file cannot be written.
    """
    require_members(repository, names)
    require_writable(folder)
    kept = kept_results(folder) if again else None
    rows = effort.rows if kept is None else kept["test_part"]["rows"]
    recorder = PartRecorder(repository=repository, names=names, draw=draw, rows=rows, cache=cache, say=say)
    plan = recorder.plan_part()
    choices = folder / CHOICES
    if kept is None:
        chosen = choose(plan, quantiles=effort.quantiles, margin_splits=effort.margin_splits, progress=_told(say))
        write_choices(chosen, folder)
        say(f"choices written to {choices}; the test part is opened now")
    test = recorder.test_part(plan=plan, choices=choices)
    if kept is not None:
        command = kept["command"]
        check_same(kept, plan, test)
    results = results_of(
        choices_from_path(choices),
        test,
        members=LocalMembers(repository, names, threads=1),
        loads=effort.loads,
        command=command,
        classes=classes,
        say=say,
        kept=kept,
    )
    results["choices_sha256"] = sha256_of_path(choices)
    write_document(results, folder / RESULTS)
    draw_frontier(results, folder / "frontier.png")
    write_all(folder.parent, {document_beside(folder).name: md_from_results(results, folder=folder.name)})
    return results


def _told(say: Say) -> Callable[[str, int], Any]:
    """A progress bar on a terminal, and a line for every search."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Advance]:
        say(f"plan part: {description}")
        with bar(description, total) as advance:
            yield advance

    return progress


def _summary(results: dict[str, Any]) -> list[str]:
    line, beside = results["claims"][HEADLINE][0], results["against_test_best"]
    best = results["plan_part"]["most_accurate"]
    if line["one"] is None:
        return [f"glyphs: no cheaper plan is ahead of {best} by the margin"]
    clock = ", ".join(
        f"{times(one['median'])}x as fast at batch {batch}" for batch, one in line["time_factor"].items()
    )
    said = [
        f"glyphs, {line['one']['n']:,} test rows: {line['one']['plan']}",
        f"  {fewer_macs(line['macs_factor'])} than {best}, measured {clock}",
        f"  accuracy difference {_difference(line)}",
    ]
    if beside["other"]["stages"] != [[best]]:
        fewer, plan = fewer_macs(beside["macs_factor"]), beside["other"]["plan"]
        said.append(f"  against {plan}, the most accurate on the test part: {fewer}, {_difference(beside)}")
    return said


def _difference(line: dict[str, Any]) -> str:
    low, high = map(points, line["difference_ci95"])
    return f"{points(line['difference'])} points ({low} to {high})"
