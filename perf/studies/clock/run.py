"""One committee: its members timed as served, plans made by the clock for several loads, served and measured."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from orchestrator.cli.plan_pool import pool_from_records
from orchestrator.client.over_grpc import GrpcClient
from orchestrator.errors import DataError, RepositoryError
from orchestrator.planner.clock import Load, clock_for, in_ms
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, plan_from_records
from orchestrator.planner.predict import predicted_plan
from orchestrator.planner.records import Records
from orchestrator.planner.replay import impose_exits, replay
from orchestrator.recording.job import RecordOptions
from orchestrator.recording.served_timing import own_server
from orchestrator.recording.timing import TimeOptions, time_members
from orchestrator.repository.checked import render_checked
from orchestrator.repository.files import copy_model
from orchestrator.spec import CascadeSpec
from orchestrator.spec.rows import AnyRows, rows_at
from orchestrator.spec.timing import Timing
from perf.harness.server_probe import cpu_s, server_processes
from perf.harness.serving import embedded
from perf.load.poisson import poisson_arrivals
from perf.studies.clock.committees import Committee, CommitteeRows

# Rows per request, one request at a time.
BATCHES = (1, 8, 32)
# Arrivals as a share of what one row at a time would carry.
SHARES = (0.1, 0.25, 0.5)
# A plan may lose so much against the most accurate member.
EPSILON = 0.01
# Threads of the sender: at the rates of this study fewer than half of them are ever busy.
_SENDERS = 32
_FEWEST_BATCHES = 4
# The most accurate member takes longer, and each row as long as another.
_RIVAL_SHARE = 4
Say = Callable[[str], None]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class ClockEffort:
    """How long everything is measured.

    Args:
        timing_rounds, slot_ms: of `time_members`.
        passes: over the rows that a load is measured on, in turns with the other loads.
        pass_s: of a pass with full requests, about.
        window_s: of a pass at a rate.
    """

    timing_rounds: int
    slot_ms: float
    passes: int
    pass_s: float
    window_s: float


@dataclass(frozen=True, kw_only=True)
class ClockPlan:
    """A plan for one load, with what is predicted of it in its `fit`.

    `rival` is the most accurate member, which is asked alone beside it; None where it reads derived tensors.
    """

    load: Load
    spec: CascadeSpec
    rival: str | None
    timing: Timing

    @property
    def facts(self) -> dict[str, Any]:
        """The prediction."""
        assert self.spec.fit is not None
        found: dict[str, Any] = self.spec.fit.extra["timing"]
        return found

    @property
    def rival_ms(self) -> float | None:
        """Milliseconds per row of the rival by its timing; None at a rate."""
        if self.rival is None or self.load.batch is None:
            return None
        return float(self.timing.by_name[self.rival].ms(self.load.batch)) / self.load.batch

    @property
    def predicted_ms(self) -> float:
        """Mean milliseconds: offline per row, at a rate from a row's arrival to its answer."""
        return float(self.facts["ms"] if self.load.rate is None else self.facts["answered_ms"])


def timing_of(committee: Committee, effort: ClockEffort) -> Timing:
    """Its members timed as served, on a server of their own."""
    options = TimeOptions(
        batches=(1, 2, 4, 8, 16, 32),
        rounds=effort.timing_rounds,
        slot_ms=effort.slot_ms,
        data=None if committee.data is None else RecordOptions(data=committee.data),
        derive=committee.derive,
    )
    members, repository = committee.members, committee.repository
    with own_server(members, repository, derive=committee.derive) as server:
        return time_members(members, repository, options, url=server.url, cascade=server)


def plans_of(committee: Committee, records: Records, timing: Timing) -> list[ClockPlan]:
    """The plans for all loads; rates are shares of what the plan for single rows carries one at a time."""
    plans = [plan_for(committee, records, timing, Load(batch=batch, alone=True)) for batch in BATCHES]
    alone_ms = plans[0].predicted_ms
    rates = [float(f"{1000 * share / alone_ms:.3g}") for share in SHARES]
    return [*plans, *(plan_for(committee, records, timing, Load(rate=rate)) for rate in rates)]


