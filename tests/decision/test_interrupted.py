"""An error of ours at any line of an event leaves its rows no slot, and every count right."""

from contextlib import suppress

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import CascadeRun, Policy
from orchestrator.decision import run as module
from orchestrator.decision.run import ASKED, DROPPED, FREE, WAITING
from tests.decision.test_run import SURE, THREE, UNSURE, arrive, logits
from tests.interrupted import InterruptedCallError, Interruption

# More lines than all events below have together.
MOST_STEPS = 500


def events(run: CascadeRun, interruption: Interruption) -> None:
    """Rows of four requests in every state, some of which leave by every event; goes on after an error."""

    def call(name: str, *arguments: object) -> object:
        # An event that failed is over; its caller goes on with the next one.
        with suppress(InterruptedCallError), interruption.active():
            return getattr(run, name)(*arguments)
        return None

    for token in range(4):
        policy = Policy(deadline_us=1 if token == 2 else None)
        call("admit", arrive(3, policy, token=token), [logits(UNSURE, SURE, UNSURE)])
    for said in (UNSURE, SURE):
        slots = call("next", 1, 2)
        if slots is not None and len(slots):
            call("feed", slots, [logits(*[said] * len(slots))])
    in_flight = call("next", 1, 1)
    call("expire", 10_000)
    call("drop", np.array([1, 3]))
    if in_flight is not None and len(in_flight):
        call("abandon", in_flight)


def check_counts(run: CascadeRun) -> None:
    states = run._state
    assert run.rows_in_table == int((states != FREE).sum())
    assert sorted(run._free.tolist()) == np.flatnonzero(states == FREE).tolist()
    for stage in range(1, 3):
        assert run.waiting(stage) == int(((states == WAITING) & (run._stage == stage)).sum())


@given(st.integers(0, MOST_STEPS))
def test_after_an_error_at_any_line_counts_are_right_and_no_slot_is_lost(step: int) -> None:
    run = CascadeRun(THREE, capacity_rows=2)
    interruption = Interruption(step, (module,))
    events(run, interruption)
    assert interruption.steps < MOST_STEPS
    check_counts(run)
    # Whatever is left belongs to a request or to members that still run, so that both can be let go.
    run.drop(np.arange(4))
    assert set(run._state.tolist()) <= {FREE, DROPPED}
    run.abandon(np.flatnonzero(run._state == DROPPED))
    assert (run.rows_in_table, run.waiting(1), run.waiting(2)) == (0, 0, 0)
    outcome = run.admit(arrive(2, token=9), [logits(SURE, UNSURE)])
    assert (len(outcome.answers), run.rows_in_table) == (1, 1)
    slots = run.next(1, 9)
    assert (run._state[slots] == ASKED).all()
    assert run.feed(slots, [logits(SURE)]).answers.label.tolist() == [0]
    check_counts(run)


def test_rows_whose_times_are_beyond_64_bits_keep_no_slot() -> None:
    run = CascadeRun(THREE)
    for token in range(3):
        arrivals = arrive(1, token=token)
        arrivals.due_ns = np.array([10**23], object)
        with suppress(OverflowError):
            run.admit(arrivals, [logits(UNSURE)])
    assert (run.rows_in_table, run.waiting(1)) == (0, 0)
