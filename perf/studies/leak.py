"""`python -m perf leak`: a server's memory after many requests against its memory after a warm-up."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton
import typer
from tritonclient.utils import np_to_triton_dtype

from orchestrator.errors import InputError
from perf.harness.machine import commit_here, write_json
from perf.harness.report import progress_shown, show
from perf.harness.server_probe import Counts, Memory, memory_of
from perf.harness.serving import BASE_DEFERRAL, Served, serving, tools_of
from perf.load.analyzer import AnalyzerLoad, find_analyzer, run_analyzer
from perf.routes.spec import BenchRoute, routes_of

OUTPUT = Path("build/bench")
# The run that the bench's target asks for, and what the command does unless told otherwise.
ROUTE, SCENARIO, REQUESTS = "committee", "three_cnn", 200_000
# Loads take turns, so that one size of batch cannot hide growth at another.
CONCURRENCIES = (16, 64, 4)
WARM_SHARE = 0.05
_SETTLE_S = 1.0
_LOOKS = 5


def leak(
    requests: Annotated[int, typer.Option(min=1000, help="To send.")] = REQUESTS,
    scenario: Annotated[str, typer.Option(help="Members to measure on.")] = SCENARIO,
    route: Annotated[str, typer.Option(help="Route to ask.")] = ROUTE,
    output: Annotated[Path, typer.Option(help="Folder for leak.json.")] = OUTPUT,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each load.")] = 15.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print leak.json.")] = False,
) -> None:
    """Send many requests and see whether the server's memory grows after a warm-up.

    Example: python -m perf leak --requests 50000
    """
    tools = tools_of(scenario)
    model = _model_of(routes_of(tools.scenario), route)  # before anything is started
    with (
        progress_shown() as tell,
        serving(tools, output, analyzer=find_analyzer(), seed=0, progress=tell) as served,
    ):
        found = measure_leak(served, route=route, model=model, requests=requests, window_s=seconds, progress=tell)
    path = output / "leak.json"
    write_json(found, path)
    mib = {
        name: " to ".join(f"{found[when][f'{name}_bytes'] / 2**20:.1f}" for when in ("warm", "end"))
        for name in ("resident", "shm")
    }
    words = (
        f"{found['requests']:,} requests to {model}, {found['warm_requests']:,} of them warm-up: resident memory "
        f"{found['resident_percent']:+.2f} % ({mib['resident']} MiB), shared memory {found['shm_percent']:+.2f} % "
        f"({mib['shm']} MiB), its own process {found['own_percent']:+.2f} %"
    )
    show(found, words, as_json=as_json, written=[path])


def _model_of(routes: Mapping[str, BenchRoute], name: str) -> str:
    found = {each: route.model for each, route in routes.items() if route.model is not None}
    if name not in found:
        raise InputError("`route`", got=repr(name), expected=f"one of {', '.join(found)}")
    return found[name]


def measure_leak(
    served: Served, *, route: str, model: str, requests: int, window_s: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Sends requests until enough were answered, and looks at the memory of all the server's processes in between.

    Returns:
        leak.json: `scenario`, `route` and its `model`, `commit`; `warm_requests` answered before the first look
        and `requests` in all, in `seconds`; memory `warm` and at the `end`, and a `trace` of (requests, resident
        bytes, shared bytes) after each window; `warm_bytes` resident by model and of the "server", and by how much
        they have `grown_bytes`; growth in percent of resident, of shared, and of the model's own resident memory,
        which all other processes together could hide.

    Raises:
        CommitteeError: a load failed.
    """
    start_s, first = time.monotonic(), _rows(served, model)
    _ask_for_most(served, served.models_of(served.repository.routes[route]))
    warm: Memory | None = None
    each: Mapping[str, int] = {}
    warm_requests = turn = done = 0
    trace: list[tuple[int, int, int]] = []
    # Each concurrency must have had its turn before the first look.
    while done < requests or warm is None:
        progress(f"{done:,} of {requests:,} requests")
        load = AnalyzerLoad(
            model=model,
            address=served.address,
            input_data=served.inputs.at(BASE_DEFERRAL).path,
            concurrency=CONCURRENCIES[turn % len(CONCURRENCIES)],
            seconds=window_s,
        )
        run_analyzer(served.analyzer, load)
        turn, done = turn + 1, _rows(served, model) - first
        now = _settled(served)
        trace.append((done, now.resident_bytes, now.shm_bytes))
        if warm is None and turn >= len(CONCURRENCIES) and done >= WARM_SHARE * requests:
            warm, warm_requests, each = now, done, _by_model(served)
            requests = max(requests, done + 1)  # something must follow the warm-up
    end, grown = _settled(served), {name: held - each[name] for name, held in _by_model(served).items()}
    own = each.get(model, 0)
    return {
        "scenario": served.repository.scenario.name,
        "route": route,
        "model": model,
        "commit": commit_here(),
        "warm_requests": warm_requests,
        "requests": done,
        "seconds": time.monotonic() - start_s,
        "warm": asdict(warm),
        "end": asdict(end),
        "trace": trace,
        "warm_bytes": each,
        "grown_bytes": grown,
        "resident_percent": _growth_percent(warm.resident_bytes, end.resident_bytes),
        "shm_percent": _growth_percent(warm.shm_bytes, end.shm_bytes),
        "own_percent": _growth_percent(own, own + grown.get(model, 0)),
    }


