"""`python -m perf clock`: what plans by the clock predict, held to what they take where they are served."""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from orchestrator.errors import DataError
from orchestrator.files import write_file
from orchestrator.recording.timing import TimeOptions
from perf.harness.machine import commit_here, cores_in_use_now, machine_here, write_json
from perf.harness.report import draw_plots, markdown_table, progress_shown, show
from perf.studies.clock.committees import COMMITTEES, committee_of
from perf.studies.clock.in_process import InProcessEffort, in_process
from perf.studies.clock.run import BATCHES, EPSILON, SHARES, ClockEffort, measured_committee, plans_of, timing_of
from perf.studies.reproduce.evaluate import TimingLoad

PAGE = Path("docs/clock.md")
# What is held to the goal: so many of the plans within these ratios.
LOW, HIGH, GOAL = 0.9, 1.1, 0.9
WHOLE = ClockEffort(timing_rounds=9, slot_ms=20.0, passes=5, pass_s=0.6, window_s=3.0)
QUICK = ClockEffort(timing_rounds=5, slot_ms=20.0, passes=3, pass_s=0.5, window_s=1.5)
_BATCHES_TIMED = (1, 2, 4, 8, 16, 32)
WHOLE_HERE = InProcessEffort(
    rows=None,
    timing=TimeOptions(batches=_BATCHES_TIMED, rounds=11),
    loads=(TimingLoad(batch=1, rows=1024, rounds=7), TimingLoad(batch=32, rows=4096, rounds=7)),
)
QUICK_HERE = InProcessEffort(
    rows=4000,
    timing=TimeOptions(batches=_BATCHES_TIMED, rounds=5, slot_ms=10.0),
    loads=(TimingLoad(batch=1, rows=512, rounds=5), TimingLoad(batch=32, rows=1024, rounds=5)),
)
# The part without a server, as a committee is named.
HERE = "glyphs_in_process"
PARTS = (*COMMITTEES, HERE)
_DISTURBED_CORES = 0.25
FORMAT = 1
_WIDTH = 118
_HEAD_HERE = (
    "batch", "plan", "most accurate member", "difference, points", "predicted ms, of that members",
    "measured ms (ratio)", "the member, ms (ratio)", "times as fast", "goal",
)  # fmt: skip
_HEAD = (
    "committee",
    "load",
    "stages",
    "reach, %",
    "predicted ms",
    "measured ms",
    "between passes",
    "ratio",
    "times as fast (the member's ratio)",
)


