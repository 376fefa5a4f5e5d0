"""Whether the server grows under load: memory after many requests against memory after a warm-up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from orchestrator.errors import InputError
from perf.harness.cells import BASE_DEFERRAL
from perf.harness.machine import commit_here
from perf.harness.served import Served
from perf.harness.server_probe import Memory, memory_of
from perf.load.analyzer import AnalyzerLoad, run_analyzer
from perf.routes.spec import BenchRoute

# Loads take turns, so that one size of batch cannot hide growth at another.
CONCURRENCIES = (16, 64, 4)
WARM_SHARE = 0.05
_SETTLE_S = 1.0
_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What a server held after the warm-up and at the end.

    Args:
        scenario, route: what was asked.
        model: of that route.
        commit: of the checkout, empty outside of one.
        warm_requests: answered before the first look.
        requests: answered in all.
        seconds: it took.
        warm: held after the warm-up.
        end: held at the end.
        trace: (requests, resident bytes, shared bytes) after each window.
        warm_bytes: resident after the warm-up in the processes of each model, `server` for the server's own.
        grown_bytes: how far they grew.
    """

    scenario: str
    route: str
    model: str
    commit: str
    warm_requests: int
    requests: int
    seconds: float
    warm: Memory
    end: Memory
    trace: Sequence[tuple[int, int, int]]
    warm_bytes: Mapping[str, int]
    grown_bytes: Mapping[str, int]

    @property
    def resident_percent(self) -> float:
        """Growth of resident memory."""
        return _growth_percent(self.warm.resident_bytes, self.end.resident_bytes)

    @property
    def shm_percent(self) -> float:
        """Growth of shared memory."""
        return _growth_percent(self.warm.shm_bytes, self.end.shm_bytes)

    @property
    def own_percent(self) -> float:
        """Growth of the model's own processes, which all others together could hide."""
        before = self.warm_bytes.get(self.model, 0)
        return _growth_percent(before, before + self.grown_bytes.get(self.model, 0))

    def write(self, path: Path) -> None:
        """Writes leak.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        percents = {name: getattr(self, name) for name in ("resident_percent", "shm_percent", "own_percent")}
        document = {**asdict(self), **percents}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def model_of(routes: Mapping[str, BenchRoute], name: str) -> str:
    """The model of a route.

    Raises:
        InputError: there is no such route, or its client drives it.
    """
    found = {each: route.model for each, route in routes.items() if route.model is not None}
    if name not in found:
        raise InputError("--route", got=repr(name), expected=f"one of {', '.join(found)}")
    return found[name]


def measure_leak(
    served: Served, *, route: str, requests: int, window_s: float, progress: Callable[[str], None]
) -> Leak:
    """Sends requests until enough were answered, and looks at the server's memory in between.

    Args:
        served: what is asked; all of the server's processes count.
        route: name of a route with a model.
        requests: at least so many.
        window_s: of each load.
        progress: told how far it is.

    Raises:
        CommitteeError: a load failed, or there is no such route.
    """
    model = model_of(served.repository.routes, route)
    start_s, first = time.monotonic(), _rows(served, model)
    _ask_for_most(served, served.models_of(served.repository.routes[route]))
    warm: Memory | None = None
    each: Mapping[str, int] = {}
    warm_requests = turn = done = 0
    trace: list[tuple[int, int, int]] = []
    # Each concurrency must have had its turn before the first look.
    while done < requests or warm is None:
        progress(f"{done:,} of {requests:,} requests")
        _load(served, model, turn, window_s)
        turn, done = turn + 1, _rows(served, model) - first
        now = _settled(served)
        trace.append((done, now.resident_bytes, now.shm_bytes))
        if warm is None and turn >= len(CONCURRENCIES) and done >= WARM_SHARE * requests:
            warm, warm_requests, each = now, done, _by_model(served)
            requests = max(requests, done + 1)  # something must follow the warm-up
    return Leak(
        scenario=served.repository.scenario.name,
        route=route,
        model=model,
        commit=commit_here(),
        warm_requests=warm_requests,
        requests=done,
        seconds=time.monotonic() - start_s,
        warm=warm,
        end=_settled(served),
        trace=trace,
        warm_bytes=each,
        grown_bytes={name: held - each[name] for name, held in _by_model(served).items()},
    )


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
    held: dict[str, int] = {}
    for process in served.processes:
        name = process.model or "server"
        held[name] = held.get(name, 0) + memory_of([process]).resident_bytes
    return held


def _load(served: Served, model: str, turn: int, window_s: float) -> None:
    run_analyzer(
        served.analyzer,
        AnalyzerLoad(
            model=model,
            address=served.address,
            input_data=served.inputs.at(BASE_DEFERRAL).path,
            concurrency=CONCURRENCIES[turn % len(CONCURRENCIES)],
            seconds=window_s,
        ),
    )


def _rows(served: Served, model: str) -> int:
    counts = served.statistics.counts()
    return counts[model].rows if model in counts else 0


def _settled(served: Served) -> Memory:
    """The median of a few looks once the last answers are out."""
    looks = []
    for _ in range(_LOOKS):
        time.sleep(_SETTLE_S / _LOOKS)
        looks.append(memory_of(served.processes))
    return Memory(
        resident_bytes=int(np.median([one.resident_bytes for one in looks])),
        shm_bytes=int(np.median([one.shm_bytes for one in looks])),
    )


def _growth_percent(before: int, after: int) -> float:
    return 100 * (after / before - 1) if before else 0.0
