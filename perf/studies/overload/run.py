"""One run: members, a plan with gears and rows; then capacity; then every variant at every rate, interleaved."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from orchestrator.errors import DataError, ServerFaultError
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import PlanResult, plan_from_records
from orchestrator.repository.files import copy_model, new_folder
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec
from perf.harness.serving import embedded
from perf.load.closed import Window, closed_tasks
from perf.load.poisson import (
    FailedRequest,
    PoissonLoad,
    RawClient,
    message_from_rows,
    outputs_from_bytes,
    send_poisson,
)
from perf.studies.drawn import DrawnPart
from perf.studies.overload.score import (
    SETTLE_S,
    counters_at_rest,
    read_counters,
    score_of,
    sent_from_open_loop,
)
from perf.studies.reproduce.parts import DrawPart, PartRecorder, Say, draw_glyphs, require_members
from perf.studies.training import REPOSITORY

EPSILON = 0.005
GEARS = 3
PLAN_ROWS = 4000
GEARED, PLAIN = "geared", "plain"
# Waits of gears keep the proportion of the defaults: 50 ms asks for a cheaper gear, 10 ms lets a dearer one back.
_LOWER_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class OverloadSource:
    """Members and the data they were trained for.

    Args:
        members: their names, the largest last: plans are held against it.
        test_rows: sent; a prime, so that requests of any size meet other neighbours in every pass.
        draw: makes the rows of a part, at most so many.
    """

    name: str
    repository: Path
    members: tuple[str, ...]
    test_rows: int
    draw: DrawPart

    @property
    def reference(self) -> str:
        """The largest member."""
        return self.members[-1]


def _draw_digits(part: str, rows: int | None) -> DrawnPart:
    split = digits_split(part)
    return DrawnPart(ids=split.ids[:rows], images=split.images[:rows], labels=split.labels[:rows])


GLYPHS = OverloadSource(
    name="glyphs",
    repository=REPOSITORY,
    members=("glyphs_b1_s1", "glyphs_b3_s1", "glyphs_b5_s1"),
    test_rows=2003,
    draw=draw_glyphs,
)
DIGITS = OverloadSource(
    name="digits",
    repository=Path("model_repository"),
    members=("digits_small", "digits_medium", "digits_large"),
    test_rows=547,
    draw=_draw_digits,
)


@dataclass(frozen=True, kw_only=True)
class OverloadSetup:
    """Everything that is served and sent.

    Args:
        folder: model repository with the members, the plan with gears and the same without.
        images: (n, *dims), rows of the test part.
        labels: int64 (n,).
    """

    source: OverloadSource
    folder: Path
    spec: CascadeSpec
    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def make_setup(
    folder: Path, *, source: OverloadSource, cache: Path, say: Say, raise_wait_us: int | None = None
) -> OverloadSetup:
    """Records, plans and renders a repository into `folder`; recordings are kept in `cache` between runs.

    With `raise_wait_us`, deferred rows that have waited so long ask for a cheaper gear; None keeps the default.

    Raises:
        CommitteeError: members are missing, or no plan has gears.
    """
    members: dict[str, Any] = {"repository": source.repository, "names": source.members}
    require_members(**members)
    part = PartRecorder(**members, draw=source.draw, rows=PLAN_ROWS, cache=cache, say=say).plan_part()
    say("planning")
    goal = Goal(reference=source.reference, epsilon=EPSILON, certify=False)
    options = SearchOptions(gears=GEARS, calibrate=False)
    found = plan_from_records(part.base, part.records, goal, options=options)
    if not isinstance(found, PlanResult) or found.spec.gears is None:
        raise DataError("overload", got="a plan without gears", expected="stages whose thresholds can be lowered")
    gears = found.spec.gears
    if raise_wait_us is not None:
        lower_us = int(_LOWER_SHARE * raise_wait_us)
        gears = dataclasses.replace(gears, raise_wait_us=raise_wait_us, lower_wait_us=lower_us)
    spec = dataclasses.replace(found.spec, fused_prefix=None, gears=gears)
    say("rendering")
    with new_folder(folder) as building:
        for member in spec.members:
            copy_model(source.repository / member.name, building / member.name)
        render(dataclasses.replace(spec, name=GEARED), building, standalone=True)
        render(dataclasses.replace(spec, name=PLAIN, gears=None), building, standalone=True)
    test = source.draw("test", source.test_rows)
    return OverloadSetup(source=source, folder=folder, spec=spec, images=test.images, labels=test.labels)


_CAPACITY_IN_FLIGHT = 32
# Share of a client's deadline that the server may use; the rest is for the way there and back.
SERVER_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to meet an overload.

    Args:
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


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the server can do, and what follows for the loads.

    Args:
        per_s: requests/s without deadlines, with the plan's own thresholds.
        cheapest_per_s: requests/s in the cheapest gear: the most that gears can make of it.
        unloaded_ms: median with one request in flight.
        deadline_ms: the client's.
        most_in_flight: what turning away admits.
    """

    per_s: float
    cheapest_per_s: float
    unloaded_ms: float
    deadline_ms: float
    most_in_flight: int


