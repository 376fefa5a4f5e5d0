"""What a demo does with a committee: serve it, ask every route every row, put them side by side."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from orchestrator.client.answers import ServedAnswers, joined
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.over_grpc import AsyncGrpcClient, LoadResult, closed_loop
from orchestrator.decision import Policy
from orchestrator.files import disk_faults, replaced_file, write_file
from orchestrator.planner.intervals import clopper_pearson, paired_difference
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.report.words import times_words
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec

# Rows this near to a threshold may fall on either side of it when a kernel rounds differently by batch size.
NEAR_THRESHOLD = 1e-5


@dataclass(frozen=True, kw_only=True)
class DemoCommittee:
    """What a demo serves and asks.

    Args:
        repository: that holds all models.
        spec: the cascade.
        ensemble: the model that asks all members for every row.
        records: what members say of the rows that are asked.
        rows: (n, *dims), as requests bring them.
        labels: int64 (n,).
        what: the rows in words.
        asked: member -> model that answers such rows with it; members that are left out do so themselves.
        before, after: sentences around those about the table.
        with_speed: whether running these members takes longer than calling them.
    """

    repository: Path
    spec: CascadeSpec
    ensemble: str
    records: Records
    rows: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    what: str
    asked: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    with_speed: bool = False

    def routes(self) -> list["DemoRoute"]:
        """The members, cheapest first, the ensemble and the cascade."""
        cost = self.records.cost
        return [
            *(
                DemoRoute(name=name, model=self.asked.get(name, name), kind="member", macs=cost[name])
                for name in sorted(cost, key=lambda name: cost[name])
            ),
            DemoRoute(name=self.ensemble, model=self.ensemble, kind="ensemble", macs=sum(cost.values())),
            DemoRoute(name=self.spec.name, model=self.spec.name, kind="cascade", macs=self.spec.worst_cost),
        ]


@dataclass(frozen=True, kw_only=True)
class DemoRoute:
    """A "member", "ensemble" or "cascade", the model that is asked, and the most MACs per row it may cost."""

    name: str
    model: str
    kind: str
    macs: float


@dataclass(frozen=True, kw_only=True)
class MeasuredRoute:
    """A route's answers to n rows, which of them are right, bool (n,), and its entry in the report."""

    answers: ServedAnswers
    right: npt.NDArray[np.bool_]
    entry: dict[str, Any]


@contextmanager
def _server(
    repository: Path, running: Endpoint | None, progress: Callable[[str], None]
) -> Iterator[tuple[str | Endpoint, str]]:
    """Address and version of the server that is asked."""
    if running is not None:
        yield running, f"at {running}"
        return
    progress("starting Triton")
    options = ServeOptions(repository=repository, http_port=0, grpc_port=0, metrics_port=0)
    with EmbeddedServer(options) as server:
        yield server.grpc_address, server.version


