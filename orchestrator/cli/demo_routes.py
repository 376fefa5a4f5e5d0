"""The demo's measurements: every route of a repository asked about the same rows, beside the offline replay."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import ServedAnswers
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.load import LoadResult, closed_loop
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.rows.digits import DigitsSplit
from orchestrator.spec import CascadeSpec

# Rows this near to a threshold may fall on either side of it when a kernel rounds differently by batch size.
NEAR_THRESHOLD = 1e-5


@dataclass(frozen=True, kw_only=True)
class DemoRoute:
    """A model that answers rows.

    Args:
        name: Triton model name.
        kind: "member", "ensemble" or "cascade".
        macs: per row, of every member behind it (the worst case for a cascade).
    """

    name: str
    kind: str
    macs: float


@dataclass(frozen=True, kw_only=True)
class MeasuredRoute:
    """One route on n rows.

    Args:
        route: which.
        right: bool (n,).
        label: int64 (n,).
        exit_stage: int32 (n,).
        mean_macs: per row, as served.
        exit_share: per stage.
        requests_per_s, p50_ms, p99_ms: medians over the timed rounds.
    """

    route: DemoRoute
    right: npt.NDArray[np.bool_]
    label: npt.NDArray[np.int64]
    exit_stage: npt.NDArray[np.int32]
    mean_macs: float
    exit_share: tuple[float, ...]
    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class ReplayCheck:
    """What replaying the plan says about served answers.

    Args:
        mismatches: rows whose label or exit stage differs, without those near a threshold.
        near_threshold: ids of rows within `NEAR_THRESHOLD` of a threshold, which are not counted.
    """

    mismatches: int
    near_threshold: tuple[int, ...]


def routes_of(spec: CascadeSpec, members: Mapping[str, float], ensemble: str) -> list[DemoRoute]:
    """Members by cost, then the ensemble of all, then the cascade."""
    ordered = sorted(members, key=lambda name: members[name])
    return [
        *(DemoRoute(name=name, kind="member", macs=members[name]) for name in ordered),
        DemoRoute(name=ensemble, kind="ensemble", macs=sum(members.values())),
        DemoRoute(name=spec.name, kind="cascade", macs=spec.worst_cost),
    ]


async def measure_routes(
    address: str | Endpoint,
    routes: Sequence[DemoRoute],
    *,
    rows: DigitsSplit,
    stages: int,
    concurrency: int,
    rounds: int,
    progress: Callable[[str], None],
) -> list[MeasuredRoute]:
    """Asks every route every row, in interleaved rounds; the first round is not timed.

    Args:
        address: of the gRPC endpoint.
        routes: which to ask.
        rows: what to ask about, labelled.
        stages: of the cascade.
        concurrency: requests in flight.
        rounds: timed passes per route.
        progress: told before each pass.
    """
    passes: dict[str, list[LoadResult]] = {route.name: [] for route in routes}
    async with AsyncGrpcClient(address) as client:
        for number in range(rounds + 1):
            for route in routes:
                progress(f"{route.name}, round {number} of {rounds}" if number else f"{route.name}, warm-up")

                async def ask(row: npt.NDArray[np.float32], name: str = route.name) -> ServedAnswers:
                    return await client.infer(name, row)

                passes[route.name].append(await closed_loop(ask, rows.images, concurrency=concurrency))
                # A pause lets the members finish before the next route is timed.
                await asyncio.sleep(0.05)
    return [_measured(route, passes[route.name], rows, stages) for route in routes]


def _measured(route: DemoRoute, passes: list[LoadResult], rows: DigitsSplit, stages: int) -> MeasuredRoute:
    answers: list[ServedAnswers] = passes[0].answers
    label = np.array([int(answer.label[0]) for answer in answers])
    exit_stage = np.array([int(answer.exit_stage[0]) for answer in answers], np.int32)
    cascade = route.kind == "cascade"
    cost = np.array([float(answer.cost[0]) for answer in answers]) if cascade else np.array([route.macs])
    share = np.bincount(exit_stage, minlength=stages if cascade else 1) / len(label)
    timed = passes[1:] or passes
    return MeasuredRoute(
        route=route,
        right=label == rows.labels,
        label=label,
        exit_stage=exit_stage,
        mean_macs=float(cost.mean()),
        exit_share=tuple(float(value) for value in share),
        requests_per_s=float(np.median([one.requests_per_s for one in timed])),
        p50_ms=float(np.median([one.percentile_ms(50) for one in timed])),
        p99_ms=float(np.median([one.percentile_ms(99) for one in timed])),
    )


def compare_with_replay(spec: CascadeSpec, records: Records, served: MeasuredRoute) -> ReplayCheck:
    """Counts rows whose served answer differs from the replayed one."""
    offline = replay(spec, records)
    differs = (offline.label != served.label) | (offline.exit_stage != served.exit_stage)
    near = np.zeros(records.rows, np.bool_)
    for stage, part in enumerate(spec.stages[:-1]):
        if part.threshold is not None:
            forced = replay(spec, records, Policy(min_stage=stage, max_stage=stage))
            near |= (np.abs(forced.confidence - part.threshold) < NEAR_THRESHOLD) & (offline.exit_stage >= stage)
    return ReplayCheck(
        mismatches=int((differs & ~near).sum()),
        near_threshold=tuple(int(value) for value in records.ids[near]),
    )
