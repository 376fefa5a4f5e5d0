"""Gears: which gear decides a row, when the gear shifts, and what is said of it."""

import dataclasses
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bls.gears import Gearbox
from orchestrator.decision import CascadeRun, Policy, arrivals_from_policies
from orchestrator.errors import SpecError
from orchestrator.spec import CascadeSpec, Gear, Gears, cascade_from_json, json_from_cascade
from orchestrator.spec.answer import ABSTAINED, GEARED
from tests.bls.fixtures import EASY, HARD, ask_all, asking, eventually, large, loaded, two_stages, usual

MS = 1_000_000
GEARS = Gears(
    cheaper=(Gear(thresholds=(0.5,), mean_cost=4.0), Gear(thresholds=(0.0,), mean_cost=1.0)),
    raise_wait_us=50_000,
    lower_wait_us=10_000,
    raise_after_us=100_000,
    lower_after_us=1_000_000,
)


def geared(**changes: object) -> CascadeSpec:
    return two_stages(gears=dataclasses.replace(GEARS, **changes))


def admit(spec: CascadeSpec, rows: np.ndarray, *, gear: int, policy: Policy | None = None):
    arrivals = arrivals_from_policies(
        [0], [len(rows)], policies=[policy or Policy()], now_ns=[0], default_deadline_us=1000, gear=gear
    )
    return CascadeRun(spec).admit(arrivals, [rows])


def logits(top: float) -> np.ndarray:
    """One row whose most likely of three classes has that probability."""
    return np.log(np.array([[top, (1 - top) / 2, (1 - top) / 2]], np.float32))


@pytest.mark.parametrize(
    ("top", "statuses"), [(0.7, [[], [GEARED], [GEARED]]), (0.95, [[0]] * 3)], ids=["passed_on", "sure"]
)
def test_a_row_the_plan_would_pass_on_exits_in_a_cheaper_gear_and_says_so(top: float, statuses: list) -> None:
    assert [admit(geared(), logits(top), gear=gear).answers.status.tolist() for gear in range(3)] == statuses


@pytest.mark.parametrize(
    ("top", "gear", "policy", "exits"),
    [(0.7, 2, Policy(gear=0), 0), (0.7, 0, Policy(gear=1), 1), (0.99, 2, Policy(min_stage=1), 0)],
)
def test_what_a_request_asks_for_holds_in_every_gear(top: float, gear: int, policy: Policy, exits: int) -> None:
    assert len(admit(geared(), logits(top), gear=gear, policy=policy).answers) == exits


def test_gears_survive_the_file_and_a_plan_without_them_does_not_mention_them() -> None:
    assert cascade_from_json(json_from_cascade(geared())) == geared()
    assert '"gears"' not in json_from_cascade(two_stages())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gears(cheaper=()), "at least one"),
        (lambda: dataclasses.replace(GEARS, lower_wait_us=50_000), "less than raise_wait_us"),
        (lambda: dataclasses.replace(GEARS, cheaper=GEARS.cheaper[::-1]), "each below the one before"),
        (lambda: Gear(thresholds=(float("nan"),), mean_cost=1.0), "1000, or null"),
        (lambda: two_stages(gears=Gears(cheaper=(Gear(thresholds=(), mean_cost=1.0),))), "expected 1"),
    ],
)
def test_gears_that_make_no_sense_are_refused(make, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make()


def test_the_gear_shifts_only_after_the_wait_has_lasted_and_comes_back_slower() -> None:
    box = Gearbox(GEARS)
    assert [box.observe_wait(60 * MS, t * MS) for t in (0, 50, 99)] == [0, 0, 0]
    assert box.observe_wait(60 * MS, 100 * MS) == 1
    # The next step needs its own hundred milliseconds.
    assert [box.observe_wait(60 * MS, t * MS) for t in (150, 199)] == [0, 0]
    assert box.observe_wait(60 * MS, 200 * MS) == 1
    assert box.observe_wait(60 * MS, 900 * MS) == 0, "there is no cheaper one"
    assert [box.observe_wait(5 * MS, t * MS) for t in (1000, 1999)] == [0, 0]
    assert box.observe_wait(5 * MS, 2000 * MS) == -1
    assert box.observe_wait(5 * MS, 2500 * MS) == 0
    assert box.observe_wait(5 * MS, 3000 * MS) == -1
    assert box.gear == 0


def test_a_break_starts_the_time_again_and_between_the_limits_nothing_moves() -> None:
    box = Gearbox(GEARS)
    box.observe_wait(60 * MS, 0)
    box.observe_wait(20 * MS, 90 * MS)
    assert box.observe_wait(60 * MS, 100 * MS) == 0
    assert box.observe_wait(60 * MS, 200 * MS) == 1
    assert all(box.observe_wait(30 * MS, t * MS) == 0 for t in range(300, 9000, 100))
    assert box.gear == 1


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2000)), max_size=60))
def test_gears_stay_in_range_move_one_at_a_time_and_never_twice_within_their_time(
    felt: list[tuple[int, int]],
) -> None:
    box, now_ms, shifts = Gearbox(GEARS), 0, []
    for wait_ms, pause_ms in felt:
        now_ms += pause_ms
        before = box.gear
        step = box.observe_wait(wait_ms * MS, now_ms * MS)
        assert box.gear == before + step
        assert 0 <= box.gear <= 2
        if step:
            shifts.append((now_ms, step))
    for (early, _), (late, step) in pairwise(shifts):
        assert late - early >= (100 if step > 0 else 1000)


