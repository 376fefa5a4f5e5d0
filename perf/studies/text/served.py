"""The cascade of texts served beside the most accurate member: rows per second in turns, answers held to replay.

The cascade is served twice: as it is rendered by default, and with its first stage in its own process. The rival
is Triton's own ensemble of the tokenizer and the member, with dynamic batching. It has an instance for each core;
the cascade's members have one each.
"""

import asyncio
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from tritonclient.grpc import model_config_pb2 as pb

from orchestrator.cli.demo_routes import compare_with_replay
from orchestrator.client.answers import joined
from orchestrator.client.over_grpc import AsyncGrpcClient, closed_loop
from orchestrator.errors import RepositoryError, ServerFaultError, ServingError
from orchestrator.pbtxt import CONFIG, config_from_path, text_from_config
from orchestrator.planner.records import Records
from orchestrator.repository.checked import render_checked
from orchestrator.repository.files import write_all
from orchestrator.rows.docstrings import docstrings_split
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec
from orchestrator.spec.processor import core_count
from perf.harness.machine import cores_in_use_now
from perf.harness.server_probe import Counts, Statistics, counted_between, cpu_s, server_processes
from perf.harness.serving import embedded
from perf.load.analyzer import AnalyzerLoad, find_analyzer, run_analyzer
from perf.load.inputs import next_prime_below, write_input_data
from perf.studies.text.members import TOKENIZER
from perf.studies.text.study import CASCADE

IN_FLIGHT, BATCHES = 16, (1, 32)
CHECKED_IN_FLIGHT = 64
# The same plan, rendered with its first stage in process.
IN_PROCESS = f"{CASCADE}_in_process"
CASCADES = (CASCADE, IN_PROCESS)
# A window must hold many whole answers.
LONGER = {1: 1, 32: 4}
_WARM_S = 3.0
# Triton splits no batch of an ensemble, so this is the largest request.
_MOST = 64
Say = Callable[[str], None]


def served_study(
    spec: CascadeSpec,
    records: Records,
    best: str,
    repository: Path,
    *,
    rounds: int,
    seconds: float,
    say: Say,
) -> dict[str, Any]:
    """Figures of the study as JSON values.

    Args:
        spec: the plan.
        records: of the test part.
        best: the rival, a member.
        repository: of the members and the tokenizer.
        rounds: windows of each route and batch, in turns.
        seconds: of a window of single rows.
        say: told what is being done.

    Raises CommitteeError where something cannot be rendered, served or asked.
    """
    rows = np.array([text.encode() for text in docstrings_split("test").texts], object)[:, None]
    busy = cores_in_use_now()
    with TemporaryDirectory() as made:
        say("rendering what is served")
        inputs = Path(made) / "inputs.json"
        write_input_data(inputs, {"text": rows[: next_prime_below(len(rows))]})
        served, rivals = rendered(spec, best, repository, Path(made) / "served")
        with embedded(served, progress=say) as server:
            say(f"holding {len(rows)} answers to replay, {CHECKED_IN_FLIGHT} in flight")
            checked = _held(server.grpc_address, spec, records, rows)
            routes = [*CASCADES, *rivals]
            timed = _windows(server, routes, inputs=inputs, rounds=rounds, seconds=seconds, say=say)
            version = server.version
    return {
        "triton": version,
        "in_flight": IN_FLIGHT,
        "rounds": rounds,
        "seconds": seconds,
        "seconds_of_32": LONGER[32] * seconds,
        "cores": core_count(),
        "cores_in_use": busy,
        "best": best,
        "in_process": IN_PROCESS,
        "rivals": rivals,
        "checked": checked,
        "windows": timed,
        "batches": {str(batch): compared(timed, batch, rivals) for batch in BATCHES},
    }


def _windows(
    server: EmbeddedServer, routes: Sequence[str], *, inputs: Path, rounds: int, seconds: float, say: Say
) -> list[dict[str, Any]]:
    """What each route did under each load in each round, the first of which warms up and is left out."""
    analyzer, processes = find_analyzer(), server_processes(server.pid)
    windows = []
    with closing(Statistics(server.grpc_address)) as statistics:
        for number, batch in itertools.product(range(rounds + 1), BATCHES):
            # Forwards, then backwards, so that no route always follows the same one.
            for route in routes if number % 2 else routes[::-1]:
                say(f"round {number} of {rounds}: {route}, batch {batch}")
                load = AnalyzerLoad(
                    model=route,
                    address=server.grpc_address,
                    input_data=inputs,
                    concurrency=IN_FLIGHT,
                    batch=batch,
                    seconds=LONGER[batch] * (seconds if number else min(seconds, _WARM_S)),
                )
                before, used_s = statistics.counts(), cpu_s(processes)
                try:
                    window = run_analyzer(analyzer, load)
                except ServerFaultError:
                    # A window to warm up may be too short for a whole answer.
                    if number:
                        raise
                    continue
                used_s, after = cpu_s(processes) - used_s, statistics.counts()
                latency = window.percentiles_ms()
                windows.append({
                    "round": number,
                    "route": route,
                    "batch": batch,
                    "rows_per_s": batch * window.requests_per_s,
                    "cpu_ms_per_row": 1000 * used_s / counted_between(before, after)[route].rows,
                    **{name: latency[name] for name in ("p50_ms", "p99_ms")},
                })  # fmt: skip
    return [one for one in windows if one["round"]]