def clock(
    only: Annotated[list[str] | None, typer.Option(help=f"A part, may be repeated: {', '.join(PARTS)}.")] = None,
    output: Annotated[Path, typer.Option(help="Folder that keeps what was measured.")] = Path("build/clock"),
    page: Annotated[
        Path | None, typer.Option(help=f"Page to write, its picture beside it; {PAGE}, with --quick in --output.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter passes: about three minutes.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what an earlier run has left.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Predict plans by the clock, serve them, and compare: single requests of several sizes, and rates.

    A whole run takes about ten minutes. What members answer and what each committee gave is kept, and a
    run that was ended goes on there. Nothing else should run on the machine: a committee during which other
    work took more than a quarter of a core is measured anew by the next run.

    Example: python -m perf clock --only digits --only glyphs
    """
    names = _names(only)
    kept, effort = output / ("quick.json" if quick else "whole.json"), QUICK if quick else WHOLE
    found = {} if again else _kept(kept)
    here, records = QUICK_HERE if quick else WHOLE_HERE, output / "records"
    with progress_shown(resumed_by="python -m perf clock" + (" --quick" if quick else "")) as say:
        for name in [name for name in names if name not in found or is_disturbed(found[name])]:
            found[name] = (
                in_process(records, here, say=say) if name == HERE else _measured(name, effort, records, say)
            )
            write_json({"format": FORMAT, "parts": found}, kept)
    results = {"format": FORMAT, "parts": {name: found[name] for name in names}}
    page = page or (output / PAGE.name if quick else PAGE)
    picture = page.with_suffix(".png")
    if points := points_of(results):
        draw_plots({picture: partial(_draw, points)})
    write_json(results, page.with_suffix(".json"))
    write_file(page, md_from_results(results, command=_command(only, quick=quick)))
    show(
        results,
        "\n".join((*_lines(results), *_lines_here(results))),
        as_json=as_json,
        written=[page, page.with_suffix(".json"), picture],
    )


def _command(only: Sequence[str] | None, *, quick: bool) -> str:
    return " ".join(["python -m perf clock", *(f"--only {name}" for name in only or ()), *["--quick"] * quick])


def _names(only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or () if name not in PARTS]
    if unknown:
        raise DataError("clock --only", got=", ".join(unknown), expected=f"some of {', '.join(PARTS)}")
    return [name for name in PARTS if not only or name in only]


def _kept(path: Path) -> dict[str, Any]:
    """What an earlier run left; nothing where it was another version's, or there is none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"figures {path}", got=error, expected="JSON", fix="measure anew with --again") from error
    return dict(kept["parts"]) if kept.get("format") == FORMAT else {}


def _measured(name: str, effort: ClockEffort, records: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """One committee from its rows to its figures."""
    say(f"{name}: members and their answers")
    committee = committee_of(name)
    parts = {part: committee.part(part, records) for part in ("plan", "test")}
    with TemporaryDirectory(prefix="committee-clock-") as made:
        busy = cores_in_use_now()
        say(f"{name}: timing the members as served")
        timing = timing_of(committee, effort)
        say(f"{name}: planning")
        plans = plans_of(committee, parts["plan"].records, timing)
        points = measured_committee(committee, plans, parts["test"], effort, folder=Path(made), say=say)
    machine = {**machine_here(), "cores_in_use": busy, "commit": commit_here()}
    timed = {key: value for key, value in dataclasses.asdict(timing).items() if key != "machine"}
    return {"machine": machine, "passes": effort.passes, "timing": timed, "points": points}


def is_disturbed(part: dict[str, Any]) -> bool:
    """Whether other work took so much of the machine that the part is to be measured anew by the next run."""
    used = [point["measured"]["others_cores"] for point in part.get("points", ())]
    return max([part.get("machine", {}).get("cores_in_use", 0.0), *used]) > _DISTURBED_CORES


def points_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans of all committees that were served."""
    return [point for name, one in results["parts"].items() if name != HERE for point in one["points"]]


def outcome_of(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many ratios lie within the goal, and the worst plan: the one whose ratio is farthest from 1."""
    within = [LOW <= point["ratio"] <= HIGH for point in points]
    worst = max(points, key=lambda point: abs(np.log(point["ratio"])))
    return {"plans": len(points), "within": sum(within), "share": sum(within) / len(points), "worst": worst}


def _said(points: Sequence[dict[str, Any]], what: str) -> str:
    found = outcome_of(points)
    worst = found["worst"]
    met = "met" if found["share"] >= GOAL else "not met"
    return (
        f"{what}: {found['within']} of {found['plans']} plans within {LOW} to {HIGH} ({found['share']:.0%}; "
        f"goal {GOAL:.0%}, {met}); worst {worst['ratio']:.2f}, {worst['committee']}, {worst['load']}."
    )


def _lines(results: dict[str, Any]) -> list[str]:
    points = points_of(results)
    parts = {
        "All": points,
        "Requests one at a time": [point for point in points if point["batch"]],
        "At a rate": [point for point in points if not point["batch"]],
    }
    said = [_said(some, what) for what, some in parts.items() if some]
    return [*markdown_table(_HEAD, map(_row, points)), "", *said] if points else []


def _lines_here(results: dict[str, Any]) -> list[str]:
    """The part without a server."""
    if HERE not in results["parts"]:
        return []
    loads = results["parts"][HERE]["loads"]
    return markdown_table(_HEAD_HERE, map(_row_here, loads))


def _row_here(line: dict[str, Any]) -> list[str]:
    one, other, fast = line["one"], line["other"], line["times_as_fast"]
    if one is None:
        return [str(line["batch"]), line["note"], *[""] * 7]
    low, high = line["difference_ci95"]
    return [
        str(line["batch"]),
        one["plan"],
        other["plan"],
        f"{100 * line['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]",
        f"{line['predicted_ms']:.4g}, {line['members_ms']:.4g}",
        f"{line['ms']['median']:.4g} ({line['ratio']:.2f})",
        f"{line['other_ms']['median']:.4g} ({line['other_ratio']:.2f})",
        f"{fast['median']:.2f} ({fast['min']:.2f} to {fast['max']:.2f})",
        f"{line['target']:g}, {'met' if fast['median'] >= line['target'] else 'not met'}",
    ]


def _times_as_fast(point: dict[str, Any]) -> float:
    return float(point["measured"]["rival_ms"] / point["measured"]["ms"])


def _row(point: dict[str, Any]) -> list[str]:
    passes = point["passes_ms"]
    return [
        point["committee"],
        point["load"].removesuffix(" on one server").removesuffix(", one at a time"),
        ", then ".join(" + ".join(stage) for stage in point["stages"]),
        " / ".join(f"{100 * share:.3g}" for share in point["predicted_reach"]),
        f"{point['predicted_ms']:.4g}",
        f"{point['measured']['ms']:.4g}",
        f"{min(passes):.4g} to {max(passes):.4g}",
        f"{point['ratio']:.2f}",
        "" if point["rival_ratio"] is None else f"{_times_as_fast(point):.2f} ({point['rival_ratio']:.2f})",
    ]


_ABOUT = """
Members of each committee are timed as served (`committee time --served`). From that and their answers to the
plan part a plan is made for each load: the quickest that loses at most {epsilon:g} of the most accurate
member's accuracy on those rows, without a certificate; the three CNNs have random weights and imposed exits.
All plans of a committee are then served by one embedded Triton and asked about rows of the test part, whose
exits are mixed as in all of it.

Batches of {batches}: one request of so many rows at a time; milliseconds per row, of the client. Rates:
single rows at random times, at {shares} of what one row at a time would carry; milliseconds from a request to
its answer, waiting included, as the queue that `committee plan --rate` reckons with has them. All loads take
turns; medians over the larger half of their passes, those in which other work on the machine used the least.
A ratio is measured over predicted. Times as fast is against the most accurate member, asked alone and
directly; its own ratio, of what it took to its timing, says how much is the machine's.
"""


_DISTURBED = """
**The machine was not quiet** while these were measured: {names}. Their ratios say what other work did to
timing and serving, and little of the prediction; the command measures them anew.
"""
_ABOUT_HERE = """
Glyphs in one process with one thread, as [reproduce.md](reproduce.md) measures: plans by the clock from all
members, chosen on the plan part by its rule with the margin and judged on the test part, against the most
accurate member of the plan part; deferred rows gather until they fill a batch. Times are processor time of
the one thread, of the timing and of what is held to it. Served, one request at a time, the same comparison
stands in the last column above, for plans that may lose {epsilon:g}.
"""


def md_from_results(results: dict[str, Any], *, command: str) -> str:
    """The page, from its figures."""
    about = _ABOUT.format(
        epsilon=EPSILON, batches=", ".join(map(str, BATCHES)), shares=", ".join(f"{one:.0%}" for one in SHARES)
    )
    served = [one for name, one in results["parts"].items() if name != HERE]
    machines = {f"{one['machine']['cpu']}, {one['machine']['platform']}" for one in served}
    busy = max((one["machine"]["cores_in_use"] for one in served), default=0.0)
    others = np.mean([point["measured"]["others_cores"] for point in points_of(results)] or [0.0])
    disturbed = [name for name, one in results["parts"].items() if is_disturbed(one)]
    parts = (
        "# Predicted and served",
        f"<!-- Written by `{command}`; edits are lost. -->",
        *([_filled(_DISTURBED.format(names=", ".join(disturbed)))] if disturbed else []),
        *map(_filled, about.strip().split("\n\n")),
        "\n".join(_lines(results)),
        "![measured over predicted, by plan](clock.png)",
        *(
            ["## In process", _filled(_ABOUT_HERE.format(epsilon=EPSILON)), "\n".join(_lines_here(results))]
            if HERE in results["parts"]
            else []
        ),
        f"Measured on {'; '.join(sorted(machines))}. "
        f"Other work used {busy:.1f} cores at most when a committee began, and "
        f"{others:.2f} on average during the passes that count.",
        f"```bash\n{command}\n```",
    )
    return "\n\n".join(parts) + "\n"


def _pauses(results: dict[str, Any]) -> list[str]:
    """What a pause before a request costs, by committee."""
    said = []
    for name, one in results["parts"].items():
        longer = [
            f"{pause['first_ms']:+.2f} ms after {pause['pause_ms']:g}"
            for pause in one.get("timing", {}).get("pauses", ())
        ]
        if longer:
            said.append(f"{name} {', '.join(longer)}")
    if not said:
        return []
    return [f"What a request that the first stage answers takes longer after a pause (ms): {'; '.join(said)}."]


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)


def _draw(points: Sequence[dict[str, Any]], axes: Any) -> None:
    """Every plan's ratio, with those of its passes."""
    for place, point in enumerate(points):
        colour = f"C{list(COMMITTEES).index(point['committee'])}"
        spread = np.array(point["passes_ms"]) / point["predicted_ms"]
        axes.plot([place, place], [spread.min(), spread.max()], color=colour, alpha=0.5)
        axes.plot([place], [point["ratio"]], marker="o" if point["batch"] else "s", color=colour)
    axes.axhspan(LOW, HIGH, color="0.9", zorder=0)
    names = [f"{point['committee']}, {point['load'].split(' on ')[0].split(', ')[0]}" for point in points]
    axes.set_xticks(range(len(points)), names, rotation=90, fontsize=6)
    axes.set_ylabel("measured over predicted")