@dataclass(frozen=True, kw_only=True)
class OverloadResult:
    """What a run found; `scores` has a row per load sent: `factor`, `variant`, the columns of `score_of`."""

    triton: str
    capacity: Capacity
    scores: pd.DataFrame

    def rounds_of(self, factor: float, variant: str) -> pd.DataFrame:
        """The loads of one variant at one rate."""
        return self.scores[(self.scores.factor == factor) & (self.scores.variant == variant)]


def run_overload(setup: OverloadSetup, load: OverloadLoad, *, say: Say) -> OverloadResult:
    """Serves and measures.

    Raises:
        CommitteeError: the server does not start, or answers nothing.
    """
    scores = []
    with embedded(setup.folder, progress=say) as server:
        say("measuring the capacity")
        capacity = asyncio.run(_capacity(setup, load, server.grpc_address))
        for number, factor in product(range(1, load.rounds + 1), load.factors):
            # Each round begins with another variant.
            turn = number % len(VARIANTS)
            for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                say(f"round {number} of {load.rounds}: {factor:g} x capacity, {variant.title}")
                before = counters_at_rest(server.metrics_address, variant.model)
                # The same moments for every variant of a round.
                arrivals = {"rate": factor * capacity.per_s, "seed": load.seed + number}
                poisson = _requests(load, capacity, variant, address=server.grpc_address, **arrivals)
                done = asyncio.run(send_poisson(poisson, setup.images, input_name=setup.spec.input.name))
                sent = sent_from_open_loop(done, labels=setup.labels, batch=load.batch)
                time.sleep(SETTLE_S)
                counted = read_counters(server.metrics_address, variant.model).since(before)
                score = score_of(sent, deadline_ms=capacity.deadline_ms) | counted
                scores.append({"factor": factor, "variant": variant.name, **score})
        return OverloadResult(triton=server.version, capacity=capacity, scores=pd.DataFrame(scores))


async def _capacity(setup: OverloadSetup, load: OverloadLoad, address: str) -> Capacity:
    name = setup.spec.input.name

    async def loop(model: str, concurrency: int, seconds: float, **parameters: int) -> Window:
        """A closed loop with `concurrency` requests always in flight; without a gear, the server chooses it."""
        async with RawClient(address) as client:

            async def ask(part: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
                answer = await client.send(
                    message_from_rows(model, part, input_name=name, parameters=parameters or None)
                )
                if isinstance(answer, FailedRequest):
                    raise ServerFaultError(f"model {model}", got=answer.text)
                stages: npt.NDArray[np.int32] = outputs_from_bytes(answer, ("exit_stage",))["exit_stage"].ravel()
                return stages

            return await closed_tasks(
                ask, setup.images, concurrency=concurrency, batch=load.batch, seconds=seconds
            )

    for model in (GEARED, PLAIN):
        await loop(model, 4, 1.0)
    full = await loop(PLAIN, _CAPACITY_IN_FLIGHT, load.seconds)
    last = len(setup.spec.gears.cheaper) if setup.spec.gears else 0
    cheapest = await loop(GEARED, _CAPACITY_IN_FLIGHT, load.seconds / 2, gear=last)
    unloaded_ms = float(np.median((await loop(PLAIN, 1, load.seconds / 2)).latency_ms))
    deadline_ms = load.deadline_factor * unloaded_ms
    return Capacity(
        per_s=full.requests_per_s,
        cheapest_per_s=cheapest.requests_per_s,
        unloaded_ms=unloaded_ms,
        deadline_ms=deadline_ms,
        most_in_flight=max(1, int(SERVER_SHARE * full.requests_per_s * deadline_ms / 1000)),
    )


def _requests(load: OverloadLoad, capacity: Capacity, variant: Variant, **arrivals: Any) -> PoissonLoad:
    """Requests at random moments, with a deadline on every one."""
    return PoissonLoad(
        model=variant.model,
        seconds=load.seconds,
        batch=load.batch,
        deadline_us=int(1000 * SERVER_SHARE * capacity.deadline_ms),
        from_arrival=variant.from_arrival,
        most_in_flight=capacity.most_in_flight if variant.turns_away else None,
        **arrivals,
    )