def test_a_plan_without_gears_has_none_to_name() -> None:
    assert Gearbox(None).observe_wait(10**12, 0) == 0


def test_a_queue_that_stands_shifts_the_served_gear_and_an_empty_one_brings_it_back(tmp_path: Path) -> None:
    free = threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        free.wait(10)
        return large(rows)

    fake = usual(large=slow)
    spec = geared(raise_wait_us=2_000, lower_wait_us=1_000, raise_after_us=0, lower_after_us=0)
    one = np.concatenate([np.log(np.array([0.7, 0.2, 0.1])), HARD[3:]]).astype(np.float32)
    with loaded(tmp_path, fake, spec) as model:
        # They name gear 0, so that all of them wait although the first few may shift it.
        waiting = [asking(one, gear=0) for _ in range(12)]
        for request in waiting:
            assert model.execute([request]) is None
        threading.Event().wait(0.02)
        free.set()
        for request in waiting:
            assert request.sender.done.wait(10)
        shifted = model._scheduler._gearbox.gear
        assert shifted > 0
        model._metrics.drain()
        # Nothing waits any more: the next rows find the plan's own thresholds again, a step per look.
        for _ in range(shifted):
            (answer,) = ask_all(model, [asking(one)])
        assert answer.column("exit_stage").tolist() == [[1]]
        assert model._scheduler.gear == 0
        model._flusher.flush()
        assert fake.metrics[("committee_gear", (("model", "cascade"),))].value == 0.0


def test_the_gear_and_its_shifts_are_metrics(tmp_path: Path) -> None:
    fake = usual()
    with loaded(tmp_path, fake, geared()) as model:
        model._metrics.shifted(1, 1)
        model._flusher.flush()
        key = (("direction", "cheaper"), ("model", "cascade"))
        assert fake.metrics[("committee_gear_shifts_total", key)].value == 1
        assert fake.metrics[("committee_gear", (("model", "cascade"),))].value == 1.0


def test_a_queue_that_stands_in_front_shifts_although_no_deferred_row_waits() -> None:
    box = Gearbox(GEARS)
    assert sum(box.batch_started(is_backlogged=True, now_ns=at * MS) for at in range(0, 400, 10)) == 2
    # Deferred rows that are taken at once do not hide the queue in front.
    assert box.observe_wait(0, 5000 * MS) == 0
    # A batch with room ends it.
    assert box.batch_started(is_backlogged=False, now_ns=5001 * MS) == 0
    box.observe_wait(0, 5002 * MS)
    assert box.observe_wait(0, 6100 * MS) == -1


def test_a_queue_that_begins_to_stand_does_not_hide_deferred_rows_that_wait() -> None:
    box = Gearbox(GEARS)
    assert box.observe_wait(60 * MS, 0) == 0
    assert box.batch_started(is_backlogged=True, now_ns=90 * MS) == 0
    assert box.observe_wait(60 * MS, 100 * MS) == 1


NOBODY = np.zeros(0, np.int64)


def at_ms(time_ms: int) -> np.ndarray:
    return np.array([time_ms * MS])


