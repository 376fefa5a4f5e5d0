"""One run: capacity first, then every variant at every rate, interleaved over rounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from perf.load.poisson import PoissonLoad
from perf.studies.overload.ground import GEARED, PLAIN, OverloadSetup
from perf.studies.overload.score import Score, score_of
from perf.studies.overload.send import Sent, poisson, saturated
from perf.studies.overload.watch import SETTLE_S, at_rest, pressure_between, read

Say = Callable[[str], None]
_CAPACITY_IN_FLIGHT = 32
# What the way to the server and back may take of a client's deadline.
SERVER_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to meet an overload.

    Args:
        name: short.
        title: for people.
        model: Triton name.
        from_arrival: deadlines begin to count in the cascade, so that it sees nothing of the wait in front.
        turns_away: requests beyond what can be served within the deadline are refused before they are sent.
    """

    name: str
    title: str
    model: str
    from_arrival: bool = False
    turns_away: bool = False


VARIANTS = (
    Variant(name="gears", title="gears", model=GEARED),
    Variant(name="no_gears", title="no gears", model=PLAIN),
    Variant(name="gears_turning_away", title="gears, turning away", model=GEARED, turns_away=True),
    Variant(name="turning_away", title="no gears, turning away", model=PLAIN, turns_away=True),
    Variant(name="from_arrival", title="no gears, `deadline_us`", model=PLAIN, from_arrival=True),
)


@dataclass(frozen=True, kw_only=True)
class OverloadLoad:
    """What is sent.

    Args:
        batch: rows per request.
        factors: rates as multiples of the capacity.
        rounds: of each.
        seconds: of each load.
        deadline_factor: the client's deadline in unloaded medians.
        seed: of the arrivals.
    """

    batch: int
    factors: Sequence[float]
    rounds: int
    seconds: float
    deadline_factor: float
    seed: int = 0


@dataclass
class OverloadResult:
    """What a run found.

    Args:
        triton: its version.
        capacity_per_s: requests/s without deadlines, with the plan's own thresholds.
        cheapest_per_s: the same in the cheapest gear: the most that gears can make of it.
        unloaded_ms: median with one request in flight.
        deadline_ms: the client's.
        most_in_flight: what turning away admits.
        scores: (factor, variant) -> rounds.
    """

    triton: str
    capacity_per_s: float
    cheapest_per_s: float
    unloaded_ms: float
    deadline_ms: float
    most_in_flight: int
    scores: dict[tuple[float, str], list[Score]] = field(default_factory=dict)


def run_overload(ground: OverloadSetup, load: OverloadLoad, *, say: Say) -> OverloadResult:
    """Serves and measures.

    Args:
        ground: what is served and sent.
        load: how.
        say: told what is done.

    Raises:
        CommitteeError: the server does not start, or answers nothing.
    """
    options = ServeOptions(
        repository=ground.folder, http_port=0, grpc_port=0, metrics_port=0, startup_timeout_s=300.0
    )
    with EmbeddedServer(options, progress=say) as server:
        found = asyncio.run(_capacity(ground, load, server.grpc_address, triton=server.version, say=say))
        for number in range(1, load.rounds + 1):
            for factor in load.factors:
                # Another one first in each round.
                turn = number % len(VARIANTS)
                for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                    say(f"round {number} of {load.rounds}: {factor:g} x capacity, {variant.title}")
                    before = at_rest(server.metrics_address, variant.model)
                    sent = asyncio.run(
                        _sent(
                            ground, load, found, server.grpc_address, variant=variant, factor=factor, number=number
                        )
                    )
                    time.sleep(SETTLE_S)
                    pressure = pressure_between(before, read(server.metrics_address, variant.model))
                    score = score_of(sent, deadline_ms=found.deadline_ms, pressure=pressure)
                    found.scores.setdefault((factor, variant.name), []).append(score)
    return found


async def _capacity(
    ground: OverloadSetup, load: OverloadLoad, address: str, *, triton: str, say: Say
) -> OverloadResult:
    say("measuring the capacity")
    loop = partial(saturated, address, input_name=ground.spec.input.name, batch=load.batch)
    for model in (GEARED, PLAIN):
        await loop(model, ground.images, concurrency=4, seconds=1.0)
    full = await loop(PLAIN, ground.images, concurrency=_CAPACITY_IN_FLIGHT, seconds=load.seconds)
    cheapest = await loop(
        GEARED,
        ground.images,
        concurrency=_CAPACITY_IN_FLIGHT,
        seconds=load.seconds / 2,
        gear=len(ground.spec.gears.cheaper) if ground.spec.gears else 0,
    )
    alone = await loop(PLAIN, ground.images, concurrency=1, seconds=load.seconds / 2)
    capacity, unloaded_ms = full.requests_per_s, float(np.median(alone.latency_ms))
    deadline_ms = load.deadline_factor * unloaded_ms
    return OverloadResult(
        triton=triton,
        capacity_per_s=capacity,
        cheapest_per_s=cheapest.requests_per_s,
        unloaded_ms=unloaded_ms,
        deadline_ms=deadline_ms,
        most_in_flight=max(1, int(SERVER_SHARE * capacity * deadline_ms / 1000)),
    )


async def _sent(
    ground: OverloadSetup,
    load: OverloadLoad,
    found: OverloadResult,
    address: str,
    *,
    variant: Variant,
    factor: float,
    number: int,
) -> Sent:
    return await poisson(
        PoissonLoad(
            model=variant.model,
            address=address,
            rate=factor * found.capacity_per_s,
            seconds=load.seconds,
            # The same moments for every variant of a round.
            seed=load.seed + number,
            batch=load.batch,
            deadline_us=int(1000 * SERVER_SHARE * found.deadline_ms),
            from_arrival=variant.from_arrival,
            most_in_flight=found.most_in_flight if variant.turns_away else None,
        ),
        ground.images,
        ground.labels,
        input_name=ground.spec.input.name,
    )