def _ask_for_most(served: Served, models: Sequence[str]) -> None:
    """Asks each model for as many rows as it takes at once.

    A member's memory grows when a batch is larger than all before. Loads make such a batch by chance, maybe late,
    and it would be taken for a leak.
    """
    rows = served.inputs.at(BASE_DEFERRAL).rows.rows
    with triton.InferenceServerClient(served.address) as client:
        for name in models:
            most = client.get_model_config(name).config.max_batch_size
            batch = np.ascontiguousarray(np.resize(rows, (most, *rows.shape[1:])))
            tensor = triton.InferInput(served.repository.input_name, batch.shape, np_to_triton_dtype(batch.dtype))
            tensor.set_data_from_numpy(batch)
            client.infer(name, [tensor])


def _by_model(served: Served) -> dict[str, int]:
    """Resident bytes of all processes of each model, and of the server."""
    held: Counter[str] = Counter()
    for process in served.processes:
        held[process.model or "server"] += memory_of([process]).resident_bytes
    return dict(held)


def _rows(served: Served, model: str) -> int:
    return served.statistics.counts().get(model, Counts()).rows


def _settled(served: Served) -> Memory:
    """The median of a few looks once the last answers are out."""
    looks = []
    for _ in range(_LOOKS):
        time.sleep(_SETTLE_S / _LOOKS)
        looks.append(memory_of(served.processes))
    resident, shm = np.median([(one.resident_bytes, one.shm_bytes) for one in looks], axis=0)
    return Memory(resident_bytes=int(resident), shm_bytes=int(shm))


def _growth_percent(before: int, after: int) -> float:
    return 100 * (after / before - 1) if before else 0.0


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The largest growth in a leak run: of resident memory, of shared memory, or of the cascade's own process."""

    percent: float
    note: str


def growth_from(path: Path) -> Growth | None:
    """The growth in a leak.json; None where there is no file, or the run was of something else or too short."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (document["route"], document["scenario"]) != (ROUTE, SCENARIO) or document["requests"] < REQUESTS:
            return None
        keys = {"resident": "resident", "shared": "shm", "the cascade's own process": "own"}
        found = {name: float(document[f"{key}_percent"]) for name, key in keys.items()}
        words = ", ".join(f"{name} {percent:+.2f} %" for name, percent in found.items())
        commit = f", commit {document['commit']}" if document["commit"] else ""
        return Growth(percent=max(found.values()), note=f"{words}; {document['requests']:,} requests{commit}")
    except (OSError, ValueError, KeyError, TypeError):
        return None
