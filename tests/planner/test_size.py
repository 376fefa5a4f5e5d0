import dataclasses
import math

import pytest

from orchestrator.errors import CommitteeError
from orchestrator.planner.clock import Load
from orchestrator.planner.goal import Goal
from orchestrator.planner.plan import PlanResult
from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.planner.size import Demand, member_stage, sized, stages_of
from orchestrator.spec import CascadeSpec
from tests.planner.builders import made_records, pool_of
from tests.planner.test_clock import planned, timing_of


@pytest.fixture(scope="module")
def spec() -> CascadeSpec:
    found = planned(made_records(7, rows=900), Load(batch=8), Goal(reference="c", epsilon=0.01, certify=False))
    assert isinstance(found, PlanResult)
    assert len(found.spec.stages) > 1
    return found.spec


def test_servers_grow_with_the_peak_and_never_carry_too_much(spec: CascadeSpec) -> None:
    stages = stages_of(spec, timing_of())
    found = [
        sized("c", stages, Demand(rate=rate, peak=2, cores=2, price=3.6), one_at_once=True)
        for rate in (10.0, 2000.0, 20000.0)
    ]
    assert found[0].servers == 1
    assert found[1].servers < found[2].servers
    assert all(one.load <= MOST_LOAD + 1e-9 for one in found)
    assert found[2].cost_per_million == pytest.approx(found[2].servers * 3.6 / 3600 / 20000 * 1e6)
    assert found[0].instances[0] == 1


def test_a_p99_costs_servers_up_to_what_an_idle_one_takes(spec: CascadeSpec) -> None:
    stages, demand = stages_of(spec, timing_of()), Demand(rate=5000, cores=2)
    free = sized("c", stages, demand, one_at_once=True)
    quick = sized("c", stages, dataclasses.replace(demand, p99_ms=0.7 * free.p99_ms), one_at_once=True)
    assert quick.servers > free.servers
    assert quick.p99_ms <= 0.7 * free.p99_ms
    with pytest.raises(CommitteeError, match="an idle server"):
        sized("c", stages, dataclasses.replace(demand, p99_ms=0.1), one_at_once=True)


def test_more_deferred_rows_reach_all_later_stages(spec: CascadeSpec) -> None:
    own, more = (stages_of(spec, timing_of(), more=points) for points in (0.0, 0.1))
    assert more[0].reach == own[0].reach == 1
    assert more[1].reach == pytest.approx(own[1].reach + 0.1)
    for one, other in zip(own[2:], more[2:], strict=True):
        assert other.reach / one.reach == pytest.approx(more[1].reach / own[1].reach)


def test_a_member_alone_has_no_runtime_and_as_many_instances_as_it_needs() -> None:
    stages = member_stage("c", timing_of())
    assert stages[0].ms[8] == pytest.approx(0.5 + 0.6 * 8)
    assert sized("c", stages, Demand(rate=4000, cores=4), one_at_once=False).instances[0] > 1


WRONG = {
    "rate: got -1": lambda spec: Demand(rate=-1.0, cores=1),
    "peak: got 0.5": lambda spec: Demand(rate=1.0, peak=0.5, cores=1),
    "p99_ms: got nan": lambda spec: Demand(rate=1.0, p99_ms=math.nan, cores=1),
    "none of c": lambda spec: stages_of(spec, timing_of({"a": (1, 1), "b": (1, 1)})),
    "no exit shares": lambda spec: stages_of(pool_of(made_records(1)), timing_of()),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_sized_is_refused_in_one_line(said: str, spec: CascadeSpec) -> None:
    with pytest.raises(CommitteeError) as caught:
        WRONG[said](spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