def plan_for(committee: Committee, records: Records, timing: Timing, load: Load) -> ClockPlan:
    """The quickest plan that loses at most `EPSILON` against the most accurate member, or imposed exits."""
    name = f"{committee.name}_{load.text.split()[0] if load.batch is None else f'b{load.batch}'}"
    pool = pool_from_records(records, committee.repository, name="timed", cost=None, derive=committee.derive)
    names = [member.name for member in pool.spec.members]
    pricing = clock_for(timing, load, pool.spec, budget=None)
    base = dataclasses.replace(in_ms(pool.spec, pricing), name=name.replace(".", "_"))
    if committee.imposed is not None:
        imposed = impose_exits(base, records, exit_share=committee.imposed, random_weights=pool.random_weights)
        return ClockPlan(load=load, spec=predicted_plan(imposed, pricing), rival=names[-1], timing=timing)
    assert records.labels is not None
    right = {name: float((records.outputs[name].argmax(axis=1) == records.labels).mean()) for name in names}
    best = max(names, key=lambda one: right[one])
    goal = Goal(reference=best, epsilon=EPSILON, certify=False)
    found = plan_from_records(base, records, goal, options=SearchOptions(calibrate=False, pricing=pricing))
    if isinstance(found, Infeasible):
        raise DataError(f"plan {base.name}", got=found.unmet.got, expected=found.unmet.expected)
    return ClockPlan(load=load, spec=found.spec, rival=None if committee.derive else best, timing=timing)


def measured_committee(
    committee: Committee,
    plans: Sequence[ClockPlan],
    part: CommitteeRows,
    effort: ClockEffort,
    *,
    folder: Path,
    say: Say,
) -> list[dict[str, Any]]:
    """Every plan served, and what it took: one JSON object each."""
    _, report = render_checked(
        committee.repository, cascades=[plan.spec for plan in plans], output=folder / committee.name
    )
    if not report:
        raise RepositoryError(f"repository of {committee.name}", got=str(report))
    for rival in {plan.rival for plan in plans if plan.rival is not None}:
        if not (folder / committee.name / rival).is_dir():
            copy_model(committee.repository / rival, folder / committee.name / rival)
    found: list[list[dict[str, float]]] = [[] for _ in plans]
    with embedded(folder / committee.name, progress=say) as server, GrpcClient(server.grpc_address) as client:
        loads = [_LoadRun(plan=plan, part=part, effort=effort, seed=place) for place, plan in enumerate(plans)]
        for number in range(effort.passes + 1):
            say(f"{committee.name}: pass {number} of {effort.passes}")
            for place, load in enumerate(loads):
                others = OtherWork(server.pid)
                figures = load.once(client, seed=number)
                # The first pass warms up.
                if number:
                    found[place].append({**figures, "others_cores": others.cores()})
    return [_point(committee, plan, passes) for plan, passes in zip(plans, found, strict=True)]


