"""`python -m perf core`: own time of the decision core for one row, without members, server or messages.

Every part is timed beside one fixed numpy operation, all in turns within each round: a ratio to that operation
tells machines apart from code, as microseconds alone do not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from orchestrator.decision import CascadeRun, Policy, arrivals_from_policies, plain_arrivals, softmax
from orchestrator.errors import DataError
from orchestrator.spec import CascadeSpec, cascade_from_path
from perf.harness.machine import machine_here
from perf.harness.report import console_table, progress_shown, show

# What one request may ask for that keeps it from the shortcuts and changes no decision.
STRICT = Policy(threshold_shift=0.01)
OPERATION = "numpy"
PARTS = {
    OPERATION: "np.exp(z - np.maximum.reduce(z, axis=1)[:, None]) of one row: what times are compared with",
    "fast_path": "stage 0 exits a request without parameters",
    "general_exit": "stage 0 exits a request with parameters",
    "one_deferral": "stage 0 defers, stage 1 takes the row and exits it",
}


@dataclass(frozen=True, kw_only=True)
class CoreTimes:
    """Times of one part, one figure per round.

    Args:
        us: microseconds of one row.
        operation_us: microseconds of the numpy operation in the same rounds.
    """

    us: tuple[float, ...]
    operation_us: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Medians and quartiles of the time and of its ratio to the operation within a round."""
        us, operation = np.array(self.us), np.array(self.operation_us)
        found: dict[str, Any] = {}
        for name, figures in (("us", us), ("ratio", us / operation)):
            low, middle, high = np.percentile(figures, [25, 50, 75])
            found |= {name: round(float(middle), 2), f"{name}_quartiles": [round(low, 2), round(high, 2)]}
        return found


def core_calls(spec: CascadeSpec) -> dict[str, Callable[[], object]]:
    """What is timed, by part: a row of made-up outputs through the decision core of a plan.

    Raises:
        DataError: the plan has one stage, or one that no row can exit or be deferred at.
    """
    if len(spec.stages) < 2:
        raise DataError("perf core", got=f"{spec.name} with one stage", expected="a cascade of two stages or more")
    run = CascadeRun(spec)
    sure, unsure = _outputs(spec, 0, peak=100.0), _outputs(spec, 0, peak=0.0)
    later = _outputs(spec, 1, peak=100.0)
    arrive: dict[str, Any] = {"now_ns": [0], "default_deadline_us": spec.limits.default_deadline_us}

    def general() -> Any:
        return run.admit(arrivals_from_policies([1], [1], policies=[STRICT], **arrive), sure)

    def defer() -> Any:
        outcome = run.admit(plain_arrivals([1], [1], **arrive), unsure)
        return run.feed(run.next(1, 64), later) if len(outcome.slots) else outcome

    row = np.linspace(-1, 1, spec.classes, dtype=np.float32)[None]
    for stage, (name, call) in enumerate({"general_exit": general, "one_deferral": defer}.items()):
        if call().answers.exit_stage.tolist() != [stage]:
            fix = "take a plan whose stages have thresholds between 0 and 1"
            raise DataError("perf core", got=f"{spec.name}, which does not exit as {name} needs it", fix=fix)
    return {
        OPERATION: lambda: np.exp(row - np.maximum.reduce(row, axis=1)[:, None]),
        "fast_path": lambda: run.fast_path.early_exit(run.fast_path.stage0(1, sure)),
        "general_exit": general,
        "one_deferral": defer,
    }


def _outputs(spec: CascadeSpec, stage: int, *, peak: float) -> list[npt.NDArray[np.float32] | None]:
    """The outputs (1, k) of a stage's members, all for class 0, as sure as `peak` says."""
    found: list[npt.NDArray[np.float32] | None] = []
    for member in spec.stages[stage].members:
        output = np.zeros((1, spec.classes), np.float32)
        output[0, 0] = peak * member.temperature
        if member.output_kind == "probabilities":
            output = softmax(output)
        found.append(output)
    return found


def measure_core(calls: Mapping[str, Callable[[], object]], *, rounds: int, rows: int) -> dict[str, CoreTimes]:
    """Times every part in every round, `rows` rows each, in turns; a round before them warms up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            # Processor time of this thread: the clock on the wall would count other work's turns on the core.
            begun_ns = time.thread_time_ns()
            for _ in range(rows):
                call()
            taken[name].append((time.thread_time_ns() - begun_ns) / rows / 1000)
    operation_us = tuple(taken[OPERATION][1:])
    return {name: CoreTimes(us=tuple(us[1:]), operation_us=operation_us) for name, us in taken.items()}


def core(
    plan: Annotated[Path, typer.Option(help="cascade.json of two stages or more.")] = Path(
        "model_repository/digits_cascade/1/cascade.json"
    ),
    rounds: Annotated[int, typer.Option(min=3, max=1000, help="Timed rounds.")] = 31,
    rows: Annotated[int, typer.Option(min=1, help="Rows per part and round.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Time the decision core for one row: microseconds, and as a ratio to one numpy operation of the same run.

    Example: python -m perf core --json
    """
    with progress_shown() as say:
        say(f"{plan}: {rounds} rounds of {rows} rows")
        times = measure_core(core_calls(cascade_from_path(plan)), rounds=rounds, rows=rows)
    parts = {name: {"what": PARTS[name], **found.as_json()} for name, found in times.items()}
    document = {"machine": machine_here(), "numpy": np.__version__, "plan": str(plan), "parts": parts}
    show(document, table_from_parts(parts), as_json=as_json)


def table_from_parts(parts: Mapping[str, Mapping[str, Any]]) -> Table:
    """One line per part."""
    lines = [
        (name, *(f"{part[key]:.2f} ({part[f'{key}_quartiles'][0]:.2f}-{part[f'{key}_quartiles'][1]:.2f})"
                 for key in ("us", "ratio")), part["what"])
        for name, part in parts.items()
    ]  # fmt: skip
    title = "decision core, one row, medians and quartiles"
    return console_table(title, ("part",), ("us", "ratio"), lines, notes="what")
