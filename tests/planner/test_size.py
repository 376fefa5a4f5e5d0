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
from orchestrator.spec.derived import Derived
from orchestrator.spec.request import InputSpec
from orchestrator.spec.timing import MemberTiming
from tests.planner.builders import made_records, pool_of
from tests.planner.test_clock import TIMES, calls_of, planned, timing_of


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


def test_a_member_alone_has_no_runtime_and_as_many_instances_as_it_needs(spec: CascadeSpec) -> None:
    stages = member_stage("c", spec, timing_of())
    assert stages[0].ms[8] == pytest.approx(0.5 + 0.6 * 8)
    assert sized("c", stages, Demand(rate=4000, cores=4), one_at_once=False).instances[0] > 1


def with_maker(spec: CascadeSpec) -> CascadeSpec:
    """The plan with a model that makes what all of its members read."""
    raw, made = InputSpec(name="raw", dtype="FP32", dims=(2,)), spec.input
    maker = Derived(name="maker", inputs={"raw": "raw"}, outputs=(made,))
    reading = spec.with_members(lambda one: dataclasses.replace(one, inputs={made.name: made.name}))
    return dataclasses.replace(reading, inputs=(raw,), derived=(maker,))


def test_models_that_make_tensors_are_asked_once_by_the_first_stage_and_by_a_member_alone(
    spec: CascadeSpec,
) -> None:
    timing, made = timing_of({**TIMES, "maker": (0.0, 5.0)}), with_maker(spec)
    own, more = stages_of(spec, timing), stages_of(made, timing)
    assert more[0].ms[4] == pytest.approx(own[0].ms[4] + 20)
    assert [stage.ms[4] for stage in more[1:]] == [stage.ms[4] for stage in own[1:]]
    assert member_stage("c", made, timing)[0].ms[4] == pytest.approx(0.5 + 0.6 * 4 + 20)
    demand = Demand(rate=1000, cores=2)
    plain, whole = (sized("c", stages, demand, one_at_once=True).servers for stages in (own, more))
    assert whole > plain


def test_stages_in_process_cost_what_the_runtime_adds_there(spec: CascadeSpec) -> None:
    timing = timing_of(first_in_process=calls_of(0.01, 0.0), later_in_process=calls_of(0.02, 0.0))
    found = [stages_of(dataclasses.replace(spec, in_process=count), timing) for count in (0, 1, 2)]
    first, later = (calls[3].ms for calls in (timing.first_stage, timing.later_stage))
    assert found[0][0].ms[8] - found[1][0].ms[8] == pytest.approx(first - 0.01)
    assert found[0][1].ms[8] == found[1][1].ms[8]
    assert found[1][1].ms[8] - found[2][1].ms[8] == pytest.approx(later - 0.02)


@pytest.mark.filterwarnings("error")
def test_a_runtime_that_takes_all_of_a_stage_leaves_some_of_its_load(spec: CascadeSpec) -> None:
    stages = stages_of(spec, timing_of(first_stage=calls_of(-50.0, 0.0), later_stage=calls_of(-50.0, 0.0)))
    own = stages_of(spec, timing_of(first_stage=(), later_stage=()))
    for stage, plain in zip(stages, own, strict=True):
        assert stage.load(1.0) == pytest.approx(0.1 * plain.load(1.0))
    assert sized("c", stages, Demand(rate=400, cores=2), one_at_once=True).servers == 1


FROM_8 = tuple(MemberTiming(name=name, calls=calls_of(1, 1)[3:]) for name in "abc")
WRONG = {
    "rate: got -1": lambda spec: Demand(rate=-1.0, cores=1),
    "peak: got 0.5": lambda spec: Demand(rate=1.0, peak=0.5, cores=1),
    "p99_ms: got nan": lambda spec: Demand(rate=1.0, p99_ms=math.nan, cores=1),
    "rate: got 1e+300": lambda spec: Demand(rate=1e300, cores=1),
    "cores: got 0": lambda spec: Demand(rate=1.0, cores=0),
    "got batches of 8 to 16, expected batches of 1 too": lambda spec: stages_of(spec, timing_of(members=FROM_8)),
    "got batches of 8 to 16, expected batches of 1": lambda spec: member_stage(
        "c", spec, timing_of(members=FROM_8)
    ),
    "none of maker": lambda spec: stages_of(with_maker(spec), timing_of()),
    "none of c": lambda spec: stages_of(spec, timing_of({"a": (1, 1), "b": (1, 1)})),
    "no exit shares": lambda spec: stages_of(pool_of(made_records(1)), timing_of()),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_sized_is_refused_in_one_line(said: str, spec: CascadeSpec) -> None:
    with pytest.raises(CommitteeError) as caught:
        WRONG[said](spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