def shifts_of(box: Gearbox, times_ms: range, *, slow_every_ms: int | None) -> int:
    """Stage 1 takes its row a millisecond after it came, every 10 ms; stage 2 at its own pace, or never."""
    shifts, second_ms = 0, 0
    for at in times_ms:
        if slow_every_ms is not None and at % slow_every_ms == 0:
            shifts += box.taken(at_ms(second_ms), stage=2, waiting_ns=NOBODY, now_ns=at * MS)
            second_ms = at
        shifts += box.taken(at_ms(at), stage=1, waiting_ns=at_ms(second_ms), now_ns=(at + 1) * MS)
    return shifts


# At 90 ms a row at stage 2 waits over the limit for less than the time a shift asks for, and is then taken.
@pytest.mark.parametrize("slow_every_ms", [90, 200, None])
def test_a_quick_stage_does_not_hide_rows_that_wait_longer_than_its_own(slow_every_ms: int | None) -> None:
    box = Gearbox(GEARS)
    assert shifts_of(box, range(0, 1000, 10), slow_every_ms=slow_every_ms) == 2


def test_a_stage_that_was_asked_long_ago_has_no_say() -> None:
    box = Gearbox(GEARS)
    shifts_of(box, range(0, 1000, 10), slow_every_ms=200)
    for at in range(2000, 5000, 10):
        box.taken(at_ms(at), stage=1, waiting_ns=NOBODY, now_ns=(at + 1) * MS)
    assert box.gear == 0


def test_a_quiet_server_takes_a_step_back_at_a_time_and_one_at_work_none() -> None:
    box = Gearbox(GEARS)
    assert sum(box.batch_started(is_backlogged=True, now_ns=at * MS) for at in range(0, 400, 10)) == 2
    # The last batch is still at stage 0, however long that takes.
    assert [box.quiet(at * MS) for at in (1000, 60_000)] == [0, 0]
    box.batch_finished(61_000 * MS)
    assert [box.quiet(at * MS) for at in (61_999, 62_000, 62_500, 63_000, 99_000)] == [0, -1, 0, -1, 0]
    assert box.gear == 0
    # The queue of then stands no more.
    assert box.observe_wait(0, 99_001 * MS) == 0


def test_the_gear_of_a_burst_comes_back_although_nobody_asks_again(tmp_path: Path) -> None:
    fake = usual()
    with loaded(tmp_path, fake, geared(raise_wait_us=1, lower_wait_us=0, raise_after_us=0)) as model:
        for _ in range(4):
            model.execute([asking(EASY) for _ in range(model.spec.limits.max_batch_size)])
        assert model._scheduler._gearbox.gear > 0
        eventually(lambda: not model._scheduler._gearbox.gear, timeout_s=20)
        model._flusher.flush()
        assert fake.metrics[("committee_gear", (("model", "cascade"),))].value == 0.0


def test_a_hopeless_row_abstains_in_every_gear() -> None:
    stages = two_stages().stages
    spec = geared()
    spec = dataclasses.replace(spec, stages=(dataclasses.replace(stages[0], low=0.45), *stages[1:]))
    for gear in range(3):
        outcome = admit(spec, logits(0.4), gear=gear)
        assert outcome.answers.status.tolist() == [ABSTAINED]
        fast = CascadeRun(spec).fast_path
        assert fast.early_exit(fast.stage0(1, [logits(0.4)]), gear).exits.tolist() == [True]


def test_a_queue_that_stands_now_and_then_does_not_shift() -> None:
    box = Gearbox(GEARS)
    assert not any(box.batch_started(is_backlogged=at % 40 != 0, now_ns=at * MS) for at in range(0, 4000, 10))


def test_a_queue_in_front_of_the_cascade_shifts_to_a_cheaper_gear(tmp_path: Path) -> None:
    spec = geared(raise_wait_us=1, lower_wait_us=0, raise_after_us=0)
    with loaded(tmp_path, usual(), spec) as model:

        def send(requests: int) -> int:
            # All leave at stage 0, so no deferred row waits.
            model.execute([asking(EASY) for _ in range(requests)])
            return model._scheduler.gear

        assert [send(spec.limits.max_batch_size - 1) for _ in range(3)] == [0, 0, 0]
        assert [send(spec.limits.max_batch_size) for _ in range(3)][-1] > 0
