"""The rules of the scheduler as a discrete-event simulation: gather what waits, take a core, answer or defer."""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from orchestrator.planner.queueing import QueueStage

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SimulatedServer:
    """What a simulation saw, without its first tenth.

    Args:
        times_ms: float64 (n,), from a row's arrival to its answer.
        per_ms: rows answered.
        batches: mean rows of a call, per stage.
    """

    times_ms: Floats
    per_ms: float
    batches: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the rows takes at most."""
        return float(np.quantile(self.times_ms, share))


class _Queue:
    """Rows that wait for a stage, by the times they arrived at the server, and what wakes its instances."""

    def __init__(self, environment: simpy.Environment) -> None:
        self._environment = environment
        self.rows: deque[float] = deque()
        self.filled = environment.event()

    def put(self, rows: Sequence[float]) -> None:
        """Adds rows that come together."""
        self.rows.extend(rows)
        if rows:
            self.filled.succeed()
            self.filled = self._environment.event()

    def take(self, most: int) -> list[float]:
        """The rows that wait, up to so many."""
        return [self.rows.popleft() for _ in range(min(most, len(self.rows)))]


@dataclass
class _Run:
    environment: simpy.Environment
    stages: Sequence[QueueStage]
    queues: Sequence[_Queue]
    cores: simpy.Resource
    random: np.random.Generator
    answered: list[tuple[float, float]] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)


def simulated(
    stages: Sequence[QueueStage], *, per_ms: float, cores: int, rows: int, seed: int = 0
) -> SimulatedServer:
    """Lets so many rows come at random times, at such a rate, to a server with so many cores."""
    environment = simpy.Environment()
    queues = [_Queue(environment) for _ in stages]
    sizes: list[list[int]] = [[] for _ in stages]
    random = np.random.default_rng(seed)
    run = _Run(environment, stages, queues, simpy.Resource(environment, cores), random, sizes=sizes)
    for place, stage in enumerate(stages):
        for _ in range(stage.instances):
            environment.process(_instance(run, place))
    environment.process(_arrivals(run, per_ms, rows))
    environment.run()
    begun, ended = (np.array(part) for part in zip(*sorted(run.answered)[rows // 10 :], strict=True))
    return SimulatedServer(
        times_ms=ended - begun,
        per_ms=len(begun) / float(ended.max() - begun.min()),
        batches=tuple(float(np.mean(one)) if one else 0.0 for one in sizes),
    )


def _arrivals(run: _Run, per_ms: float, rows: int) -> Generator[Any, Any, None]:
    for gap in run.random.exponential(1 / per_ms, rows):
        yield run.environment.timeout(gap)
        run.queues[0].put([run.environment.now])


def _instance(run: _Run, place: int) -> Generator[Any, Any, None]:
    """One instance of a stage: all rows that wait once it has a core are its next batch, up to its largest."""
    stage, queue, is_last = run.stages[place], run.queues[place], place + 1 == len(run.stages)
    goes_on = 0.0 if is_last else run.stages[place + 1].reach / stage.reach
    while True:
        if not queue.rows:
            yield queue.filled
        with run.cores.request() as core:
            yield core
            batch = queue.take(len(stage.ms) - 1)
            if batch:
                run.sizes[place].append(len(batch))
                yield run.environment.timeout(float(stage.ms[len(batch)]))
        deferred = run.random.random(len(batch)) < goes_on
        run.answered += [(begun, run.environment.now) for begun, on in zip(batch, deferred, strict=True) if not on]
        if not is_last:
            run.queues[place + 1].put([begun for begun, on in zip(batch, deferred, strict=True) if on])