def rendered(spec: CascadeSpec, best: str, repository: Path, folder: Path) -> tuple[Path, dict[str, int]]:
    """A repository with both forms of the cascade and its rivals, and how many instances each rival has."""
    forms = [spec, dataclasses.replace(spec, name=IN_PROCESS, in_process=1)]
    _, report = render_checked(repository, cascades=forms, output=folder)
    if not report:
        raise RepositoryError(f"repository {folder}", got=str(report))
    rivals = {}
    for instances in (core_count(),):
        name = f"{best}_alone_{instances}"
        rivals[name] = instances
        _write_rival(name, folder, repository, best, instances=instances)
    return folder, rivals


def _write_rival(name: str, folder: Path, repository: Path, member: str, *, instances: int) -> None:
    """Triton's own ensemble of the tokenizer and a copy of the member, with nothing behind it."""
    copy = f"{name}_member"
    shutil.copytree(repository / member / "1", folder / copy / "1")
    if not (folder / TOKENIZER).is_dir():
        shutil.copytree(repository / TOKENIZER, folder / TOKENIZER)
    config = config_from_path(repository / member / CONFIG)
    config.name = copy
    config.instance_group[0].count = instances
    tensors = [one.name for one in config.input]
    steps = [
        pb.ModelEnsembling.Step(
            model_name=TOKENIZER,
            model_version=-1,
            input_map={"text": "text"},
            output_map={one: one for one in tensors},
        ),
        pb.ModelEnsembling.Step(
            model_name=copy,
            model_version=-1,
            input_map={one: one for one in tensors},
            output_map={config.output[0].name: config.output[0].name},
        ),
    ]
    ensemble = pb.ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=_MOST,
        input=[pb.ModelInput(name="text", data_type=pb.TYPE_STRING, dims=[1])],
        output=[config.output[0]],
        ensemble_scheduling=pb.ModelEnsembling(step=steps),
    )
    write_all(folder / copy, {CONFIG: text_from_config(config, source="the study")})
    write_all(folder / name, {"1/.gitkeep": b"", CONFIG: text_from_config(ensemble, source="the study")})


def _held(address: str, spec: CascadeSpec, records: Records, rows: npt.NDArray[Any]) -> dict[str, dict[str, int]]:
    """Every row as a request of its own to each cascade: how many answers are other than replay's.

    Raises ServingError where the form in process calls a member of the first stage, as it does where it has to.
    """
    found = {}
    with closing(Statistics(address)) as statistics:
        for name in CASCADES:
            before = statistics.counts()
            answers = asyncio.run(_asked(address, name, rows))
            asked = counted_between(before, statistics.counts())
            # The cascade's own checks of its members are calls, too, of a row each.
            few = len(rows) // 50
            called = [one.name for one in spec.stages[0].members if asked.get(one.name, Counts()).rows > few]
            if name == IN_PROCESS and called:
                got = f"calls of {', '.join(called)}"
                raise ServingError(
                    name, got=got, expected="its first stage in process", fix="read the server's log"
                )
            differing, near = compare_with_replay(spec, records, joined(answers))
            found[name] = {
                "rows": len(rows),
                "in_flight": CHECKED_IN_FLIGHT,
                "differing": differing,
                "near": len(near),
            }
    return found


async def _asked(address: str, model: str, rows: npt.NDArray[Any]) -> list[Any]:
    async with AsyncGrpcClient(address) as client:
        done = await closed_loop(partial(client.infer, model), rows, concurrency=CHECKED_IN_FLIGHT)
    return done.answers


def compared(windows: Sequence[Mapping[str, Any]], batch: int, rivals: Mapping[str, int]) -> dict[str, Any]:
    """The routes under one load, and each cascade over the faster rival: median, and an interval over rounds."""
    measured = [one for one in windows if one["batch"] == batch]
    cascades = [name for name in CASCADES if any(one["route"] == name for one in measured)]
    routes = {}
    for route in (*cascades, *rivals):
        found = [one for one in measured if one["route"] == route]
        names = ("rows_per_s", "cpu_ms_per_row", "p50_ms", "p99_ms")
        routes[route] = {name: float(np.median([one[name] for one in found])) for name in names}
    rival = max(rivals, key=lambda name: routes[name]["rows_per_s"])
    return {
        "routes": routes,
        "rival": rival,
        "times": {
            name: {
                "rows_per_s": times_with_interval(windows, batch, name, rival, "rows_per_s"),
                "less_cpu": times_with_interval(windows, batch, rival, name, "cpu_ms_per_row"),
            }
            for name in cascades
        },
    }


def times_with_interval(
    windows: Sequence[Mapping[str, Any]], batch: int, above: str, below: str, name: str
) -> dict[str, float]:
    """Geometric mean over rounds of a figure of one route over that of another, and its 95 % interval.

    Both windows of a round count as a pair, because what else the machine does changes between rounds.
    """
    values = [
        np.array([one[name] for one in windows if (one["route"], one["batch"]) == (route, batch)])
        for route in (above, below)
    ]
    logs = np.log(values[0] / values[1])
    wide = 0.0
    if len(logs) > 1:
        wide = float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    middle = float(logs.mean())
    return {
        "times": float(np.exp(middle)),
        "low": float(np.exp(middle - wide)),
        "high": float(np.exp(middle + wide)),
    }
