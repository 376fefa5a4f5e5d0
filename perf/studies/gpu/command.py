"""`python -m perf gpu`: cascades of large networks against the largest alone, on a GPU, and what it writes."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import pandas as pd
import typer
from rich.table import Table

from orchestrator.repository.files import disk_errors
from orchestrator.serving.machine import check_machine, machine_here
from perf.harness.frame import write_tables
from perf.harness.report import (
    COLOURS,
    cell_lines,
    command_line,
    console_table,
    draw_plots,
    failure_lines,
    markdown_table,
    number_text,
    progress_shown,
    show,
)
from perf.studies.gpu.device import chosen_provider, preflight, provider_list
from perf.studies.gpu.members import ABSTRACT, FAMILIES, GpuLoads, GpuSetup, NetworkFamily, small_families
from perf.studies.gpu.run import GpuResults, cells_from, run_gpu

Rows = Sequence[Mapping[str, Any]]
_MIX = (
    "The networks have the right architectures and random weights, and the exit mix is imposed: thresholds are "
    "set so that the shares below exit. The shares are arithmetic, those with which a cascade needs as many "
    "multiply-adds as the published speed-up leaves it; they are not the paper's, whose exit shares are not known "
    "here. Nothing in this file says anything about accuracy."
)
_SMALL = (
    "**Networks of a toy's size with random weights and an imposed exit mix, to try the command: the figures "
    "below say nothing about the families, and nothing about accuracy.**"
)


def report_from_results(results: GpuResults, *, pictures: Iterable[str]) -> str:
    """The text of GPU.md; `pictures` are paths of the plots from where it will lie."""
    served = results.served
    lines = [
        "# Cascades of large networks",
        "",
        f"Written by `{served.command}`; running it again replaces this file.",
        "",
        f"Device: {results.device.words}. Networks in {results.precision}.",
        "",
        f"Machine: {served.machine.words}.",
        "",
        f"{served.minutes:.0f} minutes: {served.rounds} interleaved rounds, windows of {served.seconds:g} s, "
        f"medians over rounds. {'' if results.small else _MIX}",
        "",
    ]
    if results.small:
        lines += [_SMALL, ""]
    if served.machine.is_busy:
        lines += [
            f"**The machine was busy when the run began ({served.machine.cores_in_use:.1f} processors in use).**",
            "",
        ]
    lines += ["## Speed-ups over the largest network alone", "", *_comparison_lines(results.comparisons), ""]
    lines += [*_paper_lines(results.comparisons), ""]
    lines += ["## Each network alone, rows/s in this process", "", *_alone_lines(results.alone), ""]
    for name, title in served.scenarios.items():
        lines += [f"## {title}", "", *cell_lines(served.cells[served.cells.scenario == name]), ""]
    lines += failure_lines(served.failures)
    return "\n".join([*lines, "## Plots", "", *(f"![{path}]({path})" for path in pictures), ""])


def _comparison_lines(comparisons: Rows) -> list[str]:
    head = (
        "cascade", "imposed reach", "measured reach", "online", "offline", "networks alone", "multiply-adds",
        "published, not ours", "online p50, ms", "online p99, ms", "offline rows/s",
    )  # fmt: skip
    rows = []
    for one in comparisons:
        ms, rates = one["online_ms"], one["offline_rows_per_s"]
        pairs = [(ms[f"cascade_{part}"], ms[f"baseline_{part}"]) for part in ("p50_ms", "p99_ms")]
        pairs.append((rates["cascade"], rates["baseline"]))
        speedups = [one[f"{name}_speedup"] for name in ("online", "offline", "alone", "macs")]
        published = "" if one["paper_speedup"] is None else f"{one['paper_speedup']:g}x"
        shares = [_shares(one[name]) for name in ("reach", "measured_reach")]
        figures = (" / ".join(map(number_text, pair)) for pair in pairs)
        rows.append([one["words"], *shares, *map(_times, speedups), published, *figures])
    return markdown_table(head, rows)


def _paper_lines(comparisons: Rows) -> list[str]:
    lines = [
        "Online is the ratio of mean latencies, single rows one after another through the server; offline the "
        "ratio of rows/s with the server saturated. Networks alone is arithmetic with the rows/s of the next "
        "table, multiply-adds with their counts; pairs are the cascade's figure and the single network's. "
        "Deferred rows pass through every stage, so p99 of a cascade lies above the single network's."
    ]
    if any(one["paper_speedup"] is not None for one in comparisons):
        lines += [
            "",
            f"Published is the paper's claim for the family at equal accuracy ({ABSTRACT}). It is of other "
            "hardware, other members and trained weights: shown beside, not compared.",
        ]
    return lines


def _alone_lines(alone: Rows) -> list[str]:
    batches = sorted({batch for one in alone for batch in one["rows_per_s"]})
    rows = [[one["member"], *(number_text(one["rows_per_s"].get(batch)) for batch in batches)] for one in alone]
    return markdown_table(["network", *(f"batch {batch}" for batch in batches)], rows)


def table_from_comparisons(comparisons: Rows) -> Table:
    """The speed-ups for the console."""
    rows = []
    for one in comparisons:
        speedups = [one[f"{name}_speedup"] for name in ("online", "offline", "alone", "macs", "paper")]
        to_the_last = f"{100 * (one['measured_reach'] or one['reach'])[-1]:.1f} %"
        rows.append((one["words"], to_the_last, *map(_times, speedups)))
    title = "speed-up over the largest network alone; exit mix imposed, random weights"
    figures = ("to the last", "online", "offline", "networks alone", "multiply-adds", "published")
    return console_table(title, ["cascade"], figures, rows, no_wrap=False)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _shares(reach: Sequence[float] | None) -> str:
    return "" if reach is None else ", ".join(f"{100 * share:.1f} %" for share in reach)


def write_results(results: GpuResults, folder: Path) -> list[Path]:
    """Writes results.json, results.csv (a row per served cell) and alone.csv; returns their paths."""
    written = write_tables(results.as_json(), results.served.cells, folder)
    rows = [(one["family"], one["member"], *rate) for one in results.alone for rate in one["rows_per_s"].items()]
    alone = pd.DataFrame(rows, columns=["family", "member", "batch", "rows_per_s"]).round(2)
    alone.to_csv(folder / "alone.csv", index=False, lineterminator="\n")
    return [*written, folder / "alone.csv"]


def _speedups(results: GpuResults, axes: Any) -> None:
    """Measured online and offline beside what multiply-adds say."""
    kinds = (
        ("online, measured", "online_speedup", COLOURS["committee"]),
        ("offline, measured", "offline_speedup", COLOURS["tutorial"]),
        ("multiply-adds, arithmetic", "macs_speedup", COLOURS["pass_through"]),
    )
    places = range(len(results.comparisons))
    for number, (label, field, colour) in enumerate(kinds):
        values = [one[field] or 0.0 for one in results.comparisons]
        axes.barh([place - 0.27 * (number - 1) for place in places], values, 0.25, color=colour, label=label)
    axes.set_yticks(list(places), [one["cascade"] for one in results.comparisons])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed-up over the largest network alone; exit mix imposed, random weights")
    axes.legend(fontsize=8)


def _alone(results: GpuResults, axes: Any) -> None:
    for one in results.alone:
        axes.plot(list(one["rows_per_s"]), list(one["rows_per_s"].values()), marker="o", label=one["member"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("rows per batch, in this process")
    axes.set_ylabel("rows/s, median over rounds (log scale)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def write_report(results: GpuResults, path: Path) -> list[Path]:
    """Writes the report and, in a folder beside it, its plots; returns their paths."""
    with disk_errors(f"report {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = {"speedups": _speedups, "alone": _alone}
        folder = path.parent / "plots"
        plots = draw_plots({folder / f"gpu-{name}.png": partial(one, results) for name, one in draw.items()})
        text = report_from_results(results, pictures=[f"plots/{one.name}" for one in plots])
        path.write_text(text, encoding="utf-8")
    return [path, *plots]


OUTPUT, SMALL_OUTPUT = Path("build/gpu"), Path("build/gpu-small")
REPORT = Path("perf/GPU.md")
LOADS = GpuLoads()
SMALL_LOADS = GpuLoads(offline=(4, 4), alone=(4, 8))
_POOL, _SMALL_POOL = 512, 192
# Eight requests of 32 large images lie in shared memory on their way in and out of every model.
SHM_BYTES = 4 * 2**30


Provider = Enum("Provider", {"AUTO": "auto", "CUDA": "cuda", "TENSORRT": "tensorrt", "CPU": "cpu"}, type=str)
FamilyName = Enum("FamilyName", {"ALL": "all", "EFFICIENTNET": "efficientnet", "VIT": "vit"}, type=str)
Precision = Enum("Precision", {"FP16": "fp16", "FP32": "fp32"}, type=str)


def gpu(
    family: Annotated[FamilyName, typer.Option(help="Networks to measure.")] = FamilyName.ALL,
    provider: Annotated[
        Provider, typer.Option(help="Of ONNX Runtime; auto is CUDA, with --small the CPU where there is none.")
    ] = Provider.AUTO,
    precision: Annotated[Precision, typer.Option(help="Of the networks.")] = Precision.FP16,
    small: Annotated[
        bool, typer.Option("--small", help="Toy networks of the same kinds, to try the command anywhere.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=600, help="Of each window; 10, with --small 2.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Windows per cell; 3, with --small 1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results, records, members; build/gpu, --small build/gpu-small.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Report to write; perf/GPU.md, of a partial or a --small run GPU.md in --output."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Measure cascades of large networks against the largest alone, on an NVIDIA GPU.

    Random weights and an imposed exit mix: it says how fast, never how accurate.

    Examples:
        python -m perf gpu --family efficientnet --resume
        python -m perf gpu --small
    """
    chosen = chosen_provider(provider.value, onnxruntime.get_available_providers(), small=small)
    folder = output or (SMALL_OUTPUT if small else OUTPUT)
    providers = provider_list(chosen, precision=precision.value, cache=(folder / "tensorrt").resolve())
    check_machine(machine_here(), shm_needed_bytes=0 if small else SHM_BYTES)
    device = preflight(chosen, providers)
    typer.echo(f"device: {device.words}", err=True)
    with disk_errors(f"--output {folder}"):
        (folder / "tensorrt").mkdir(parents=True, exist_ok=True)
    families = small_families(folder / "sources") if small else FAMILIES
    wanted = list(families.values()) if family is FamilyName.ALL else [families[family.value]]
    setup = GpuSetup(
        folder=folder,
        device=device,
        providers=providers,
        precision=precision.value,
        pool=_SMALL_POOL if small else _POOL,
        loads=SMALL_LOADS if small else LOADS,
        seconds=seconds or (2.0 if small else 10.0),
        rounds=rounds or (1 if small else 3),
        resume=resume,
        small=small,
    )
    command = _command(setup, family=family.value, asked=provider.value)
    served, alone = windows_of(wanted, setup.loads)
    windows = f"{setup.rounds} x {served} served windows of {setup.seconds:g} s"
    typer.echo(f"{windows}, {alone} of networks alone", err=True)
    with progress_shown(f"{command} --output {folder} --resume") as tell:
        results = run_gpu(wanted, setup, command=command, progress=tell)
    # A run that leaves something out must not replace the report of one that did not.
    whole = command == "python -m perf gpu"
    path = report or (REPORT if whole else folder / REPORT.name)
    written = [*write_results(results, folder), *write_report(results, path)]
    table, failures = table_from_comparisons(results.comparisons), results.served.failures
    show(results.as_json(), table, as_json=as_json, failures=failures, written=written)
    if failures:
        raise typer.Exit(1)


def _command(setup: GpuSetup, *, family: str, asked: str) -> str:
    """The command that repeats the run."""
    seconds, rounds = (2.0, 1) if setup.small else (10.0, 3)
    return command_line(
        "python -m perf gpu",
        ("--small", setup.small, False),
        ("--family", family, "all"),
        ("--provider", asked, "auto"),
        ("--precision", setup.precision, "fp16"),
        ("--seconds", setup.seconds, seconds),
        ("--rounds", setup.rounds, rounds),
    )


def windows_of(families: Sequence[NetworkFamily], loads: GpuLoads) -> tuple[int, int]:
    """Number of windows in a round: served ones, and those of networks alone."""
    served = sum(len(cells_from(cascade, loads)) for family in families for cascade in family.cascades)
    return served, sum(len(family.sources) * len(loads.alone) for family in families)
