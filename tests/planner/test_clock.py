import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest

from orchestrator.errors import CommitteeError
from orchestrator.planner.candidates import answers_of, orderings_of, table_from_records
from orchestrator.planner.clock import ClockPricing, Load, binomial_shares, clock_for, gathered
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from orchestrator.planner.predict import InProcessStages, ReachedStages, in_process_stages, predict
from orchestrator.planner.pricing import MOST_LOAD
from orchestrator.planner.queueing import queue_stages, woken_stages
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.planner.search import RIGHT, search
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.timing import CallTime, MemberTiming, PausedRequest, TimedMachine, Timing
from tests.planner.builders import every_plan, made_records, pool_of

BATCHES = (1, 2, 4, 8, 16)
# Milliseconds per call: a constant and a part per row. b is dear by the row and cheap alone.
TIMES = {"a": (0.4, 0.01), "b": (0.1, 0.2), "c": (0.5, 0.6)}
FIRST, LATER, DEFERRING = (0.05, 0.002), (0.2, 0.004), (0.1, 0.001)
LOADS = (
    Load(batch=1),
    Load(batch=16),
    Load(batch=8, alone=True),
    Load(rate=100),
    Load(rate=1300),
    Load(rate=2000, servers=2, cores=1),
)


def calls_of(constant: float, slope: float) -> tuple[CallTime, ...]:
    times = [(batch, constant + slope * batch) for batch in BATCHES]
    return tuple(CallTime(batch=batch, ms=ms, low_ms=min(ms, 0), high_ms=99) for batch, ms in times)


def timing_of(times: dict[str, tuple[float, float]] = TIMES, **changes: object) -> Timing:
    made = Timing(
        asked="onnxruntime 1.0",
        machine=TimedMachine(cpu="a processor", cores=4, platform="Linux"),
        members=tuple(MemberTiming(name=name, calls=calls_of(*time)) for name, time in times.items()),
        rounds=1,
        threads=1,
        first_stage=calls_of(*FIRST),
        later_stage=calls_of(*LATER),
        deferring=calls_of(*DEFERRING),
    )
    return dataclasses.replace(made, **changes)


def clocked(records: Records, pricing: ClockPricing) -> CascadeSpec:
    return pool_of(records).with_members(lambda one: dataclasses.replace(one, cost=pricing.ms_alone(one.name)))


def plain_ms(spec: CascadeSpec, reached: list[float], load: Load) -> tuple[float, bool]:
    """Milliseconds per row of a plan, and whether it carries the rate: with loops, from the rules in words."""
    total, busiest, cores, runtime = 0.0, 0.0, 0.0, 0.0
    per_ms = (load.rate or 0) / load.servers / 1000
    for place, (stage, reach) in enumerate(zip(spec.stages, reached, strict=True)):
        own = FIRST if place == 0 else LATER
        for index, member in enumerate(stage.members):
            times = [TIMES[member.name]] + ([own] if index == 0 else [])
            # Where all rows come it is taken for the first stage.
            beside = FIRST if reach == 1 else LATER
            if place and index == 0 and load.batch is not None and not load.alone:
                # Every full batch that defers anything takes time for it; one for each that was deferred is paid.
                size, anything = load.batch, 1 - (1 - reach) ** load.batch
                total += (DEFERRING[0] + DEFERRING[1] * size) * (anything - reach) / size
            for time in times:
                total += mean_ms(time, reach, load, asked=TIMES[member.name], beside=beside)
            best = (
                per_ms * reach * min(sum(TIMES[member.name][i] * (1, b)[i] for i in (0, 1)) / b for b in BATCHES)
            )
            busiest, cores = max(busiest, best), cores + best
        used = per_ms * reach * min((own[0] + own[1] * b) / b for b in BATCHES)
        runtime, cores = runtime + used, cores + used
    return total, max(busiest, runtime, cores / (load.cores or 4)) <= MOST_LOAD


