"""How long rows take through stages that gather batches while they are busy, and on how few cores.

Each stage is a queue with bulk service: an instance that is free takes all rows that wait, up to a largest batch.
The number of rows that wait where a batch starts is a Markov chain (Bailey, J. Royal Statistical Society B 16,
1954); its stationary state says how large batches are and how long rows wait. Rows come to the first stage as a
Poisson process, to later ones in bursts, those of a batch that go on. Taken for granted: bursts come at random
times, and with n busy instances a batch starts every n-th part of its time. Where instances may outnumber the
cores, a call waits for one behind those of the others, and what comes meanwhile joins its batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from orchestrator.planner.clock import binomial_shares
from orchestrator.spec.timing import Timing, added_ms, ms_of_calls

Floats = npt.NDArray[np.float64]
# Cells of a distribution of times, and most rows that a chain knows to wait.
CELLS, MOST_WAITING = 16384, 400
# Of the fixed point between what stages and cores make each other wait.
_ROUNDS = 8
# Rows of a batch that a queue looks at; larger ones gain little, and make its chain long.
_LARGEST = 64


@dataclass(frozen=True, kw_only=True)
class QueueStage:
    """One stage of a server.

    Args:
        ms: float64 (b + 1,), milliseconds that a batch of 0 to b rows keeps an instance and a core busy.
        reach: share of rows that get here.
        instances: batches at once.
    """

    ms: Floats
    reach: float
    instances: int = 1

    def load(self, per_ms: float) -> float:
        """Instances that are needed at least, where rows come to the server at such a rate."""
        return per_ms * self.reach * float((self.ms[1:] / np.arange(1, len(self.ms))).min())


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """A server under load; times are infinite where more comes than it can carry.

    Args:
        mean_ms, p50_ms, p99_ms: of a row's time from its arrival to its answer.
        batches: mean rows of a call, per stage.
    """

    mean_ms: float
    p50_ms: float
    p99_ms: float
    batches: tuple[float, ...]


def queue_stages(
    groups: Sequence[Sequence[str]], reach: Sequence[float], timing: Timing, *, in_process: int = 0
) -> list[QueueStage]:
    """Stages that ask such models, see `models_of_stages`, and that such shares of the rows get to.

    So many leading stages run their members in the cascade's own process. Stages that no row gets to are left out:
    they need nothing.
    """
    stages = []
    for place, (names, share) in enumerate(zip(groups, reach, strict=True)):
        asked = [timing.by_name[name] for name in names]
        rows = np.arange(min(_LARGEST, *(one.calls[-1].batch for one in asked)) + 1, dtype=np.float64)
        beside = timing.added_by_runtime(place, in_process=place < in_process)
        ms = np.sum([one.ms(rows) for one in asked], axis=0)
        stages.append(QueueStage(ms=ms + added_ms(ms, ms_of_calls(beside, rows)), reach=share))
    return [stage for stage in stages if stage.reach > 0]


def woken_stages(stages: Sequence[QueueStage], timing: Timing, *, per_ms: float) -> list[QueueStage]:
    """The stages of a server that is asleep for part of the time, where rows come at such a rate.

    A row that finds nothing to do takes longer, see `Timing.woken_ms`.
    """
    idle = max(0.0, 1 - sum(per_ms * stage.reach * float(stage.ms[1]) for stage in stages))
    first, later = timing.woken_ms(per_ms)
    return [
        replace(stage, ms=stage.ms + added_ms(stage.ms, idle * (later if place else first)))
        for place, stage in enumerate(stages)
    ]


def server_state(stages: Sequence[QueueStage], *, per_ms: float, cores: int) -> ServerState:
    """What becomes of rows that come at such a rate to a server with so many cores."""
    loads = [stage.load(per_ms) for stage in stages]
    if any(load >= stage.instances for load, stage in zip(loads, stages, strict=True)) or sum(loads) >= cores:
        return ServerState(mean_ms=math.inf, p50_ms=math.inf, p99_ms=math.inf, batches=())
    waits, reach = [0.0] * len(stages), 1.0
    for _ in range(_ROUNDS):
        chains = list[_Chain]()
        for stage, wait in zip(stages, waits, strict=True):
            bursts = _Bursts.of_arrivals(per_ms) if not chains else chains[-1].bursts(stage.reach / reach)
            chains.append(_Chain(stage.ms, bursts, instances=stage.instances, wait_ms=wait))
            reach = stage.reach
        if sum(stage.instances for stage in stages) <= cores:
            break
        waits = [(old + new) / 2 for old, new in zip(waits, _core_waits(stages, chains, cores), strict=True)]
    # Long enough for any wait that matters at the loads that are planned for.
    cell = 8 * sum(float(chain.ms[-1]) + wait for chain, wait in zip(chains, waits, strict=True)) / CELLS
    passed, total = np.zeros(CELLS), np.zeros(CELLS)
    passed[0] = 1.0
    exits = np.append([stage.reach for stage in stages[1:]], 0.0)
    for stage, chain, later in zip(stages, chains, exits, strict=True):
        passed = _added(passed, chain.times(cell))
        total += (stage.reach - later) * passed
    reached = np.cumsum(total) / total.sum()
    p50, p99 = (float(np.searchsorted(reached, share) + 0.5) * cell for share in (0.5, 0.99))
    mean = float(total @ (np.arange(CELLS) + 0.5) / total.sum()) * cell
    return ServerState(mean_ms=mean, p50_ms=p50, p99_ms=p99, batches=tuple(chain.batch for chain in chains))


def _core_waits(stages: Sequence[QueueStage], chains: Sequence["_Chain"], cores: int) -> list[float]:
    """Mean wait of a call for a core, per stage, behind the calls of the other instances that run or wait."""
    waits: list[float] = []
    for place in range(len(stages)):
        there, ahead_ms = np.ones(1), 0.0
        for other, (stage, chain) in enumerate(zip(stages, chains, strict=True)):
            own = other == place
            if stage.instances == own:
                continue
            share = min(chain.calls_per_ms * (chain.mean_ms + chain.wait_ms) / stage.instances, 1.0)
            for _ in range(stage.instances - own):
                there = np.convolve(there, [1 - share, share])
            # Requested where a call ends, a core has whole calls of the others before it.
            ahead_ms += (stage.instances - own) * share * chain.mean_ms
        many = np.arange(len(there))
        behind = float((there * np.maximum(many - cores + 1, 0)).sum()) / max(float((there * many).sum()), 1e-12)
        # Of several cores the one that is free first has half of its call behind it.
        rest = 1.0 if cores == 1 else 1 - 0.5 / cores
        waits.append(ahead_ms * behind * rest / cores)
    return waits


def _added(one: Floats, other: Floats) -> Floats:
    """Distribution of the sum of two times; what is beyond the last cell is put there."""
    whole = np.fft.irfft(np.fft.rfft(one, 2 * CELLS) * np.fft.rfft(other, 2 * CELLS), 2 * CELLS)
    found = np.maximum(whole[:CELLS], 0.0)
    found[-1] += max(1.0 - float(found.sum()), 0.0)
    return found


@dataclass(frozen=True, kw_only=True)
class _Bursts:
    """Rows that come together: bursts per millisecond, and the shares of those of 0, 1, ... rows, float64 (c,)."""

    per_ms: float
    sizes: Floats

    @classmethod
    def of_arrivals(cls, per_ms: float) -> "_Bursts":
        """Rows that come one by one."""
        sizes = np.zeros(MOST_WAITING + 1)
        sizes[1] = 1.0
        return cls(per_ms=per_ms, sizes=sizes)

    @property
    def rows_per_ms(self) -> float:
        """Rows of all bursts."""
        return self.per_ms * float(self.sizes @ np.arange(len(self.sizes)))

    def within(self, ms: Floats, cells: int) -> Floats:
        """Probabilities of 0, 1, ... rows within times, float64 (s, cells); more are counted in the last one."""
        many = np.arange(cells)
        factorials = np.cumsum(np.log(np.maximum(many, 1)))
        mean = self.rows_per_ms * ms[:, None]
        found = np.exp(many * np.log(np.maximum(mean, 1e-300)) - mean - factorials)
        found[:, -1] += np.maximum(1 - found.sum(axis=1), 0)
        return np.asarray(found / found.sum(axis=1)[:, None], np.float64)

    def first(self, cells: int) -> Floats:
        """Shares of 0, 1, ... rows of bursts with any, float64 (cells,)."""
        found = np.append(0.0, self.sizes[1:cells])
        found[-1] += self.sizes[cells:].sum()
        return np.asarray(found / max(found.sum(), 1e-300), np.float64)


class _Chain:
    """The rows that wait when a batch starts, 0 to m.

    Attributes:
        ms: float64 (b + 1,), as in `QueueStage`.
        wait_ms: mean wait of a call for a core.
        batch: mean rows of a batch.
        mean_ms: mean time of one.
        calls_per_ms: batches started.
    """

    def __init__(self, ms: Floats, bursts: _Bursts, *, instances: int, wait_ms: float) -> None:
        self.ms, self.wait_ms = ms, wait_ms
        largest = len(ms) - 1
        # Beyond some batches that wait nothing changes at a load that can be carried.
        waiting = np.arange(min(MOST_WAITING, 6 * largest + 60) + 1)
        self._size = np.clip(waiting, 1, largest)
        self._left = np.maximum(waiting - largest, 0)
        # From the start of a batch to that of the next one, while rows wait.
        self._interval = ms[self._size] / instances + wait_ms
        self._came = bursts.within(self._interval, len(waiting))
        self._first = bursts.first(len(waiting))
        share = _stationary(self._came, self._left, self._first)
        # Where none waits an instance is idle until a burst comes.
        self._idle = share[0]
        self._share = np.append(0.0, share[1:]) + self._idle * self._first
        self._whole_ms = ms[-1] / instances
        self.batch = float(self._share @ self._size)
        self.mean_ms = float(self._share @ ms[self._size])
        self.calls_per_ms = bursts.rows_per_ms / self.batch

    def bursts(self, goes_on: float) -> _Bursts:
        """The rows of its batches that go on, each with such a probability."""
        by_size = np.bincount(self._size, weights=self._share)
        found = np.zeros(MOST_WAITING + 1)
        for size in np.flatnonzero(by_size > 1e-9)[-MOST_WAITING:]:
            found[: size + 1] += by_size[size] * binomial_shares(int(size), np.array([goes_on]))[0]
        return _Bursts(per_ms=self.calls_per_ms, sizes=found / found.sum())

    def times(self, cell: float) -> Floats:
        """Distribution of a row's time at the stage, probabilities of cells so many milliseconds wide."""
        # Rows that come while a batch runs wait for the rest of it, and for whole ones before theirs.
        came = np.arange(self._came.shape[1])
        weight = self._share[:, None] * self._came * came
        queue = self._left[:, None] + came
        largest = len(self.ms) - 1
        # In the middle of a queue, as rows are on average.
        before = (queue // 2 // largest) * self._whole_ms
        start = self.ms[np.clip(queue, 0, largest)] + before
        # Waits for a core vary, from 0 to twice the mean, and more rows come in a longer one.
        wide = self._interval + self.wait_ms**2 / (3 * self._interval)
        width = np.broadcast_to(wide[:, None], start.shape)
        density = np.zeros(CELLS + 1)
        _add_boxes(density, start / cell, width / cell, weight)
        # The rows of a burst that comes to an idle stage wait for a core alone.
        alone = self.ms[self._size] / cell
        _add_boxes(
            density,
            alone,
            np.full(alone.shape, 2 * self.wait_ms / cell),
            self._idle * self._first * np.arange(len(alone)),
        )
        found = density[:CELLS]
        found[-1] += density[CELLS]
        return np.asarray(found / found.sum(), np.float64)


def _stationary(came: Floats, left: npt.NDArray[np.int64], first: Floats) -> Floats:
    """Shares of the states of a chain that goes on with what is left and what came, float64 (s,).

    From state 0 it goes on as from those that a first burst makes, with shares float64 (s,).
    """
    states = len(left)
    step = np.zeros((states, states))
    for state, rest in enumerate(left):
        step[state, rest:] = came[state, : states - rest]
        step[state, -1] += came[state, states - rest :].sum()
    step[0] = first @ step
    system, wanted = step.T - np.eye(states), np.zeros(states)
    # One of the equations follows from the others; the shares add up to 1 instead.
    system[-1], wanted[-1] = 1.0, 1.0
    found = np.linalg.solve(system, wanted)
    return np.asarray(np.maximum(found, 0) / np.maximum(found, 0).sum(), np.float64)


def _add_boxes(density: Floats, start: Floats, width: Floats, weight: Floats) -> None:
    """Adds weights that are spread evenly from a start over a width, both in cells, to a density by cells."""
    kept = weight > 1e-12
    first = np.minimum(start[kept], CELLS).astype(np.int64)
    last = np.minimum(start[kept] + width[kept], CELLS).astype(np.int64)
    each = weight[kept] / (last - first + 1)
    change = np.zeros(CELLS + 2)
    np.add.at(change, first, each)
    np.subtract.at(change, last + 1, each)
    density += np.cumsum(change)[: CELLS + 1]
