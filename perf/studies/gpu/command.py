"""`python -m perf gpu`: cascades of large networks against the largest alone, on a GPU."""

import json
import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import onnxruntime
import typer

from orchestrator.errors import interrupted_from
from orchestrator.repository.files import disk_errors
from orchestrator.serving.machine import check_machine, machine_here
from perf.harness.report import output_console, progress_shown
from perf.studies.gpu.device import chosen_provider, preflight, provider_list
from perf.studies.gpu.families import FAMILIES, GpuLoads, NetworkFamily, small_families
from perf.studies.gpu.members import GpuSetup
from perf.studies.gpu.report import table_from_comparisons, write_report, write_results
from perf.studies.gpu.run import GpuOptions, GpuResults, cells_from, run_gpu

OUTPUT, SMALL_OUTPUT = Path("build/gpu"), Path("build/gpu-small")
REPORT = Path("perf/GPU.md")
LOADS = GpuLoads()
SMALL_LOADS = GpuLoads(offline=(4, 4), alone=(4, 8))
_POOL, _SMALL_POOL = 512, 192
# Eight requests of 32 large images lie in shared memory on their way in and out of every model.
SHM_BYTES = 4 * 2**30


class Provider(str, Enum):
    """What the networks run on."""

    AUTO = "auto"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    CPU = "cpu"


class FamilyName(str, Enum):
    """Families to measure: all, or the one of a name."""

    ALL = "all"
    EFFICIENTNET = "efficientnet"
    VIT = "vit"


class Precision(str, Enum):
    """Precision of the networks."""

    FP16 = "fp16"
    FP32 = "fp32"


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
    options = GpuOptions(
        families=tuple(families.values()) if family is FamilyName.ALL else (families[family.value],),
        loads=SMALL_LOADS if small else LOADS,
        setup=GpuSetup(
            folder=folder,
            device=device,
            providers=providers,
            precision=precision.value,
            pool=_SMALL_POOL if small else _POOL,
        ),
        seconds=seconds or (2.0 if small else 10.0),
        rounds=rounds or (1 if small else 3),
        resume=resume,
        small=small,
    )
    command = _command(options, family=family.value, asked=provider.value)
    served, alone = windows_of(options.families, options.loads)
    typer.echo(
        f"{options.rounds} x {served} served windows of {options.seconds:g} s, {alone} of networks alone", err=True
    )
    try:
        with progress_shown() as tell:
            results = run_gpu(options, command=command, progress=tell)
    except KeyboardInterrupt as error:
        text = f"interrupted; {command} --output {folder} --resume goes on where it was"
        raise interrupted_from(error, text) from error
    # A run that leaves something out must not replace the report of one that did not.
    whole = command == "python -m perf gpu"
    written = [
        *write_results(results, folder),
        *write_report(results, report or (REPORT if whole else folder / REPORT.name)),
    ]
    _show(results, written, as_json=as_json)
    if results.served.failures:
        raise typer.Exit(1)


def _show(results: GpuResults, written: list[Path], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(results.as_json(), indent=2))
        return
    console = output_console()
    console.print(table_from_comparisons(results.comparisons))
    for key, text in results.served.failures.items():
        console.print(f"not measured: {key}: {text}", soft_wrap=True, markup=False)
    console.print(f"Written: {', '.join(str(path) for path in written)}", soft_wrap=True)


def _command(options: GpuOptions, *, family: str, asked: str) -> str:
    """The command that repeats the run."""
    usual = (2.0, 1) if options.small else (10.0, 3)
    words = ["python", "-m", "perf", "gpu", *(["--small"] if options.small else [])]
    words += [] if family == "all" else ["--family", family]
    words += [] if asked == "auto" else ["--provider", asked]
    words += [] if options.setup.precision == "fp16" else ["--precision", options.setup.precision]
    words += [] if options.seconds == usual[0] else ["--seconds", f"{options.seconds:g}"]
    words += [] if options.rounds == usual[1] else ["--rounds", str(options.rounds)]
    return shlex.join(words)


def windows_of(families: Sequence[NetworkFamily], loads: GpuLoads) -> tuple[int, int]:
    """Number of windows in a round: served ones, and those of networks alone."""
    served = sum(len(cells_from(cascade, loads)) for family in families for cascade in family.cascades)
    return served, sum(len(family.sources) * len(loads.alone) for family in families)