def mean_ms(
    time: tuple[float, float], reach: float, load: Load, *, asked: tuple[float, float], beside: tuple[float, float]
) -> float:
    """Milliseconds per row of all rows, of calls that take `time`; `asked` and `beside` make the stage busy."""
    constant, slope = time
    if reach == 0:
        return 0.0
    if load.rate is not None:
        batch, rate = 1.0, load.rate / load.servers / 1000 * reach
        for _ in range(400):
            came = rate * (asked[0] + beside[0] + (asked[1] + beside[1]) * batch)
            batch = min(max(came + math.exp(-came), 1.0), BATCHES[-1])
        return reach * (constant + slope * batch) / batch
    if not load.alone:
        return reach * (constant / load.batch + slope)
    chances = [
        math.comb(load.batch, many) * reach**many * (1 - reach) ** (load.batch - many)
        for many in range(load.batch + 1)
    ]
    return sum(chance * (constant + slope * many) for many, chance in enumerate(chances) if many) / load.batch


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.text)
def test_the_search_is_exact_by_the_clock(load: Load) -> None:
    pricing = ClockPricing(timing=timing_of(), load=load)
    refused = 0
    for seed in range(4):
        records = made_records(300 + seed, rows=12 + 5 * seed, classes=2 + seed % 3)
        base = clocked(records, pricing)
        table = table_from_records(base, records, pricing=pricing)
        orderings = orderings_of(table.pool, combines=("mean_logit",), scores=("max_prob",), max_stages=4)
        found = search(table, orderings, measures={RIGHT: partial(np.equal, records.labels)}, quantiles=4)
        best: dict[int, float] = {}
        for spec in every_plan(base, records, quantiles=4):
            done = replay(spec, records)
            right = int((done.label == records.labels).sum())
            reached = [float((done.exit_stage >= stage).mean()) for stage in range(len(spec.stages))]
            ms, is_carried = plain_ms(spec, reached, load)
            refused += not is_carried
            if is_carried and ms < best.get(right, math.inf):
                best[right] = ms
        kept = []
        for right, ms in sorted(best.items(), reverse=True):
            if not kept or ms < kept[-1][1] - 1e-9:
                kept.append((right, ms))
        got = [(one.correct, found.mean_cost(one)) for one in found.frontiers[RIGHT]]
        assert got == [(right, pytest.approx(ms, rel=1e-5)) for right, ms in kept], f"seed {seed}"
        for one in found.frontiers[RIGHT]:
            assert answers_of(one, table).mean_cost == pytest.approx(found.mean_cost(one), rel=1e-9)
    assert (refused > 0) == (load.rate in (1300, 2000))


def planned(records: Records, load: Load, goal: Goal, timing: Timing | None = None) -> PlanResult | Infeasible:
    pricing = ClockPricing(timing=timing or timing_of(), load=load)
    options = SearchOptions(pricing=pricing, calibrate=False)
    return plan_from_records(clocked(records, pricing), records, goal, options=options)


def test_a_plan_costs_what_is_predicted_of_it() -> None:
    records = made_records(5, rows=900)
    found = planned(records, Load(batch=8, alone=True), Goal(min_accuracy=0.8, certify=False))
    assert isinstance(found, PlanResult)
    facts = found.spec.fit.extra["timing"]
    assert found.mean_cost == pytest.approx(facts["ms"], rel=1e-6)
    assert found.mean_cost == pytest.approx(replay(found.spec, records).cost.mean(), rel=1e-5)
    assert facts["rows_per_s"] == pytest.approx(1000 / facts["ms"])
    assert sum(stage["load"] for stage in facts["stages"]) == pytest.approx(1)
    assert facts["ms"] <= facts["high_ms"] <= found.spec.worst_cost * (1 + 1e-9)


def test_members_that_only_macs_favour_drop_out_and_one_model_wins_where_it_is_faster() -> None:
    records = made_records(6, rows=900)
    goal = Goal(min_accuracy=0.7, certify=False)
    by_macs = plan_from_records(pool_of(records), records, goal, options=SearchOptions(calibrate=False))
    assert [one.name for one in by_macs.spec.members] != ["c"]
    # Of one row at a time every member takes as long.
    level = timing_of(dict.fromkeys(TIMES, (1.0, 0.001)))
    found = planned(records, Load(batch=1), goal, level)
    assert len(found.spec.stages) == 1
    assert len(found.spec.members) == 1
    assert found.spec.fit.extra["timing"]["alternatives"] == []


def test_plans_of_fewer_stages_stand_beside_a_longer_one() -> None:
    records = made_records(7, rows=2000)
    far_apart = timing_of({"a": (0.1, 0.001), "b": (0.1, 0.05), "c": (0.5, 2.0)})
    load, loose = Load(batch=16), Goal(min_accuracy=0.5, certify=False)
    frontier = planned(records, load, loose, far_apart).frontier
    longest = next(point for point in frontier if len(point.stages) == 3)
    found = planned(records, load, dataclasses.replace(loose, min_accuracy=longest.accuracy), far_apart)
    assert len(found.spec.stages) == 3
    one, two = found.spec.fit.extra["timing"]["alternatives"]
    assert (len(one["stages"]), len(two["stages"])) == (1, 2)
    assert found.mean_cost < two["ms"] < one["ms"]
    low, high = two["difference_ci95"]
    assert low < two["difference"] < high