class OtherWork:
    """What keeps processors busy from now on beside this process and a server's, the hypervisor included."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._begun = time.perf_counter(), self._others_s()

    def cores(self) -> float:
        """How many on average."""
        begun, before = self._begun
        return max(0.0, (self._others_s() - before) / (time.perf_counter() - begun))

    def _others_s(self) -> float:
        every = psutil.cpu_times()
        # What guests of this machine use is part of the users'.
        idle = every.idle + every.iowait + every.guest + every.guest_nice
        return float(sum(every) - idle - cpu_s(server_processes(self._server)) - time.process_time())


def quietest(passes: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The larger half of the passes, those in which other work used the least."""
    return sorted(passes, key=lambda one: one["others_cores"])[: len(passes) // 2 + 1]


def _point(committee: Committee, plan: ClockPlan, passes: Sequence[dict[str, float]]) -> dict[str, Any]:
    passes = quietest(passes)
    middle = {key: float(np.median([one[key] for one in passes])) for key in passes[0]}
    assert plan.spec.fit is not None
    return {
        "committee": committee.name,
        "load": plan.load.text,
        "batch": plan.load.batch,
        "rate": plan.load.rate,
        "stages": [[member.name for member in stage.members] for stage in plan.spec.stages],
        "predicted_reach": [stage["reach"] for stage in plan.facts["stages"]],
        "predicted_ms": plan.predicted_ms,
        "busiest": plan.facts["busiest"],
        "passes_ms": [one["ms"] for one in passes],
        "measured": middle,
        "rival": plan.rival,
        "rival_ratio": None if plan.rival_ms is None else middle["rival_ms"] / plan.rival_ms,
        "ratio": middle["ms"] / plan.predicted_ms,
    }


@dataclass(frozen=True, kw_only=True)
class _LoadRun:
    """Sends one plan's load again and again: rows of the test part whose exits are mixed as in all of it."""

    plan: ClockPlan
    part: CommitteeRows
    effort: ClockEffort
    seed: int

    def once(self, client: GrpcClient, *, seed: int) -> dict[str, float]:
        """One pass: mean milliseconds, and what was sent."""
        rng = np.random.default_rng([self.seed, seed])
        return self._offline(client, rng) if self.plan.load.batch else self._online(client, rng)

    def _rows(self, count: int, rng: np.random.Generator) -> Rows:
        exit_stage = replay(self.plan.spec, self.part.records).exit_stage
        return mixed_rows(exit_stage, count, rng)

    def _offline(self, client: GrpcClient, rng: np.random.Generator) -> dict[str, float]:
        batch = self.plan.load.batch or 1
        calls = max(_FEWEST_BATCHES, round(1000 * self.effort.pass_s / self.plan.predicted_ms / batch))
        requests = list(_requests(self.part.rows, self._rows(calls * batch, rng), batch))
        begun, deferred = time.perf_counter(), 0
        for rows in requests:
            deferred += int((client.infer(self.plan.spec.name, rows).exit_stage > 0).sum())
        count, middle = calls * batch, time.perf_counter()
        figures = {"ms": 1000 * (middle - begun) / count, "rows": count, "deferred": deferred / count}
        if self.plan.rival is not None:
            for rows in requests[: max(1, calls // _RIVAL_SHARE)]:
                client.ask(self.plan.rival, rows)
            rival_rows = max(1, calls // _RIVAL_SHARE) * batch
            figures["rival_ms"] = 1000 * (time.perf_counter() - middle) / rival_rows
        return figures

    def _online(self, client: GrpcClient, rng: np.random.Generator) -> dict[str, float]:
        assert self.plan.load.rate is not None
        due_s = poisson_arrivals(self.plan.load.rate, seconds=self.effort.window_s, seed=int(rng.integers(2**31)))
        requests = list(_requests(self.part.rows, self._rows(len(due_s), rng), 1))
        start = time.perf_counter() + 0.1
        taken = np.empty(len(due_s))

        def send(place: int) -> int:
            begun = time.perf_counter()
            deferred = int((client.infer(self.plan.spec.name, requests[place]).exit_stage > 0).sum())
            taken[place] = 1000 * (time.perf_counter() - begun)
            return deferred

        with concurrent.futures.ThreadPoolExecutor(_SENDERS) as pool:
            waiting = []
            for place, due in enumerate(due_s):
                time.sleep(max(0.0, start + due - time.perf_counter()))
                waiting.append(pool.submit(send, place))
            deferred = sum(one.result() for one in waiting)
        p99 = float(np.percentile(taken, 99))
        return {"ms": float(taken.mean()), "p99_ms": p99, "rows": len(due_s), "deferred": deferred / len(due_s)}


def mixed_rows(exit_stage: npt.NDArray[Any], count: int, rng: np.random.Generator) -> Rows:
    """So many rows, some of them several times, of which as many exit at each stage as of all rows, in any order.

    A draw of a few hundred rows would have more or fewer of the few that cost the most.
    """
    order = rng.permutation(len(exit_stage))
    # Sorted by where they exit, every so-manieth row keeps the mix.
    sorted_rows = order[np.argsort(exit_stage[order], kind="stable")]
    places = (np.arange(count) + rng.random()) * len(sorted_rows) / count
    found: Rows = rng.permutation(sorted_rows[places.astype(np.intp) % len(sorted_rows)])
    return found


def _requests(rows: AnyRows, numbers: Rows, batch: int) -> Iterator[AnyRows]:
    for first in range(0, len(numbers), batch):
        yield rows_at(rows, numbers[first : first + batch])