def served_report(
    committee: DemoCommittee,
    *,
    running: Endpoint | None,
    settings: dict[str, int],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The content of report.json.

    Args:
        committee: what is served and asked.
        running: a server that serves the repository already; None starts one.
        settings: `concurrency`, requests in flight, and `rounds`, timed passes over the rows per route.
        progress: told what is being done.

    Raises CommitteeError where the server cannot be started or asked.
    """
    spec, routes, labels = committee.spec, committee.routes(), committee.labels
    with _server(committee.repository, running, progress) as (address, version):
        passes = asyncio.run(_passes(address, routes, committee.rows, settings=settings, progress=progress))
    measured = [_measured(route, passes[route.name], labels, len(spec.stages)) for route in routes]
    *members, _, cascade = measured
    best = max(members, key=lambda one: (one.entry["accuracy"], -one.entry["mean_mmacs"]))
    difference, interval = paired_difference(cascade.right, best.right)
    mismatches, near = compare_with_replay(spec, committee.records, cascade.answers)
    return {
        "what": committee.what,
        "with_speed": committee.with_speed,
        "before": list(committee.before),
        "after": list(committee.after),
        "triton_version": version,
        "rows_test": len(cascade.right),
        "replay_mismatches": mismatches,
        "rows_near_a_threshold": near,
        "settings": settings,
        "cascade_minus_best_member": {
            "best_member": best.entry["name"],
            "accuracy_difference": difference,
            "difference_ci95": list(interval),
        },
        "routes": [one.entry for one in measured],
    }


async def _passes(
    address: str | Endpoint,
    routes: Sequence[DemoRoute],
    rows: npt.NDArray[Any],
    *,
    settings: dict[str, int],
    progress: Callable[[str], None],
) -> dict[str, list[LoadResult]]:
    """Asks every route every row, in interleaved rounds; the first round of each is a warm-up."""
    passes: dict[str, list[LoadResult]] = {route.name: [] for route in routes}
    rounds = settings["rounds"]
    async with AsyncGrpcClient(address) as client:
        for number in range(rounds + 1):
            for route in routes:
                progress(f"{route.name}, round {number} of {rounds}" if number else f"{route.name}, warm-up")
                ask = partial(client.infer, route.model)
                passes[route.name].append(await closed_loop(ask, rows, concurrency=settings["concurrency"]))
                # A pause lets the members finish before the next route is timed.
                await asyncio.sleep(0.05)
    return passes


def _measured(
    route: DemoRoute, passes: list[LoadResult], labels: npt.NDArray[np.int64], stages: int
) -> MeasuredRoute:
    answers, timed = joined(passes[0].answers), passes[1:]
    right = answers.label == labels
    hits, count, is_cascade = int(right.sum()), len(right), route.kind == "cascade"
    macs = float(answers.cost.mean(dtype=np.float64)) if is_cascade else route.macs
    entry = {
        "name": route.name,
        "kind": route.kind,
        "accuracy": hits / count,
        "accuracy_ci95": list(clopper_pearson(hits, count)),
        "mean_mmacs": macs / 1e6,
        "exit_share": (np.bincount(answers.exit_stage, minlength=stages if is_cascade else 1) / count).tolist(),
        "requests_per_s": float(np.median([one.requests_per_s for one in timed])),
        "p50_ms": float(np.median([one.percentile_ms(50) for one in timed])),
        "p99_ms": float(np.median([one.percentile_ms(99) for one in timed])),
    }
    return MeasuredRoute(answers=answers, right=right, entry=entry)


def compare_with_replay(spec: CascadeSpec, records: Records, served: ServedAnswers) -> tuple[int, list[int]]:
    """How many rows are served other than replayed, and the ids of those near a threshold, not counted."""
    offline = replay(spec, records)
    differs = (offline.label != served.label) | (offline.exit_stage != served.exit_stage)
    near = np.zeros(records.rows, np.bool_)
    for stage, part in enumerate(spec.stages[:-1]):
        if part.threshold is not None:
            forced = replay(spec, records, Policy(min_stage=stage, max_stage=stage))
            near |= (np.abs(forced.confidence - part.threshold) < NEAR_THRESHOLD) & (offline.exit_stage >= stage)
    return int((differs & ~near).sum()), [int(value) for value in records.ids[near]]


def table_from_report(report: dict[str, Any]) -> Table:
    """The table printed at the end."""
    settings = report["settings"]
    largest = max(route["mean_mmacs"] for route in report["routes"] if route["kind"] == "member")
    table = Table(
        title=f"{report['rows_test']} {report['what']} over gRPC, {settings['concurrency']} at a time, "
        f"Triton {report['triton_version']}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    # Narrow enough for a terminal of 80 columns, so nothing is cut where people look first.
    table.add_column("route", no_wrap=True)
    # One of both, so that the table stays narrow.
    last = "rows/s" if report["with_speed"] else "of largest, %"
    for name in ("accuracy", "95 % CI", "MMACs", last, "exits, %"):
        table.add_column(name, justify="right", no_wrap=True)
    for route in report["routes"]:
        low, high = route["accuracy_ci95"]
        exits = "/".join(f"{100 * share:.0f}" for share in route["exit_share"])
        table.add_row(
            route["name"],
            f"{route['accuracy']:.4f}",
            f"{low:.3f}-{high:.3f}",
            f"{route['mean_mmacs']:.3f}",
            f"{route['requests_per_s']:.0f}"
            if report["with_speed"]
            else f"{100 * route['mean_mmacs'] / largest:.1f}",
            exits if route["kind"] == "cascade" else "-",
            style="bold" if route["kind"] == "cascade" else None,
        )
    return table


def sentences_from_report(report: dict[str, Any]) -> list[str]:
    """The table in words: what the cascade saves and what that costs."""
    routes = report["routes"]
    cascade = next(route for route in routes if route["kind"] == "cascade")
    largest = max((route for route in routes if route["kind"] == "member"), key=lambda route: route["mean_mmacs"])
    paired = report["cascade_minus_best_member"]
    low, high = paired["difference_ci95"]
    near = len(report["rows_near_a_threshold"])
    factor = largest["mean_mmacs"] / cascade["mean_mmacs"]
    spent = times_words(factor, noun="MACs per row", than=largest["name"])
    speed = []
    if report["with_speed"]:
        best = next(route for route in routes if route["name"] == paired["best_member"])
        times = cascade["requests_per_s"] / best["requests_per_s"]
        speed = [f"One row a request, it answers {times:.1f} times as many rows per second as {best['name']}."]
    return [
        *report["before"],
        f"The cascade spends {spent}; accuracy minus that of {paired['best_member']}, the best member: "
        f"{paired['accuracy_difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f}).",
        f"Served against replayed offline: {report['replay_mismatches']} of {report['rows_test']} rows differ "
        f"in label or exit stage ({near} within 1e-5 of a threshold, listed apart).",
        *speed,
        *report["after"],
    ]


def write_report(report: dict[str, Any], output: Path) -> None:
    """Writes report.json and frontier.png into a folder; DiskError where the disk refuses."""
    with disk_faults(output):
        output.mkdir(parents=True, exist_ok=True)
    write_file(output / "report.json", json.dumps(report, indent=2) + "\n")
    with replaced_file(output / "frontier.png") as fresh:
        draw_frontier(report, fresh)


def draw_frontier(report: dict[str, Any], path: Path) -> None:
    """Accuracy with its interval against mean MACs, one labelled point per route."""
    # Optional, and slow to import.
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # optional, and after the choice of a backend

    colours = {"member": "#4c72b0", "ensemble": "#8172b3", "cascade": "#c44e52"}
    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    for route in report["routes"]:
        low, high = route["accuracy_ci95"]
        x, y = route["mean_mmacs"], route["accuracy"]
        axes.errorbar(
            x, y, yerr=[[y - low], [high - y]], fmt="o", color=colours[route["kind"]], capsize=3, markersize=7
        )
        # Labels go to the left in the right half, so that the dearest route's name stays inside.
        left = x > 0.5 * max(other["mean_mmacs"] for other in report["routes"])
        axes.annotate(
            route["name"], (x, y), xytext=(-8 if left else 8, 8), textcoords="offset points",
            ha="right" if left else "left", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("mean MMACs per row (log scale)")
    axes.set_ylabel("accuracy on the test split, with 95 % interval")
    axes.set_title(f"{report['rows_test']} {report['what']}")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
