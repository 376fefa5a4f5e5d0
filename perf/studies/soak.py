"""`python -m perf soak`: the served product for minutes under everything at once, and whether anything grows.

Clients ask rows of known answers in requests of many sizes with many parameters. Beside them others cancel and
send what must be refused, and the last member is slow, hangs and fails in turns. Memory, threads and descriptors
of every process are read twice a second. From the middle of the run on, when everything has been met once, a line
is fitted through each: what it grows by until the end must be within limits. No process is killed here, since
a new one grows at first; tests/faults does that.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from orchestrator.serving.options import MIB
from perf.harness.machine import commit_here, machine_here, write_json
from perf.harness.product import ServedProduct
from perf.harness.report import console_table, progress_shown, show
from perf.harness.server_probe import memory_of, unconnected_sockets
from perf.load.checked import LOST, TWICE, WRONG, CheckedLoad, KnownRows, counted
from perf.load.misbehaving import bad_messages, cancelling, refused
from perf.load.poisson import message_from_rows
from perf.routes.obedient import MARK, STRICT, ObedientRepository, obedient_repository

OUTPUT = Path("build/soak")
LIMIT_S = 10.0
TURN_S = 3.0
_SAMPLE_S = 0.5
MOST_ROWS = 64
# What a process may grow by in the second half of a run: allocators settle slowly, threads and files do not.
GROWTH_LIMITS = {"resident": 1.0 * MIB, "shared": 0.25 * MIB, "threads": 2.0, "descriptors": 2.0}
# Triton 24.10 loses track of a cancelled call now and then, whatever the model, and then never closes the
# client's socket (mended by pull request 8078 of triton-inference-server/server, in 25.04), so those are counted
# apart. A request that the cascade forgets would keep the socket of every client that cancels.
KEPT, MOST_KEPT_SHARE, LEAST_KEPT_LIMIT = "sockets of departed clients", 0.5, 2.0
# The negative control wraps the cascade's model.py, nothing of the product: it keeps one answer of so many.
KEEP_EVERY = 100

_LEAKY = """

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        original, kept, count = pb_utils.InferenceResponse, [], [0]

        def keeping(*args, **kwargs):
            answer = original(*args, **kwargs)
            count[0] += 1
            if count[0] % {every} == 0:
                kept.append((answer, bytearray({ballast})))
            return answer

        pb_utils.InferenceResponse = keeping
        super().initialize(args)
"""
# A kept answer weighs as much as one with a thousand classes for a few rows, so that a minute shows it.
_BALLAST = 32 * 1024


def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to ask.")] = 10.0,
    negative_control: Annotated[
        bool, typer.Option("--negative-control", help="Keep one answer of a hundred: the run must fail.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for soak.json and what is served.")] = OUTPUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print soak.json.")] = False,
) -> None:
    """Ask a served cascade for minutes under faults, and see whether anything is lost, wrong or grows.

    Example: python -m perf soak --minutes 10
    """
    with progress_shown() as tell:
        found = run_soak(output, seconds=60 * minutes, negative_control=negative_control, progress=tell)
    path = output / "soak.json"
    write_json(found, path)
    show(found, _table(found), *found["faults"], as_json=as_json, written=[path])
    if found["faults"]:
        raise typer.Exit(1)


def run_soak(
    output: Path, *, seconds: float, negative_control: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """One run.

    Returns:
        soak.json: `counts` of requests by outcome; `growth` of each quantity of each process in the second half,
        with its `limit` and its level at the end; `faults`, empty where all was well; machine, commit, seconds.

    Raises:
        CommitteeError: the product cannot be served.
    """
    shutil.rmtree(output / "served", ignore_errors=True)
    repository = obedient_repository(output / "served" / "repository")
    if negative_control:
        _keep_answers(repository)
    known = KnownRows(repository.images, repository.records, [repository.plan])
    complaints: list[str] = []
    progress("starting the server")
    with ServedProduct(repository.folder, output / "served") as product:
        load = CheckedLoad(
            address=product.grpc,
            model=STRICT,
            known=known,
            limit_s=LIMIT_S,
            pause_s=0.01,
            most_rows=MOST_ROWS,
            mark=MARK,
            parameters=_parameters,
        )
        turns = _turns(product, repository, known, complaints.append)
        with load.running():
            samples = _sampled(product, turns, seconds=seconds, progress=progress)
    cancelling_clients = seconds / 2 / _turn_s(seconds, turns) / len(turns)
    growth = growth_from(
        samples, {**GROWTH_LIMITS, KEPT: max(LEAST_KEPT_LIMIT, MOST_KEPT_SHARE * cancelling_clients)}
    )
    counts = counted(load.done)
    return {
        "seconds": seconds,
        "negative_control": negative_control,
        "triton": product.triton_version,
        "commit": commit_here(),
        "machine": machine_here(),
        "counts": counts,
        "growth": [asdict(one) for one in growth],
        "faults": faults_from(counts, growth, complaints),
    }


def _parameters(rng: np.random.Generator) -> Mapping[str, int]:
    """Request parameters that change no answer."""
    choices: tuple[dict[str, int], ...] = ({}, {}, {"min_stage": 0}, {"max_stage": 2}, {"gear": 0})
    return {
        **choices[int(rng.integers(len(choices)))],
        **({"deadline_us": 60_000_000} if rng.random() < 0.3 else {}),
    }


def _keep_answers(repository: ObedientRepository) -> None:
    """The negative control: the cascade's model.py keeps one answer of a hundred, as a leak would."""
    path = repository.folder / STRICT / "1" / "model.py"
    path.write_text(path.read_text() + _LEAKY.format(every=KEEP_EVERY, ballast=_BALLAST))


