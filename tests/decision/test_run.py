"""Failures, deadlines, windows and order in small cases, and what holds for every cascade and every batching."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import Arrivals, CascadeRun, Policy, arrivals_from_policies
from orchestrator.decision.run import ASKED, FREE, STATES, TRANSITIONS
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, InputSpec, Member, Stage
from orchestrator.spec.answer import ABSTAINED, CAPPED, DEADLINE, DEGRADED
from tests.decision.builders import Case, answer_all, make_case, with_thresholds

SURE = [8.0, 0.0, 0.0]
UNSURE = [0.1, 0.0, 0.0]


def spec_of(*stages: Stage, **changes: object) -> CascadeSpec:
    source = InputSpec(name="x", dtype="FP32", dims=(1,))
    return CascadeSpec(name="made_up", inputs=(source,), classes=3, stages=stages, **changes)


def stage(*names: str, threshold: float | None = None, **changes: object) -> Stage:
    members = tuple(Member(name=name, output="logits", cost=1.0) for name in names)
    return Stage(members=members, threshold=threshold, **changes)


TWO = spec_of(stage("a", threshold=0.9), stage("b"))


def arrive(rows: int, policy: Policy | None = None, *, token: int = 0, now_ns: int = 0) -> Arrivals:
    return arrivals_from_policies(
        [token], [rows], policies=[policy or Policy()], now_ns=[now_ns], default_deadline_us=1000
    )


def logits(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
def test_a_non_finite_row_fails_alone_and_names_the_member(bad: list[float]) -> None:
    outcome = CascadeRun(TWO).admit(arrive(3), [logits(SURE, bad, SURE)])
    assert outcome.answers.position.tolist() == [0, 2]
    assert outcome.failures.row.tolist() == [1]
    assert outcome.failures.member.tolist() == [0]
    assert outcome.member_failures.tolist() == [1, 0]


def test_minus_infinity_for_some_classes_is_a_legal_logit_even_where_members_exclude_each_other() -> None:
    spec = spec_of(stage("a", "b"))
    one, other = [5.0, -np.inf, -np.inf], [-np.inf, 5.0, -np.inf]
    outcome = CascadeRun(spec).admit(arrive(1), [logits(one), logits(other)])
    assert len(outcome.answers) == 1
    assert np.isfinite(outcome.answers.probabilities).all()


LENIENT = {"on_failure": "answer"}
FIRST, SKIPPED = stage("a", threshold=0.9), stage("a", threshold=0.9, **LENIENT)
LATER, PAIR = stage("b", **LENIENT), stage("b", "c", **LENIENT)


@pytest.mark.parametrize(
    ("stages", "combine", "said", "later", "expected"),
    [
        ((SKIPPED, stage("b")), "mean_logit", None, [logits(SURE)], (1, DEGRADED, 0, 2)),
        ((FIRST, LATER), "mean_logit", logits(UNSURE), [None], (0, DEGRADED, 0, 2)),
        ((FIRST, LATER), "last", logits(UNSURE), [None], (0, DEGRADED, 0, 2)),
        ((FIRST, PAIR), "mean_logit", logits(UNSURE), [None, logits([0, 0, 9])], (1, DEGRADED, 2, 3)),
    ],
    ids=["the_next_stage", "the_sums_before_it", "the_answer_before_it", "the_member_that_is_left"],
)  # fmt: skip
def test_where_a_failed_stage_is_stepped_over_others_answer_degraded(
    stages, combine, said, later, expected
) -> None:
    run = CascadeRun(spec_of(*stages, combine=combine))
    assert len(run.admit(arrive(1), [said]).deferred) == 1
    answers = run.feed(run.next(1, 8), later).answers
    assert (answers.exit_stage[0], answers.status[0], answers.label[0], answers.cost[0]) == expected


def test_a_failed_stage_0_capped_there_has_nothing_to_answer_with() -> None:
    run = CascadeRun(spec_of(stage("a", threshold=0.9, on_failure="answer"), stage("b")))
    outcome = run.admit(arrive(1, Policy(max_stage=0)), [None])
    assert (len(outcome.failures), len(outcome.answers)) == (1, 0)


def test_one_failed_member_of_a_stage_fails_the_row_by_default() -> None:
    run = CascadeRun(spec_of(FIRST, stage("b", "c")))
    run.admit(arrive(1), [logits(UNSURE)])
    outcome = run.feed(run.next(1, 8), [logits(SURE), None])
    assert outcome.failures.member.tolist() == [2]
    assert run.rows_in_table == 0


def test_a_window_answers_hopeless_rows_with_the_abstain_bit_and_defers_only_the_middle() -> None:
    run = CascadeRun(spec_of(stage("a", threshold=0.9, low=0.4), stage("b")))
    outcome = run.admit(arrive(3), [logits(SURE, UNSURE, [1.0, 0, 0])])
    assert outcome.answers.position.tolist() == [0, 1]
    assert outcome.answers.status.tolist() == [0, ABSTAINED]
    assert outcome.deferred.tolist() == [2]


def test_the_shift_moves_the_threshold_but_not_the_low_end_of_a_window() -> None:
    spec = spec_of(stage("a", threshold=0.9, low=0.4), stage("b"))
    outcome = CascadeRun(spec).admit(arrive(2, Policy(threshold_shift=1.0)), [logits(SURE, UNSURE)])
    assert outcome.answers.status.tolist() == [ABSTAINED]
    assert outcome.deferred.tolist() == [0]


@pytest.mark.parametrize(("bound", "status"), [("threshold", 0), ("low", ABSTAINED)])
def test_a_score_equal_to_the_threshold_or_the_low_end_exits(bound: str, status: int) -> None:
    exact = float(CascadeRun(spec_of(stage("a"))).admit(arrive(1), [logits([1, 0, 0])]).answers.confidence[0])
    outcome = CascadeRun(spec_of(stage("a", **{bound: exact}), stage("b"))).admit(arrive(1), [logits([1, 0, 0])])
    assert outcome.answers.status.tolist() == [status]


def test_expired_rows_answer_with_what_they_have_and_their_late_results_are_dropped() -> None:
    run = CascadeRun(TWO)
    run.admit(arrive(2, Policy(deadline_us=1)), [logits(UNSURE, UNSURE)])
    asked = run.next(1, 1)
    outcome = run.expire(1000)
    assert outcome.answers.status.tolist() == [DEADLINE, DEADLINE]
    # The row in flight pays for the member that still runs; the waiting one does not.
    assert sorted(outcome.answers.cost.tolist()) == [1, 2]
    late = run.feed(asked, [logits(SURE)])
    assert len(late.answers) == 0
    assert run.rows_in_table == 0
    assert run.waiting(1) == 0


def test_a_row_without_any_answer_at_its_deadline_is_a_failure() -> None:
    run = CascadeRun(spec_of(stage("a", threshold=0.9, on_failure="answer"), stage("b")))
    run.admit(arrive(1, Policy(deadline_us=1)), [None])
    outcome = run.expire(1000)
    assert len(outcome.answers) == 0
    assert outcome.failures.member.tolist() == [-1]


def test_a_deadline_beats_min_stage() -> None:
    run = CascadeRun(TWO)
    run.admit(arrive(1, Policy(deadline_us=1, min_stage=1)), [logits(SURE)])
    assert run.expire(1000).answers.exit_stage.tolist() == [0]


def test_the_most_urgent_rows_go_first_and_equals_go_by_age() -> None:
    run = CascadeRun(TWO)
    for token, (deadline_us, now_ns) in enumerate([(None, 0), (None, 10), (50, 20), (None, 5)]):
        run.admit(arrive(1, Policy(deadline_us=deadline_us), token=token, now_ns=now_ns), [logits(UNSURE)])
    order = [int(run.requests_of(run.next(1, 1))[0]) for _ in range(4)]
    assert order == [2, 0, 3, 1]


def test_dropping_a_request_frees_its_rows_and_leaves_the_others() -> None:
    run = CascadeRun(TWO)
    run.admit(arrive(3, token=1), [logits(UNSURE, UNSURE, UNSURE)])
    run.admit(arrive(2, token=2), [logits(UNSURE, UNSURE)])
    assert run.drop(np.array([1])) == 3
    assert (run.waiting(1), run.rows_in_table) == (2, 2)


def test_vote_ties_go_to_the_larger_mean_probability() -> None:
    spec = spec_of(stage("a", "b"), combine="vote")
    outcome = CascadeRun(spec).admit(arrive(1), [logits([2, 0, 0]), logits([0, 5, 0])])
    assert outcome.answers.label.tolist() == [1]
    assert outcome.answers.probabilities[0].tolist() == [0.5, 0.5, 0]


def test_equal_probabilities_go_to_the_lowest_class() -> None:
    assert CascadeRun(spec_of(stage("a"))).admit(arrive(1), [logits([0, 3, 3])]).answers.label.tolist() == [1]


def test_agreement_needs_two_members_in_stage_0() -> None:
    with pytest.raises(Exception, match="at least two to agree"):
        dataclasses.replace(TWO, score="agreement")


@pytest.mark.parametrize("combine", COMBINES)
def test_a_row_one_member_failed_on_is_weighed_by_the_other_member_alone(combine: str) -> None:
    pair = spec_of(stage("a", "b", on_failure="answer"), combine=combine)
    single = spec_of(stage("b"), combine=combine)
    both = CascadeRun(pair).admit(arrive(2), [logits([np.nan, 0, 0], [1, 0, 0]), logits([0, 2, 1], [0, 2, 1])])
    alone = CascadeRun(single).admit(arrive(1), [logits([0, 2, 1])])
    assert np.array_equal(both.answers.probabilities[0], alone.answers.probabilities[0])
    assert both.answers.status.tolist() == [DEGRADED, 0]


@pytest.mark.parametrize("combine", COMBINES)
def test_a_silent_middle_stage_answers_at_once_with_exactly_the_answer_before_it(combine: str) -> None:
    stages = (stage("a", threshold=0.99), stage("b", threshold=0.99, on_failure="answer"), stage("c"))
    run = CascadeRun(spec_of(*stages, combine=combine, score="neg_entropy"))
    before = CascadeRun(spec_of(stage("a"), combine=combine)).admit(arrive(1), [logits([0, 0.5, 0.1])])
    run.admit(arrive(1), [logits([0, 0.5, 0.1])])
    slots = run.next(1, 8)
    if not len(slots):
        assert combine == "vote"  # one vote is unanimous, so nothing is ever deferred
        return
    outcome = run.feed(slots, [None])
    assert len(outcome.deferred) == 0
    assert np.array_equal(outcome.answers.probabilities, before.answers.probabilities)
    assert (outcome.answers.label[0], outcome.answers.exit_stage[0], outcome.answers.status[0]) == (1, 0, DEGRADED)


@st.composite
def cases(draw: st.DrawFn, *, combine: str | None = None, stage_sizes: list[int] | None = None) -> Case:
    score = draw(st.sampled_from(SCORES))
    sizes = stage_sizes or draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    if score == "agreement" and len(sizes) > 1:
        sizes = [max(2, sizes[0]), *sizes[1:]]
    return make_case(
        seed=draw(st.integers(0, 2**20)),
        sizes=sizes,
        rows=draw(st.integers(1, 24)),
        classes=draw(st.integers(2, 6)),
        combine=combine or draw(st.sampled_from(COMBINES)),
        score=score,
        quantile=draw(st.floats(0.05, 0.95)),
        low=draw(st.booleans()),
        sharpness=draw(st.sampled_from([0.1, 1.0, 8.0])),
        kinds=draw(st.booleans()),
    )


@given(cases())
def test_every_row_is_answered_once_and_each_stage_gets_exactly_the_rows_deferred_before_it(case: Case) -> None:
    done = answer_all(case)
    assert sorted(done.position.tolist()) == list(range(case.rows))
    reach = case.rows
    for stage, asked in enumerate(done.asked_per_stage):
        assert asked == reach
        reach -= int((done.exit_stage == stage).sum())
    assert reach == 0


@given(cases(), st.integers(0, 2**20))
def test_splitting_merging_and_reordering_batches_changes_no_bit_of_an_answer(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = answer_all(case)
    order = rng.permutation(case.rows)
    cuts = np.sort(rng.integers(0, case.rows + 1, size=int(rng.integers(0, 4))))
    pieces = [piece for piece in np.split(order, cuts) if len(piece)]
    other = answer_all(case, batches=pieces, limit=int(rng.integers(1, 9)))
    for column in ("probabilities", "label", "confidence", "exit_stage", "cost", "status"):
        assert np.array_equal(getattr(whole, column), getattr(other, column)), column


@given(cases())
def test_thresholds_of_zero_or_less_use_stage_0_only(case: Case) -> None:
    done = answer_all(with_thresholds(case, 0.0))
    assert set(done.exit_stage.tolist()) == {0}
    assert done.asked_per_stage[1:] == [0] * (len(done.asked_per_stage) - 1)


@given(cases(combine=None))
def test_a_stage_that_never_exits_plus_its_successor_is_one_ensemble_stage(case: Case) -> None:
    if case.spec.combine == "last":
        return
    never = answer_all(with_thresholds(case, None))
    merged = answer_all(case.merged())
    assert np.array_equal(never.probabilities, merged.probabilities)
    assert np.array_equal(never.label, merged.label)
    assert np.array_equal(never.confidence, merged.confidence)
    assert np.allclose(never.cost, merged.cost, rtol=1e-6)


@given(cases())
def test_cost_is_the_sum_over_the_stages_a_row_went_through_and_never_above_all_of_them(case: Case) -> None:
    done = answer_all(case)
    sums = np.cumsum([np.float32(stage.cost) for stage in case.spec.stages], dtype=np.float32)
    assert np.array_equal(done.cost, sums[done.exit_stage])
    assert done.cost.max() <= np.float32(case.spec.worst_cost) * np.float32(1.000001)


@given(cases())
def test_probabilities_are_a_distribution_and_the_score_lies_between_0_and_1(case: Case) -> None:
    done = answer_all(case)
    assert np.allclose(done.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (done.probabilities >= 0).all()
    assert (done.confidence >= 0).all()
    assert (done.confidence <= np.float32(1.000001)).all()


@given(cases(), st.data())
def test_min_and_max_stage_bound_where_a_row_exits_and_only_true_caps_are_marked(
    case: Case, data: st.DataObject
) -> None:
    last = len(case.spec.stages) - 1
    low = data.draw(st.integers(0, last))
    high = data.draw(st.integers(low, last))
    free = answer_all(case, policy=Policy(min_stage=low))
    done = answer_all(case, policy=Policy(min_stage=low, max_stage=high))
    assert (done.exit_stage >= low).all()
    assert (done.exit_stage <= high).all()
    capped = (done.status & CAPPED) != 0
    # A row is capped exactly when, free to go on, it would have exited later.
    assert np.array_equal(capped, free.exit_stage > high)


@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_shift_never_lets_a_row_exit_earlier(case: Case, one: float, two: float) -> None:
    if any(stage.low is not None for stage in case.spec.stages):
        return
    less, more = sorted((one, two))
    early = answer_all(case, policy=Policy(threshold_shift=less))
    late = answer_all(case, policy=Policy(threshold_shift=more))
    assert (late.exit_stage >= early.exit_stage).all()


ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
BEGIN, END = "<!-- states: begin -->\n", "<!-- states: end -->"
THREE = spec_of(stage("a", threshold=0.9), stage("b", threshold=0.9), stage("c"))
# What a caller may do -> the events that slots go through then.
EVENTS_OF_CALL = {"admit": {"enter"}, "next": {"take"}, "feed": {"defer", "finish"}, "abandon": {"finish"}}
EVENTS_OF_CALL |= {"expire": {"drop"}, "drop": {"drop"}}
EDGES = {(event, before, after) for event, moves in TRANSITIONS.items() for before, after in moves.items()}


def drawing() -> str:
    """The table of states as a diagram, as it stands in ARCHITECTURE.md."""
    edges = "".join(
        f"    {STATES[before]} --> {STATES[after]}: {event}\n"
        for event, moves in TRANSITIONS.items()
        for before, after in moves.items()
    )
    return f"```mermaid\nstateDiagram-v2\n    [*] --> {STATES[FREE]}\n{edges}```\n"


class Watched(CascadeRun):
    """A run that holds each of its calls to the table, slot by slot.

    Attributes:
        seen: event, state before and state after of every move.
        flying: slots of each batch that members are asked about.
        inside: rows without an answer.
    """

    def __init__(self) -> None:
        super().__init__(THREE, capacity_rows=2)
        self.seen: set[tuple[str, int, int]] = set()
        self.flying: list[np.ndarray] = []
        self.inside = 0

    def _move(self, slots: np.ndarray, event: str) -> None:
        assert len(np.unique(slots)) == len(slots)
        before = self._state[slots].tolist()
        super()._move(slots, event)
        self.seen |= {(event, *states) for states in zip(before, self._state[slots].tolist(), strict=True)}

    def call(self, name: str, *arguments: object) -> object:
        """Calls a method; its moves are of the events it may cause, and nothing else has changed a state."""
        before, earlier = self._state.copy(), self.seen
        self.seen = set()
        result = getattr(self, name)(*arguments)
        assert self.seen <= EDGES
        assert {event for event, *_ in self.seen} <= EVENTS_OF_CALL[name]
        states = zip(before.tolist(), self._state.tolist(), strict=False)  # the table may have grown
        assert {moved for moved in states if moved[0] != moved[1]} <= {edge[1:] for edge in self.seen}
        self.seen |= earlier
        return result

    def random_call(self, rng: np.random.Generator, step: int) -> None:
        """One call of a caller who behaves, at a time of `step` microseconds."""
        some = int(rng.integers(1, 5))
        said = [SURE if rng.random() < 0.4 else UNSURE for _ in range(8)]
        name = rng.choice([*EVENTS_OF_CALL, "admit", "next", "feed"])
        if name == "admit":
            policy = Policy(deadline_us=None if rng.random() < 0.5 else int(rng.integers(1, 40)))
            rows = arrive(some, policy, token=step, now_ns=step * 1000)
            self.inside += len(self.call("admit", rows, [logits(*said[:some])]).deferred)
        elif name == "next":
            slots = self.call("next", int(rng.integers(1, 3)), some)
            self.flying += [slots] if len(slots) else []
        elif name == "expire":
            self.inside -= len(self.call("expire", step * 1000).answers)
        elif name == "drop":
            self.inside -= self.call("drop", np.array([int(rng.integers(0, 40))]))
        elif self.flying:
            slots = self.flying.pop(int(rng.integers(0, len(self.flying))))
            self.inside -= int((self._state[slots] == ASKED).sum())
            if name == "feed":
                self.inside += len(self.call("feed", slots, [logits(*said[: len(slots)])]).deferred)
            else:
                self.call("abandon", slots)


def seen_in(seed: int) -> set[tuple[str, int, int]]:
    """The moves of a run under a random mix of calls, which loses no slot and gives none twice."""
    rng, run = np.random.default_rng(seed), Watched()
    for step in range(40):
        run.random_call(rng, step)
        in_flight = np.concatenate([np.zeros(0, int), *run.flying])
        assert len(np.unique(in_flight)) == len(in_flight)
        assert run.waiting(1) + run.waiting(2) <= run.inside <= run.rows_in_table
    for slots in run.flying:
        run.call("abandon", slots)
    run.call("drop", np.arange(40))
    assert run.rows_in_table == 0
    assert sorted(run._free.tolist()) == list(range(run.capacity_rows))
    return run.seen


@given(st.integers(0, 2**20))
def test_no_call_moves_a_slot_in_a_way_that_is_not_in_the_table(seed: int) -> None:
    seen_in(seed)


@pytest.mark.parametrize("edge", sorted(EDGES), ids=lambda edge: f"{edge[0]}_{STATES[edge[1]]}")
def test_every_transition_of_the_table_happens(edge: tuple[str, int, int]) -> None:
    assert any(edge in seen_in(seed) for seed in range(50))


def test_the_drawing_of_the_states_is_the_one_of_the_table() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert shown == drawing(), f"put this between the two markers:\n{drawing()}"
