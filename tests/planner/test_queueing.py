import math

import numpy as np
import pytest

from orchestrator.planner.queueing import QueueStage, server_state


def stage(
    constant: float, slope: float, *, reach: float = 1.0, largest: int = 24, instances: int = 1
) -> QueueStage:
    ms = constant + slope * np.arange(largest + 1.0)
    return QueueStage(ms=np.append(0.0, ms[1:]), reach=reach, instances=instances)


THREE = (stage(0.5, 0.05), stage(0.8, 0.2, reach=0.4), stage(1.0, 0.9, reach=0.15))
SERVERS = {
    "one stage": ((stage(1.0, 0.1),), 1),
    "small batches": ((stage(1.0, 0.5, largest=8),), 1),
    "three stages, three cores": (THREE, 3),
    "three stages, two cores": (THREE, 2),
    "three stages, one core": (THREE, 1),
    "several instances": ((THREE[0], stage(1.0, 0.9, reach=0.5, instances=4)), 8),
    "more instances than cores": ((THREE[0], stage(1.0, 0.9, reach=0.5, instances=4)), 3),
}


def most_per_ms(stages: tuple[QueueStage, ...], cores: int) -> float:
    return min(*(one.instances / one.load(1.0) for one in stages), cores / sum(one.load(1.0) for one in stages))


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    ("load", "rows"),
    [
        (0.3, 6000),
        # A p99 near full load needs many rows to be known.
        pytest.param(0.8, 30_000, marks=pytest.mark.slow),
    ],
)
def test_the_model_is_near_a_simulation_of_the_scheduler(name: str, load: float, rows: int) -> None:
    pytest.importorskip("simpy", reason="comes with the extra `perf`")
    from perf.studies.scaling.simulation import simulated  # needs simpy

    stages, cores = SERVERS[name]
    per_ms = load * most_per_ms(stages, cores)
    said = server_state(stages, per_ms=per_ms, cores=cores)
    seen = simulated(stages, per_ms=per_ms, cores=cores, rows=rows, seed=1)
    assert seen.per_ms == pytest.approx(per_ms, rel=0.15)
    assert said.p99_ms == pytest.approx(seen.quantile(0.99), rel=0.25)


def test_an_idle_server_takes_the_time_of_its_stages() -> None:
    found = server_state(THREE, per_ms=1e-6, cores=1)
    assert found.p50_ms == pytest.approx(0.55, rel=0.05)
    # All but 15 % of the rows are answered before the last stage.
    assert found.p99_ms == pytest.approx(0.55 + 1.0 + 1.9, rel=0.05)
    assert found.batches == pytest.approx((1, 1, 1), abs=1e-3)


def test_more_than_can_be_carried_takes_for_ever() -> None:
    most = most_per_ms(THREE, 3)
    assert math.isinf(server_state(THREE, per_ms=1.001 * most, cores=3).p99_ms)
    times = [server_state(THREE, per_ms=load * most, cores=3).p99_ms for load in (0.2, 0.5, 0.8, 0.95)]
    assert times == sorted(times)
    assert math.isfinite(times[-1])


def test_fewer_cores_are_slower() -> None:
    most = most_per_ms(THREE, 1)
    one, two, three = (server_state(THREE, per_ms=0.7 * most, cores=cores).p99_ms for cores in (1, 2, 3))
    assert one > two > three