def test_a_rate_that_no_plan_carries_is_refused_with_the_most() -> None:
    records, goal = made_records(8, rows=900), Goal(min_accuracy=0.75, certify=False)
    found = planned(records, Load(rate=1e6), goal)
    assert isinstance(found, Infeasible)
    most = float(found.unmet.expected.split()[2].rstrip(","))
    carried = planned(records, Load(rate=most * 0.999), goal)
    assert isinstance(carried, PlanResult)
    assert carried.spec.fit.extra["timing"]["busiest"] == pytest.approx(MOST_LOAD, rel=0.01)
    assert carried.spec.fit.extra["timing"]["knee"] == pytest.approx(most, rel=0.01)
    assert isinstance(planned(records, Load(rate=most * 1.001), goal), Infeasible)
    # Twice the servers carry twice as much.
    assert isinstance(planned(records, Load(rate=most * 1.99, servers=2), goal), PlanResult)


def test_batches_grow_with_the_rate_up_to_what_a_member_takes() -> None:
    one = timing_of().by_name["a"]
    sizes = gathered(one, np.array([0.0, 0.1, 1.0, 10.0, 1000.0]), busy=one.ms)
    assert sizes[0] == 1
    assert np.all(np.diff(sizes) > 0)
    assert sizes[-1] == 16


def test_a_row_that_finds_nothing_to_do_waits_for_what_has_to_wake_up() -> None:
    pauses = tuple(PausedRequest(pause_ms=ms, first_ms=ms / 10, later_ms=0.3) for ms in (1, 1000))
    timing = timing_of(pauses=pauses)
    # Of exponential pauses of 10 ms a tenth of each is added; 0.3 ms of any that is much longer than the shortest.
    assert timing.woken_ms(0.1) == pytest.approx((1, 0.3), rel=0.06)
    assert timing_of().woken_ms(0.1) == (0, 0)
    stages = queue_stages((("a",), ("b",)), (1, 0.5), timing)
    asleep, busy = (woken_stages(stages, timing, per_ms=rate) for rate in (1e-6, 100))
    assert [one.ms[1] - other.ms[1] for one, other in zip(asleep, stages, strict=True)] == pytest.approx(
        [100, 0.3], rel=0.01
    )
    assert [one.ms[1] for one in busy] == [one.ms[1] for one in stages]


def test_a_model_that_makes_tensors_is_paid_for_once_by_the_first_stage_that_reads_them() -> None:
    records = made_records(1, rows=50)
    times = {**TIMES, "tokens": (0.2, 0.05)}
    pricing = ClockPricing(timing=timing_of(times), load=Load(batch=16), deriving=(("tokens", frozenset("bc")),))
    without = ClockPricing(timing=timing_of(times), load=Load(batch=16))
    table = table_from_records(clocked(records, pricing), records, pricing=pricing)
    a, b, c = (next(p for p, one in enumerate(table.pool) if one.name == name) for name in "abc")
    each = (0.2 + 0.05 * 16) / 16
    for stages, more in (
        (((a,), (b,), (c,)), (0, each * 40, 0)),
        (((b,), (c,)), (each * 50, 0)),
        (((a,),), (0,)),
        (((a, b), (c,)), (each * 50, 0)),
    ):
        reached = (50, 40, 30)[: len(stages)]
        found = [one.prices(table.pool, 50).totals(stages, reached) for one in (pricing, without)]
        assert found[0] - found[1] == pytest.approx(more, abs=1e-6)
    rates = [dataclasses.replace(one, load=Load(rate=1000)).prices(table.pool, 50) for one in (pricing, without)]
    assert rates[0].load(((b,),), (50,)) >= rates[1].load(((b,),), (50,))
    assert rates[0].load(((a,),), (50,)) == rates[1].load(((a,),), (50,))


def test_rows_wait_for_the_model_that_makes_their_tensors() -> None:
    pool, timing = pool_of(made_records(1)).members, timing_of({**TIMES, "tokens": (5.0, 0.0)})
    where = ReachedStages(pool=pool, stages=((0,), (1,)), reached=(100, 40))
    plain, first, later = (
        predict(where, ClockPricing(timing=timing, load=Load(rate=1), deriving=deriving)).answered_ms
        for deriving in ((), (("tokens", frozenset("a")),), (("tokens", frozenset("b")),))
    )
    assert first - plain == pytest.approx(5, rel=0.02)
    assert later - plain == pytest.approx(5 * 0.4, rel=0.02)


