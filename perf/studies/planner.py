"""`python -m perf planner`: time and memory of planning, on records made up at the size asked for."""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from orchestrator.errors import DataError
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, plan_from_records
from orchestrator.planner.records import Records, records_from_path, write_records
from orchestrator.progress import no_advance
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, InputSpec, Member, Stage

# Each member costs three times the one before it, about as in a family by compound scaling.
_COST_STEP = 3.0
_CHUNK_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class PlanningSize:
    """Size of a planning problem; `modes` says how many combine modes and scores are searched: "one" or "all"."""

    rows: int
    classes: int
    members: int
    modes: str = "one"


@dataclass(frozen=True, kw_only=True)
class PlanningRun:
    """Time and memory of one run.

    Args:
        size: size of the problem.
        seconds: time from the file on disk to the plan.
        steps: seconds of each part of it.
        peak_gib: most memory that the process held, the records included.
        mean_cost_share: mean cost of the plan over the cost of the most expensive member; None without a plan.
    """

    size: PlanningSize
    seconds: float
    steps: dict[str, float]
    peak_gib: float
    mean_cost_share: float | None


def planner(
    rows: Annotated[int, typer.Option(min=100, help="Rows of the largest run.")] = 50_000,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the largest run.")] = 1_000,
    members: Annotated[int, typer.Option(min=1, max=20, help="Members of the largest run.")] = 8,
    growth: Annotated[bool, typer.Option(help="Also run with fewer rows, classes and members.")] = True,
    modes: Annotated[str, typer.Option(help="one combine mode and score, all of them, or both runs.")] = "one",
    output: Annotated[Path | None, typer.Option(help="Folder for planner.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure `committee plan` on made-up records: seconds, memory, and how both grow.

    Example: python -m perf planner --rows 10000 --classes 100 --no-growth
    """
    known = {"one": ("one",), "all": ("all",), "both": ("one", "all")}
    if modes not in known:
        raise DataError("perf planner --modes", got=modes, expected=" or ".join(known))
    largest = PlanningSize(rows=rows, classes=classes, members=members)
    # Here because the processes that plan import this module, and pandas would count as memory of planning.
    from perf.harness.machine import write_json
    from perf.harness.report import progress_shown, show

    sizes = [replace(largest, modes=mode) for mode in known[modes]]
    runs = []
    with progress_shown() as tell:
        for size in [*(smaller(largest) if growth else ()), *sizes]:
            tell(f"{size.rows} rows, {size.classes} classes, {size.members} members")
            runs.append(measured(size))
    document = {"runs": [asdict(run) for run in runs]}
    if output is not None:
        write_json(document, output / "planner.json")
    show(document, table_from_runs(runs), as_json=as_json)


def smaller(size: PlanningSize) -> list[PlanningSize]:
    """Sizes with a quarter and with half of the rows, of the classes and of the members."""
    return [
        replace(size, **{name: max(least, getattr(size, name) // part)})
        for name, least in (("rows", 100), ("classes", 2), ("members", 1))
        for part in (4, 2)
    ]


def measured(size: PlanningSize) -> PlanningRun:
    """One run in a process of its own, whose peak of memory is that of planning alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.npz"
        for step in (_write, planned):
            # Unlike multiprocessing.Pool it raises where the process dies, for want of memory for example.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                facts: Any = pool.submit(step, path, size).result()
    return PlanningRun(size=size, **facts)


def _write(path: Path, size: PlanningSize) -> None:
    write_records(made_records(size), path)


def made_records(size: PlanningSize, seed: int = 0) -> Records:
    """Members that get better with their cost, on rows that are easy for all or hard for all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, size.classes, size.rows)
    easy = rng.random(size.rows, dtype=np.float32)
    # The largest of k normal numbers grows with k; without it 1,000 classes would be hopeless and 10 too easy.
    level = np.sqrt(2 * np.log(size.classes)) + 1
    outputs = {}
    for place in range(size.members):
        output = np.empty((size.rows, size.classes), np.float32)
        for at in range(0, size.rows, _CHUNK_ROWS):
            rng.standard_normal(out=output[at : at + _CHUNK_ROWS], dtype=np.float32)
        lift = level * (0.6 + 0.1 * place) + 3 * easy + rng.normal(0, 0.5, size.rows)
        output[np.arange(size.rows), labels] += lift.astype(np.float32)
        output *= np.float32(2)
        outputs[f"member_{place}"] = output
    return Records(
        ids=np.arange(size.rows),
        labels=labels,
        outputs=outputs,
        cost={name: _COST_STEP**place for place, name in enumerate(outputs)},
    )


def planned(path: Path, size: PlanningSize) -> dict[str, Any]:
    """Plans from a records file in this process; gives all fields of a `PlanningRun` but its size."""
    steps: dict[str, float] = {}

    @contextmanager
    def timed(description: str, _: int) -> Iterator[Any]:
        begun = time.perf_counter()
        yield no_advance
        steps[description] = time.perf_counter() - begun

    begun = time.perf_counter()
    with timed("reading", 1):
        records = records_from_path(path)
    names = list(records.outputs)
    base = CascadeSpec(
        name="made_up",
        inputs=(InputSpec(name="input", dtype="FP32", dims=(1,)),),
        classes=records.classes,
        stages=tuple(Stage(members=(Member(name=n, output="output", cost=records.cost[n]),)) for n in names),
    )
    options = SearchOptions(combines=COMBINES, scores=SCORES) if size.modes == "all" else SearchOptions()
    goal = Goal(reference=names[-1], epsilon=0.01)
    found = plan_from_records(base, records, goal, options=options, progress=timed)
    seconds = time.perf_counter() - begun
    share = None if isinstance(found, Infeasible) else found.mean_cost / max(records.cost.values())
    return {
        "seconds": seconds,
        "steps": {**steps, "the rest": seconds - sum(steps.values())},
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mean_cost_share": share,
    }


def table_from_runs(runs: Sequence[PlanningRun]) -> Table:
    """One line per run."""
    from perf.harness.report import console_table  # start-up time and memory, as above

    rows = []
    for run in runs:
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.steps.items())
        rows.append((*map(str, asdict(run.size).values()), f"{run.seconds:.1f}", f"{run.peak_gib:.2f}", steps))
    figures = ("rows", "classes", "members", "modes", "seconds", "GiB")
    return console_table("planning, from the file to the plan", (), figures, rows, notes="of that")
