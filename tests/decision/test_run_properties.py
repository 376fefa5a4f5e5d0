"""What must hold for every cascade, every input and every way of cutting rows into batches."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import Policy
from orchestrator.spec import COMBINES, SCORES
from orchestrator.spec.answer import CAPPED
from tests.decision.builders import Case, answer_all, make_case, with_thresholds

MODES = st.sampled_from(COMBINES)


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
        combine=combine or draw(MODES),
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
