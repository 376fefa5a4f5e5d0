"""How many servers a plan needs for a load, with which instances, and what its rows then wait and cost."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, InfeasibleError
from orchestrator.planner.clock import (
    deriving_of,
    models_of_stages,
    require_batches,
    timing_for,
    timing_of_files,
)
from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.planner.queueing import QueueStage, ServerState, queue_stages, server_state
from orchestrator.spec import CascadeSpec
from orchestrator.spec.timing import RUNTIME_PARTS, CallTime, Timing
from orchestrator.spec.validation import MOST_ROWS, Faults

# A server with so little to do stands for an idle one.
_IDLE = 0.01
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What servers have to do.

    Args:
        rate: rows per second on average.
        peak: so many times as much at the worst, which the servers have to carry.
        p99_ms: longest time that 99 % of the rows may take at the peak; None for no limit.
        cores: of a server.
        price: of a server and hour, in any money; None where costs are not asked for.

    Raises:
        SpecError: values out of range, keyed by argument.
    """

    rate: float
    peak: float = 1.0
    p99_ms: float | None = None
    cores: int
    price: float | None = None

    def __post_init__(self) -> None:
        faults = Faults("size", of_arguments=True)
        faults.rate("rate", self.rate)
        faults.number("peak", self.peak, low=1, high=MOST_ROWS)
        if self.p99_ms is not None:
            faults.positive("p99_ms", self.p99_ms)
        faults.integer("cores", self.cores, low=1, high=MOST_ROWS)
        if self.price is not None:
            faults.positive("price", self.price)
        faults.close()

    @property
    def per_ms(self) -> float:
        """Rows per millisecond at the peak."""
        return self.rate * self.peak / 1000


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Servers for a demand.

    Args:
        name: what is served.
        reach: share of rows that get to each stage.
        instances: of each stage's members, on every server.
        load: at the peak, of the busiest stage or of the cores, as a share of the most it can carry.
        busiest: which of them: "stage 0", ... or "cores".
        cores_load: share of the cores that are at work at the peak.
        p50_ms, p99_ms: at the peak.
        cost_per_million: of rows at the mean rate; None without a price.
    """

    name: str
    reach: tuple[float, ...]
    servers: int
    instances: tuple[int, ...]
    load: float
    busiest: str
    cores_load: float
    p50_ms: float
    p99_ms: float
    cost_per_million: float | None


def stages_of(spec: CascadeSpec, timing: Timing, *, more: float = 0.0) -> list[QueueStage]:
    """The stages of a plan as queues, by where its rows left it when it was fitted.

    `more` is added to the share of rows that go on after the first stage; later stages get more in proportion.

    Raises:
        DataError: the plan was not fitted, or a model was not timed, or as another file, or not in batches of 1.
    """
    if spec.fit is None or not spec.fit.exit_share:
        raise DataError(f"plan {spec.name}", got="no exit shares", expected="a plan made by `committee plan`")
    used, here = timing_for(spec, timing), spec.in_process
    runtime = [used.added_by_runtime(place, in_process=place < here) for place in range(len(spec.stages))]
    _require_single_rows(used, runtime)
    left = np.cumsum((0.0, *spec.fit.exit_share[:-1]))
    reach = [min(max(1 - float(part), 0.0), 1.0) for part in left]
    if more and len(reach) > 1:
        above = min(1.0, reach[1] + more)
        factor = above / reach[1] if reach[1] > 0 else 0.0
        reach = [1.0, above, *(part * factor for part in reach[2:])]
    groups = [[member.name for member in stage.members] for stage in spec.stages]
    return queue_stages(models_of_stages(groups, deriving_of(spec)), reach, used, in_process=here)


def member_stage(name: str, spec: CascadeSpec, timing: Timing) -> list[QueueStage]:
    """A member that is asked about every row, without a cascade.

    One of the plan's has what it reads derived; what others read nothing says.

    Raises:
        DataError: a model was not timed, or not in batches of 1.
    """
    models = models_of_stages([[name]], deriving_of(spec))
    used = timing_of_files(dict.fromkeys(models[0]), timing)
    _require_single_rows(used, ())
    no_runtime: dict[str, Any] = dict.fromkeys(RUNTIME_PARTS, ())
    return queue_stages(models, [1.0], dataclasses.replace(used, **no_runtime))


def _require_single_rows(timing: Timing, runtime: Sequence[Sequence[CallTime]]) -> None:
    """Refuses a timing that lacks the batch of a row that comes alone."""
    require_batches(timing, runtime, between=(1, 1), load="rows that come one by one")


def sized(name: str, stages: Sequence[QueueStage], demand: Demand, *, one_at_once: bool) -> Sizing:
    """The fewest servers that carry the peak at a load of at most 0.8, and quickly enough.

    With `one_at_once` the first stage of a server runs one batch at a time, as that of a cascade does; else it
    has as many instances as it needs.

    Raises:
        InfeasibleError: not even an idle server is quick enough.
    """
    fewest = _fewest(stages, demand, one_at_once=one_at_once)
    limit = math.inf if demand.p99_ms is None else demand.p99_ms
    state = _state(stages, demand, fewest, one_at_once=one_at_once)
    if state.p99_ms > limit:
        most = max(fewest + 1, math.ceil(demand.per_ms * sum(stage.load(1.0) for stage in stages) / _IDLE))
        idle = _state(stages, demand, most, one_at_once=one_at_once)
        if idle.p99_ms > limit:
            got, expected = f"p99 {limit:g} ms", f"at least {idle.p99_ms:.4g}, what {name} takes on an idle server"
            raise InfeasibleError("size", got=got, expected=expected)
        fewest, state = _quick_enough(stages, demand, (fewest, most), limit, one_at_once=one_at_once)
    instances = _instances(stages, demand, fewest, one_at_once=one_at_once)
    loads = _loads(stages, demand, fewest, instances)
    busiest = max(loads, key=lambda key: loads[key])
    hourly = None if demand.price is None else fewest * demand.price
    return Sizing(
        name=name,
        reach=tuple(stage.reach for stage in stages),
        servers=fewest,
        instances=instances,
        load=loads[busiest],
        busiest=busiest,
        cores_load=loads["cores"],
        p50_ms=state.p50_ms,
        p99_ms=state.p99_ms,
        cost_per_million=None if hourly is None else hourly / (demand.rate * 3600) * 1e6,
    )


def _quick_enough(
    stages: Sequence[QueueStage], demand: Demand, between: tuple[int, int], limit: float, *, one_at_once: bool
) -> tuple[int, ServerState]:
    """The fewest servers of a range whose last is quick enough, within a hundredth, by halving it."""
    low, high = between
    state = _state(stages, demand, high, one_at_once=one_at_once)
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        found = _state(stages, demand, middle, one_at_once=one_at_once)
        if found.p99_ms <= limit:
            high, state = middle, found
        else:
            low = middle
    return high, state


def _fewest(stages: Sequence[QueueStage], demand: Demand, *, one_at_once: bool) -> int:
    """Servers by load alone."""
    loads = [stage.load(demand.per_ms) for stage in stages]
    needed = sum(loads) / demand.cores
    # A stage cannot use more cores than there are.
    needed = max(needed, loads[0]) if one_at_once else needed
    return max(1, math.ceil(needed / MOST_LOAD - 1e-9))


def _instances(
    stages: Sequence[QueueStage], demand: Demand, servers: int, *, one_at_once: bool
) -> tuple[int, ...]:
    each = [math.ceil(stage.load(demand.per_ms / servers) / MOST_LOAD - 1e-9) for stage in stages]
    return tuple(1 if place == 0 and one_at_once else max(1, count) for place, count in enumerate(each))


def _loads(
    stages: Sequence[QueueStage], demand: Demand, servers: int, instances: Sequence[int]
) -> dict[str, float]:
    own = [stage.load(demand.per_ms / servers) for stage in stages]
    loads = {
        f"stage {place}": load / count for place, (load, count) in enumerate(zip(own, instances, strict=True))
    }
    return {**loads, "cores": sum(own) / demand.cores}


def _state(stages: Sequence[QueueStage], demand: Demand, servers: int, *, one_at_once: bool) -> ServerState:
    counts = _instances(stages, demand, servers, one_at_once=one_at_once)
    run = [dataclasses.replace(stage, instances=count) for stage, count in zip(stages, counts, strict=True)]
    return server_state(run, per_ms=demand.per_ms / servers, cores=demand.cores)