Turn = tuple[str, Callable[[], AbstractContextManager[None]]]


def _turns(
    product: ServedProduct, repository: ObedientRepository, known: KnownRows, complain: Callable[[str], None]
) -> list[Turn]:
    """What happens beside the load, each for `TURN_S`, round and round."""
    hard = message_from_rows(STRICT, known.images[known.by_stage[-1][:4]], input_name="image")
    bad = bad_messages(STRICT, known.images[:1], input_name="image")

    @contextmanager
    def ordered(do: str | None, *, marked: bool = False) -> Iterator[None]:
        repository.order(do, marked=marked)
        try:
            yield
        finally:
            repository.order()

    return [
        ("nothing", lambda: ordered(None)),
        ("clients cancel", lambda: cancelling(product.grpc, hard)),
        ("bad requests", lambda: refused(product.grpc, bad, complain, limit_s=LIMIT_S)),
        ("the last member is slow", lambda: ordered("slow")),
        ("the last member fails", lambda: ordered("fail", marked=True)),
        ("the last member hangs", lambda: ordered("hang", marked=True)),
    ]


Series = Mapping[tuple[str, str], Sequence[tuple[float, float]]]


def _sampled(
    product: ServedProduct, turns: Sequence[Turn], *, seconds: float, progress: Callable[[str], None]
) -> Series:
    """(process, quantity) -> (seconds, value) of every look, while the turns go round."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    begun_s, turn = time.monotonic(), 0
    while (now_s := time.monotonic() - begun_s) < seconds:
        name, beside = turns[turn % len(turns)]
        turn += 1
        progress(f"{now_s:.0f} of {seconds:.0f} s: {name}")
        until_s = now_s + _turn_s(seconds, turns)
        with beside():
            while (now_s := time.monotonic() - begun_s) < until_s:
                for key, value in _look(product).items():
                    found[key].append((now_s, value))
                product.scrape()
                time.sleep(_SAMPLE_S)
    return found


def _turn_s(seconds: float, turns: Sequence[Turn]) -> float:
    """How long each turn is: a short run has all turns in each half too."""
    return min(TURN_S, seconds / (2 * len(turns)))


def _look(product: ServedProduct) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for process in product.processes:
        name, memory = process.model or "server", memory_of([process])
        with suppress(psutil.Error, OSError):
            seen = psutil.Process(process.pid)
            found[name, "threads"] = seen.num_threads()
            found[name, "descriptors"] = seen.num_fds()
            if process.model is None:
                found[name, KEPT] = kept = unconnected_sockets(process)
                found[name, "descriptors"] -= kept
            found[name, "resident"] = memory.resident_bytes
            if process.shm is not None:
                found[name, "shared"] = memory.shm_bytes
    return found


@dataclass(frozen=True, kw_only=True)
class SoakGrowth:
    """What a quantity of a process grew by in the second half of a run, by a fitted line; bytes or a number."""

    process: str
    quantity: str
    grown: float
    limit: float
    level: float  # at the end


def growth_from(series: Series, limits: Mapping[str, float] = GROWTH_LIMITS) -> list[SoakGrowth]:
    """The growth of every series that lasts from the middle to the end; `limits` by quantity."""
    end_s = max((points[-1][0] for points in series.values()), default=0.0)
    found = []
    for (process, quantity), points in sorted(series.items()):
        half = np.array([point for point in points if point[0] >= end_s / 2])
        if len(half) >= 3:
            slope = np.polyfit(half[:, 0], half[:, 1], 1)[0]
            grown, level = float(slope * (half[-1, 0] - half[0, 0])), float(half[-1, 1])
            one = SoakGrowth(process=process, quantity=quantity, grown=grown, limit=limits[quantity], level=level)
            found.append(one)
    return found


def faults_from(counts: Mapping[str, int], growth: Sequence[SoakGrowth], complaints: Sequence[str]) -> list[str]:
    """Everything that must not be, in words."""
    faults = [f"{counts[name]} requests {name}" for name in (LOST, WRONG, TWICE) if counts[name]]
    allowed = {"right", "flagged", LOST, WRONG, TWICE, "UNAVAILABLE"}
    faults += [f"{count} requests {code}" for code, count in counts.items() if code not in allowed]
    faults += list(dict.fromkeys(complaints))
    faults += [
        f"{one.process}: {one.quantity} {_amount(one.grown, one)}" for one in growth if one.grown > one.limit
    ]
    return faults if counts["right"] else [*faults, "no request answered right"]


def _amount(value: float, one: SoakGrowth) -> str:
    in_bytes = one.quantity in ("resident", "shared")
    return f"{value / MIB:+.2f} MiB" if in_bytes else f"{value:+.1f}"


def _table(found: Mapping[str, Any]) -> Any:
    counts = ", ".join(f"{name} {count}" for name, count in found["counts"].items())
    growth = [SoakGrowth(**one) for one in found["growth"]]
    rows = [
        (one.process, one.quantity, _amount(one.grown, one), _amount(one.limit, one), _amount(one.level, one)[1:])
        for one in growth
    ]
    title = f"{counts} in {found['seconds']:.0f} s"
    return console_table(title, ("process", "quantity"), ("grown", "at most", "at the end"), rows)
