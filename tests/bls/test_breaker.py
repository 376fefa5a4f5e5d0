"""A member that fails most of its calls is left alone, and asked again as soon as a probe of it is answered."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bls import breaker as breaker_module
from orchestrator.bls.breaker import (
    BREAKER_STATES,
    BREAKER_TRANSITIONS,
    CLOSED,
    FAILED_SHARE,
    LEAST_CALLS,
    OPEN,
    WINDOW_S,
    Breaker,
    Opening,
)
from orchestrator.spec import CascadeSpec, FusedPrefix, Member, Stage
from orchestrator.spec.answer import DEGRADED
from tests.bls.fixtures import (
    EASY,
    HARD,
    K,
    ask_all,
    asking,
    eventually,
    large,
    loaded,
    small,
    two_stages,
    usual,
)
from tests.fakes.triton import FakeTriton, InferenceResponse, MemberFunction, TritonError

EDGES = {(event, *move) for event, moves in BREAKER_TRANSITIONS.items() for move in moves.items()}


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_S", 0.1)


class Failing:
    """A member that fails while it is told to; a row of minus one is always refused."""

    def __init__(self, member: MemberFunction, *, text: str = "out of memory") -> None:
        self.member, self.text, self.is_down, self.calls = member, text, True, 0

    def __call__(self, rows: np.ndarray) -> Any:
        self.calls += 1
        if self.is_down or (rows == -1).any():
            raise RuntimeError(self.text)
        return self.member(rows)


def lenient(stage: int) -> CascadeSpec:
    stages = list(two_stages().stages)
    stages[stage] = dataclasses.replace(stages[stage], on_failure="answer")
    return two_stages(stages=tuple(stages))


def state_of(fake: FakeTriton, model: Any, **labels: str) -> float:
    model._flusher.flush()
    return fake.total("committee_breaker_state", **labels)


def ask_often(model: Any, row: np.ndarray, times: int = LEAST_CALLS) -> list[InferenceResponse]:
    return [ask_all(model, [asking(row)])[0] for _ in range(times)]


@given(st.lists(st.tuples(st.floats(0, 4), st.booleans()), max_size=60))
def test_it_trips_as_the_counts_of_the_window_have_it(calls: list[tuple[float, bool]]) -> None:
    breaker, now_s, seen = Breaker(), 0.0, []
    for wait_s, is_failed in calls:
        now_s += wait_s
        seen.append((now_s, is_failed))
        inside = [failed for at_s, failed in seen if at_s > now_s - WINDOW_S]
        expected = is_failed and len(inside) >= LEAST_CALLS and sum(inside) >= FAILED_SHARE * len(inside)
        assert breaker.note(is_failed=is_failed, now_s=now_s) == expected


@pytest.mark.parametrize("event", BREAKER_TRANSITIONS)
@pytest.mark.parametrize("state", range(len(BREAKER_STATES)), ids=BREAKER_STATES)
def test_no_state_changes_but_as_the_table_has_it(event: str, state: int) -> None:
    breaker = Breaker()
    breaker.state = state
    if state in BREAKER_TRANSITIONS[event]:
        breaker.move(event)
        assert breaker.state == BREAKER_TRANSITIONS[event][state]
    else:
        with pytest.raises(KeyError):
            breaker.move(event)


def test_the_drawing_of_the_states_is_the_one_of_the_table() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    begin, end = "<!-- breaker states: begin -->\n", "<!-- breaker states: end -->"
    moves = "".join(
        f"    {BREAKER_STATES[before]} --> {BREAKER_STATES[after]}: {event}\n"
        for event, table in BREAKER_TRANSITIONS.items()
        for before, after in table.items()
    )
    drawing = f"```mermaid\nstateDiagram-v2\n    [*] --> {BREAKER_STATES[CLOSED]}\n{moves}```\n"
    assert text[text.index(begin) + len(begin) : text.index(end)] == drawing, f"put this there:\n{drawing}"


def test_after_a_good_probe_the_window_is_empty() -> None:
    breaker = Breaker()
    assert any(breaker.note(is_failed=True, now_s=0.0) for _ in range(LEAST_CALLS))
    breaker.move("trip")
    assert not breaker.note(is_failed=True, now_s=0.0), "calls that began before it opened say nothing new"
    breaker.move("probe")
    breaker.probed(is_failed=False)
    assert (breaker.state, breaker.counts) == (CLOSED, (0, 0))


def test_every_transition_happens_when_a_member_breaks_and_is_whole_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, move = set(), Breaker.move

    def watched(self: Breaker, event: str) -> None:
        before = self.state
        move(self, event)
        seen.add((event, before, self.state))

    monkeypatch.setattr(Breaker, "move", watched)
    broken = Failing(large)
    with loaded(tmp_path, usual(large=broken)) as model:
        ask_often(model, HARD)
        eventually(lambda: ("fail", 2, OPEN) in seen)
        broken.is_down = False
        eventually(lambda: ("recover", 2, CLOSED) in seen)
    assert seen == EDGES


def test_while_it_is_open_rows_are_refused_without_a_call_and_afterwards_answered(tmp_path: Path) -> None:
    broken = Failing(large)
    with loaded(tmp_path, fake := usual(large=broken)) as model:
        ask_often(model, HARD)
        assert state_of(fake, model, stage="1", member="large") == OPEN
        calls = broken.calls
        refused = ask_all(model, [asking(HARD), asking(EASY)])
        assert broken.calls <= calls + 1, "a probe at most"
        error = refused[0].error()
        assert error is not None
        assert error.code() == TritonError.UNAVAILABLE
        assert error.message().startswith(
            "stage 1 member large: not asked, most of its calls fail: out of memory; "
        )
        assert "probed next" in error.message()
        assert not refused[1].has_error(), "rows that do not need the member are answered"
        broken.is_down = False
        eventually(lambda: state_of(fake, model, stage="1") == CLOSED)
        (fine,) = ask_all(model, [asking(HARD)])
        assert fine.column("label")[0, 0] == 2
        assert model._scheduler._run.rows_in_table == 0
    lines = [line for line in fake.log if "breaker" in line]
    assert len(lines) == 2, "a line per change"
    said = "breaker open: 10 of 10 calls in 10 s failed, the last with: out of memory"
    assert lines[0] == f"committee: stage 1 member large: {said}"
    assert lines[1].startswith("committee: stage 1 member large: breaker closed after ")
    assert fake.total("committee_breaker_opened_total", stage="1") == 1


def test_with_answer_the_stages_before_answer_with_the_degraded_bit_and_no_call_is_wasted(tmp_path: Path) -> None:
    broken = Failing(large)
    with loaded(tmp_path, usual(large=broken), lenient(1)) as model:
        ask_often(model, HARD)
        calls = broken.calls
        answers = ask_often(model, HARD, 5)
        assert broken.calls <= calls + 5
    for answer in answers:
        assert (answer.column("status")[0, 0], answer.column("exit_stage")[0, 0]) == (DEGRADED, 0)


@pytest.mark.parametrize("on_failure", ["error", "answer"])
def test_of_two_members_the_one_that_is_whole_is_asked_where_the_plan_says_answer(
    tmp_path: Path, on_failure: str
) -> None:
    members = tuple(Member(name=name, output="logits", cost=1.0, max_batch_size=4) for name in ("large", "other"))
    last = Stage(members=members, on_failure=on_failure)
    spec = two_stages(stages=(two_stages().stages[0], last), combine="mean_logit")
    whole, broken = Failing(large), Failing(large)
    whole.is_down = False
    with loaded(tmp_path, usual(large=whole, other=broken), spec) as model:
        ask_often(model, HARD)
        calls = whole.calls
        (answer,) = ask_all(model, [asking(HARD)])
    if on_failure == "answer":
        assert whole.calls == calls + 1
        assert (answer.column("status")[0, 0], answer.column("label")[0, 0]) == (DEGRADED, 2)
    else:
        assert whole.calls == calls
        assert answer.error().message().startswith("stage 1 member other: not asked")


def test_where_stage_0_is_open_everything_is_refused_at_once(tmp_path: Path) -> None:
    broken = Failing(small)
    with loaded(tmp_path, usual(small=broken)) as model:
        ask_often(model, EASY)
        calls = broken.calls
        refused = ask_all(model, [asking(EASY), asking(HARD), asking(EASY, HARD)])
        assert broken.calls <= calls + 1
    assert all(one.error().code() == TritonError.UNAVAILABLE for one in refused)
    assert all(one.error().message().startswith("stage 0 member small: not asked") for one in refused)


@pytest.mark.parametrize("has_answered", [True, False])
def test_rows_that_a_member_cannot_take_do_not_open_it_for_others(tmp_path: Path, has_answered: bool) -> None:
    member = Failing(large)
    member.is_down = False
    bad = np.where(np.arange(2 * K) < K, HARD, -1).astype(np.float32)
    with loaded(tmp_path, fake := usual(large=member)) as model:
        if has_answered:  # else it is asked about a plain row
            ask_often(model, HARD, 1)
        refused = ask_often(model, bad, 3 * LEAST_CALLS)
        assert state_of(fake, model) == CLOSED
        (fine,) = ask_all(model, [asking(HARD)])
    assert all(one.error().message() == "stage 1 member large: out of memory" for one in refused)
    assert {one.error().code() for one in refused} == {TritonError.INVALID_ARG}
    assert not fine.has_error()


def test_where_nothing_was_ever_answered_a_newer_row_takes_the_place_of_a_bad_one_in_probes(
    tmp_path: Path,
) -> None:
    def not_zeros(rows: np.ndarray) -> np.ndarray:
        assert rows.any(axis=1).all(), "a plain row"
        return large(rows)

    member = Failing(not_zeros)
    member.is_down = False
    bad = np.where(np.arange(2 * K) < K, HARD, -1).astype(np.float32)
    with loaded(tmp_path, fake := usual(large=member)) as model:
        ask_often(model, bad)
        assert state_of(fake, model) != CLOSED
        ask_all(model, [asking(HARD)])
        eventually(lambda: state_of(fake, model) == CLOSED)


def test_a_fused_prefix_that_fails_is_not_asked_any_more_and_its_members_answer(tmp_path: Path) -> None:
    def both(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"small": small(rows), "large": large(rows)}

    prefix = Failing(both)
    spec = two_stages(fused_prefix=FusedPrefix(name="prefix", stages=2, max_batch_size=16))
    with loaded(tmp_path, fake := usual(prefix=prefix), spec) as model:
        model._watch.may_ask_prefix = lambda: True
        model._calls.may_ask_prefix = lambda: True
        answers = ask_often(model, EASY, LEAST_CALLS)
        calls = prefix.calls
        answers += ask_often(model, EASY, 5)
        assert prefix.calls <= calls + 5
        assert state_of(fake, model, member="prefix") != CLOSED
    assert not any(answer.has_error() for answer in answers)


def test_probes_end_with_the_model(tmp_path: Path) -> None:
    with loaded(tmp_path, usual(large=Failing(large))) as model:
        ask_often(model, HARD)
        assert any(one.name == "committee-probe-large" for one in threading.enumerate())
    eventually(lambda: not any(one.name.startswith("committee-probe") for one in threading.enumerate()))


def test_a_probe_that_hangs_keeps_no_other_from_closing_it(tmp_path: Path) -> None:
    broken, released, hung = Failing(large), threading.Event(), threading.Event()

    def member(rows: np.ndarray) -> np.ndarray:
        if threading.current_thread().name == "committee-probe-large" and not hung.is_set():
            hung.set()
            released.wait(20)
        return broken(rows)

    with loaded(tmp_path, fake := usual(large=member)) as model:
        ask_often(model, HARD)
        assert hung.wait(5)
        broken.is_down = False
        eventually(lambda: state_of(fake, model) == CLOSED)
        broken.is_down = True
        released.set()
        eventually(lambda: not any(one.name == "committee-probe-large" for one in threading.enumerate()))
        assert state_of(fake, model) == CLOSED, "a probe of an earlier opening tells nothing"
        broken.is_down = False
        assert not ask_often(model, HARD, 1)[0].has_error()


def test_probes_that_never_come_back_are_few() -> None:
    opening, now_s = Opening(0.0, "it hung", 0.0), 0.0
    while now_s < 24 * 3600:
        now_s += opening.pause_s * 10  # the tests probe ten times as often
        opening.probes_out += 1
    assert opening.probes_out == 21


def test_a_probe_whose_answer_breaks_our_own_code_is_a_failed_one(tmp_path: Path) -> None:
    is_odd = [True]

    def member(rows: np.ndarray) -> np.ndarray:
        return np.array(1.0, np.float32) if is_odd[0] else large(rows)

    with loaded(tmp_path, fake := usual(large=member)) as model:
        ask_often(model, HARD)
        eventually(lambda: fake.asked.count(("large", 1)) > LEAST_CALLS + 1)
        is_odd[0] = False
        eventually(lambda: state_of(fake, model) == CLOSED)


@pytest.mark.parametrize("stage", [0, 1])
def test_rows_do_not_pay_for_a_member_that_was_not_asked(tmp_path: Path, stage: int) -> None:
    both = tuple(Member(name=name, output="logits", cost=cost) for name, cost in (("one", 0.1), ("two", 7.0)))
    part = dataclasses.replace(two_stages().stages[stage], members=both, on_failure="answer")
    stages = [*two_stages().stages]
    stages[stage] = part
    spec = two_stages(stages=tuple(stages), combine="mean_logit")
    members = {"one": Failing((small, large)[stage]), "two": Failing((small, large)[stage])}
    members["one"].is_down = False
    with loaded(tmp_path, fake := usual(**members), spec) as model:
        ask_often(model, HARD)
        model._flusher.flush()
        before = fake.total("committee_cost_total")
        (answer,) = ask_all(model, [asking(HARD)])
        model._flusher.flush()
        after = fake.total("committee_cost_total")
    other = np.float32(spec.stages[1 - stage].cost)
    expected = np.float32(0.1) + other if stage == 0 else other + np.float32(0.1)
    assert answer.column("cost")[0, 0] == expected, "to the bit"
    assert after - before == pytest.approx(float(expected))


def test_refused_rows_cost_nothing(tmp_path: Path) -> None:
    with loaded(tmp_path, fake := usual(small=Failing(small))) as model:
        ask_often(model, EASY)
        model._flusher.flush()
        before = fake.total("committee_cost_total")
        ask_often(model, EASY, 5)
        model._flusher.flush()
        assert fake.total("committee_cost_total") == before


def test_where_no_thread_is_to_be_had_it_stays_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Failing(large)
    with loaded(tmp_path, fake := usual(large=broken)) as model:
        ask_often(model, HARD, LEAST_CALLS - 1)
        with monkeypatch.context() as patch:
            patch.setattr(
                breaker_module.threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError)
            )
            ask_often(model, HARD, 3)
        assert state_of(fake, model) == CLOSED
        ask_often(model, HARD, 1)
        assert state_of(fake, model) != CLOSED
