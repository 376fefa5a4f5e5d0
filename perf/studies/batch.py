"""`python -m perf batch`: the predictor beside perf_analyzer on one server, and a long job, killed half-way."""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from orchestrator.errors import ServerFaultError
from orchestrator.predictor.predictor import Predictor, ServedModels
from orchestrator.rows.blocks import RowBlock
from perf.harness.machine import machine_here, write_json
from perf.harness.report import console_table, progress_shown, show
from perf.harness.serving import embedded
from perf.load.analyzer import AnalyzerLoad, find_analyzer, run_analyzer
from perf.load.inputs import different_rows, write_input_data

Tell = Callable[[str], None]
# What perf_analyzer is given: its best counts.
CONCURRENCIES, BATCHES = (4, 8, 16), (32, 256)
DIFFERENT_ROWS = 700
FILES = 20
GOAL = 0.95


def batch(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    model: Annotated[str, typer.Option(help="Model to ask.")] = "digits_cascade",
    data: Annotated[str, typer.Option(help="Rows, as for `committee record`; they are repeated.")] = "digits:test",
    rows: Annotated[int, typer.Option(min=0, help="Rows of the long job; 0 leaves it out.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each sender, in turns.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Of each window.")] = 5.0,
    output: Annotated[Path, typer.Option(help="Folder for results.json.")] = Path("build/batch"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure rows per second of the predictor and of perf_analyzer's best, and memory and rate of a long job.

    Example: python -m perf batch --rows 100000
    """
    analyzer = find_analyzer()
    document: dict[str, Any] = {"machine": machine_here(), "model": model, "goal": GOAL}
    with progress_shown() as tell, embedded(repository, progress=lambda _: None) as server:
        address = server.grpc_address
        tensors = different_rows(address, model, data=data, repository=repository, at_most=DIFFERENT_ROWS)
        with tempfile.TemporaryDirectory(prefix="committee-batch-") as place:
            folder = Path(place)
            write_input_data(folder / "rows.json", tensors)
            passes: list[dict[str, Any]] = []
            cells = list(itertools.product(BATCHES, CONCURRENCIES))
            for number, (size, flight) in itertools.product(range(rounds), [*cells, (0, 0)]):
                sender = _name(size, flight)
                tell(f"round {number + 1} of {rounds}: {sender}")
                if size:
                    load = AnalyzerLoad(
                        model=model, address=address, input_data=folder / "rows.json",
                        batch=size, concurrency=flight, seconds=seconds,
                    )  # fmt: skip
                    rate = run_analyzer(analyzer, load).requests_per_s * size
                else:
                    rate, size = predicted_rows_per_s(address, model, tensors, seconds=seconds)
                passes.append({"sender": sender, "rows_per_s": rate, "request_rows": size})
            document["windows"] = passes
            if rows:
                document["job"] = long_job(address, model, tensors, folder, rows=rows, tell=tell)
    medians = medians_of(passes)
    best = max(rate for name, rate in medians.items() if name != PREDICTOR)
    document |= {"rows_per_s": medians, "of_best": medians[PREDICTOR] / best}
    write_json(document, output / "results.json")
    lines = [(name, f"{rate:,.0f}", f"{rate / best:.2f}") for name, rate in medians.items()]
    table = console_table("medians over rounds", ("sender",), ("rows/s", "of best"), lines)
    show(document, table, *_job_lines(document), as_json=as_json, written=[output / "results.json"])


PREDICTOR = "predictor"


def _name(size: int, flight: int) -> str:
    return f"perf_analyzer, {size} rows, {flight} in flight" if size else PREDICTOR


def medians_of(passes: list[dict[str, Any]]) -> dict[str, float]:
    """Median rows per second of each sender."""
    names = dict.fromkeys(one["sender"] for one in passes)
    return {name: float(np.median([o["rows_per_s"] for o in passes if o["sender"] == name])) for name in names}


def predicted_rows_per_s(
    address: str, model: str, tensors: dict[str, npt.NDArray[Any]], *, seconds: float
) -> tuple[float, int]:
    """Rows per second of a predictor with its own settings, after a window to find its request in."""
    with Predictor(ServedModels(servers=address), model) as predictor:
        block = _repeated(tensors, predictor.block_rows)
        for until in (time.monotonic() + seconds, time.monotonic() + 2 * seconds):
            start, done = time.monotonic(), 0
            for outcome in predictor.outcomes(_until(block, until)):
                done += outcome.size
        return done / (time.monotonic() - start), predictor.rows_per_request


def _until(block: RowBlock, until_s: float) -> Iterator[RowBlock]:
    while time.monotonic() < until_s:
        yield block


def _repeated(tensors: dict[str, npt.NDArray[Any]], rows: int, first: int = 0) -> RowBlock:
    places = (first + np.arange(rows)) % len(next(iter(tensors.values())))
    made = {name: array[places] for name, array in tensors.items()}
    return RowBlock(ids=first + np.arange(rows), rows=made if len(made) > 1 else next(iter(made.values())))


def long_job(
    address: str, model: str, tensors: dict[str, npt.NDArray[Any]], folder: Path, *, rows: int, tell: Tell
) -> dict[str, Any]:
    """Answers so many rows of Parquet by the command, killed half-way and started again; memory second by second.

    Raises ServerFaultError where the parts do not have every row once, with the answer of the row it repeats.
    """
    name, array = next(iter(tensors.items()))
    for number, places in enumerate(np.array_split(np.arange(rows), FILES)):
        tell(f"writing rows, file {number + 1} of {FILES}")
        flat = array[places % len(array)].reshape(len(places), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        (folder / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": places, name: column}), folder / "in" / f"{number:03d}.parquet")
    words = [sys.executable, "-m", "orchestrator", "batch", folder / "in", folder / "answers", "--model", model]
    words += ["--url", address]
    curve, killed_at = _run(words, folder / "answers", stop_at=rows // 2, tell=tell)
    more, _ = _run(words, folder / "answers", stop_at=None, tell=tell)
    table = pq.read_table(folder / "answers", columns=["id", "label"])
    ids, labels = table["id"].to_numpy(), table["label"].to_numpy()
    first = labels[: len(array)]
    if not np.array_equal(ids, np.arange(rows)) or (labels != first[ids % len(array)]).mean() > 1e-3:
        raise ServerFaultError(f"job over {rows} rows", got=f"{len(ids)} answers", expected="each row's, once")
    runs = [curve, more]
    spent = sum(run[-1]["seconds"] for run in runs)
    return {
        "rows": rows,
        "killed_after_rows": killed_at,
        "seconds": spent,
        "rows_per_s": rows / spent,
        "runs": runs,
    }


def _run(
    words: list[Any], answers: Path, *, stop_at: int | None, tell: Tell
) -> tuple[list[dict[str, float]], int]:
    """Runs the command, killed at so many rows in parts; memory and rows in parts over time."""
    start, curve = time.monotonic(), list[dict[str, float]]()
    done = 0
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(1)
            done = sum(pq.read_metadata(part).num_rows for part in answers.glob("part-*"))
            try:
                resident = watched.memory_info().rss
            except psutil.Error:
                break
            curve.append({"seconds": time.monotonic() - start, "rows": done, "resident_bytes": resident})
            tell(f"{done:,} rows, {resident / 1e6:,.0f} MB")
            if stop_at is not None and done >= stop_at:
                process.kill()
        _, said = process.communicate()
    if process.returncode and (stop_at is None or done < stop_at):
        raise ServerFaultError(
            "committee batch", got=said.decode(errors="replace").strip(), expected="exit code 0"
        )
    return curve, done


def _job_lines(document: dict[str, Any]) -> list[str]:
    lines = [f"predictor / best of perf_analyzer: {document['of_best']:.2f} (goal {document['goal']})"]
    if job := document.get("job"):
        # Without the second in which the program starts.
        sizes = [[one["resident_bytes"] / 1e6 for one in run if one["resident_bytes"] > 0] for run in job["runs"]]
        memory = "; ".join(f"{run[len(run) // 4]:,.0f} to {max(run):,.0f} MB" for run in sizes if run)
        lines.append(
            f"{job['rows']:,} rows at {job['rows_per_s']:,.0f} rows/s, killed after {job['killed_after_rows']:,} "
            f"and started again, every row once; resident, at a quarter of each run and at most: {memory}"
        )
    return lines