def test_a_later_stage_that_is_rarely_asked_takes_longer() -> None:
    pauses = (PausedRequest(pause_ms=1, first_ms=0, later_ms=0, rare_ms=0.4),)
    pool = pool_of(made_records(1)).members

    def later(load: Load, count: int, **parts: object) -> float:
        prices = ClockPricing(timing=timing_of(**parts), load=load).prices(pool, 1000)
        return float(prices.totals(((0,), (1,)), (1000, count))[1])

    one, batches = Load(batch=1), Load(batch=16, alone=True)
    assert later(one, 10, pauses=pauses) - later(one, 10) == pytest.approx(10 * 0.4)
    # Asked after every request it never pauses.
    assert later(one, 1000, pauses=pauses) == pytest.approx(later(one, 1000))
    calls = (1 - 0.999**16) * 1000 / 16
    assert later(batches, 1, pauses=pauses) - later(batches, 1) == pytest.approx(calls * 0.4, rel=1e-3)


def test_stages_are_proposed_to_run_in_process_where_that_pays() -> None:
    pool = pool_of(made_records(1)).members
    where = ReachedStages(pool=pool, stages=((0,), (1,), (2,)), reached=(100, 40, 10))
    load = Load(batch=16)
    quick, slow = calls_of(0.0, 0.0), calls_of(*LATER)

    def said(**parts: object) -> InProcessStages | None:
        return in_process_stages(where, ClockPricing(timing=timing_of(**parts), load=load))

    assert said() is None, "nothing was measured"
    assert said(first_in_process=calls_of(*FIRST), later_in_process=slow) is None, "nothing is gained"
    first = dict.fromkeys(("first_stage",), calls_of(5.0, 0.0))
    found = said(**first, first_in_process=quick, later_in_process=calls_of(9.0, 0.0))
    assert found is not None
    assert found.stages == 1, "later stages would take longer"
    whole = predict(where, ClockPricing(timing=timing_of(**first), load=load)).ms
    assert found.ms == pytest.approx(whole - 5.0 / 16)
    every = said(**first, first_in_process=quick, later_in_process=quick)
    assert every is not None
    assert every.stages == 3


def test_probabilities_of_binomial_numbers_add_up() -> None:
    found = binomial_shares(5, np.array([0.0, 0.3, 1.0]))
    assert found.sum(axis=1) == pytest.approx([1, 1, 1])
    assert found[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert found[2].tolist() == [0, 0, 0, 0, 0, 1]
    assert found[1, 2] == pytest.approx(10 * 0.3**2 * 0.7**3)


WRONG = {
    "expected one of `batch` and `rate`": lambda: Load(),
    "got `batch` and `rate`": lambda: Load(batch=1, rate=1.0),
    "rate: got nan": lambda: Load(rate=math.nan),
    "batch: got 0": lambda: Load(batch=0),
    "at a rate rows gather": lambda: Load(rate=5.0, alone=True),
    "servers: got no `rate`": lambda: Load(batch=1, cores=3),
    "got batches of 1 to 16, expected batches of 64 too": lambda: made(load=Load(batch=64)),
    "got batches of 8 to any": lambda: made(
        timing_of(
            members=(MemberTiming(name="a", calls=calls_of(1, 1)[3:], max_batch_size=16),),
            first_stage=(),
            later_stage=(),
        ),
        Load(rate=1.0),
    ),
    "none of d": lambda: made(members=("a", "d")),
    "timing of a: got times of a model file with sha256 1111": lambda: made(
        timing_of(members=(MemberTiming(name="a", calls=calls_of(1, 1), sha256="1" * 64),)), hashes={"a": "2" * 64}
    ),
    "MACs and milliseconds do not mix": lambda: made(budget=1e6),
}


def made(
    timing: Timing | None = None,
    load: Load = LOADS[0],
    members: tuple[str, ...] = ("a",),
    hashes: dict[str, str] | None = None,
    budget: float | None = None,
) -> ClockPricing:
    known = hashes or {}
    stages = tuple(Stage(members=(Member(name=name, output="o", sha256=known.get(name)),)) for name in members)
    pool = dataclasses.replace(pool_of(made_records(1)), stages=stages)
    return clock_for(timing or timing_of(), load, pool, budget=budget)


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_planned_with_is_refused_in_one_line(said: str) -> None:
    with pytest.raises(CommitteeError) as caught:
        WRONG[said]()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stages_of_several_members_pay_the_runtime_once() -> None:
    records = made_records(1, rows=50)
    pricing = ClockPricing(timing=timing_of(), load=Load(batch=16))
    table = table_from_records(clocked(records, pricing), records, pricing=pricing)
    names = [member.name for member in table.pool]
    for group in itertools.permutations(range(3), 2):
        ms = float(table.prices.stage(tuple(sorted(group)), 50, asked=())) / table.prices.scale / 50
        each = [TIMES[names[place]] for place in group]
        assert ms == pytest.approx(sum((c + s * 16) / 16 for c, s in (*each, FIRST)), rel=1e-6)
    stages = (Stage(members=pool_of(records).members),)
    assert len(stages[0].members) == 3
