import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import manifest_from_path
from perf.harness.serving import reach_of
from perf.routes.scenario import MARGIN, BenchScenario, bench_scenario
from tests.perf.routes.tiny import TINY

POOL = 400


def numbered(exits: np.ndarray, margin: np.ndarray, like: BenchScenario) -> BenchScenario:
    """Rows that are their own numbers."""
    recipe = dataclasses.replace(TINY, pool=POOL, rows_at=lambda numbers: np.array(numbers, np.float32)[:, None])
    return dataclasses.replace(like, recipe=recipe, exit_stage=exits, margin=margin)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.sampled_from([2, 3, 13, 101, 499]),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_rows_have_exactly_the_asked_mix(tiny: BenchScenario, seed: int, count: int, shares: list[float]) -> None:
    rng = np.random.default_rng(seed)
    exits = rng.permutation(np.arange(POOL) % 3).astype(np.int32)
    margin = rng.uniform(0, 10 * MARGIN, POOL).astype(np.float32)
    source = numbered(exits, margin, tiny)
    reach = (1.0, *sorted(shares, reverse=True))
    got = source.rows_for(reach=reach, rows=count, seed=seed)
    assert len(got.rows) == len(got.exit_stage) == count
    assert [int((got.exit_stage >= stage).sum()) for stage in range(3)] == [round(one * count) for one in reach]
    numbers = got.rows[:, 0].astype(int)
    np.testing.assert_array_equal(exits[numbers], got.exit_stage)
    assert (margin[numbers] >= MARGIN).all()
    again = source.rows_for(reach=reach, rows=count, seed=seed)
    np.testing.assert_array_equal(again.rows, got.rows)


@pytest.mark.parametrize("seed", range(20))
def test_a_load_that_ends_within_the_file_has_had_the_same_mix(tiny: BenchScenario, seed: int) -> None:
    stages = tiny.rows_for(reach=(1.0, 0.3, 0.15), rows=1999, seed=seed).exit_stage
    for stage, share in ((1, 0.3), (2, 0.15)):
        reached = np.cumsum(stages >= stage) / np.arange(1, 2000)
        assert np.abs(reached[1200:] - share).max() < 0.01
        # But hard rows do not come at fixed distances.
        assert len(np.unique(np.diff(np.flatnonzero(stages >= stage)))) > 5


def test_rows_come_twice_only_where_the_pool_is_short(tiny: BenchScenario) -> None:
    source = numbered(np.repeat([0, 1, 2], [380, 10, 10]).astype(np.int32), np.ones(POOL, np.float32), tiny)
    got = source.rows_for(reach=(1, 0.1, 0.1), rows=101, seed=0)
    numbers, times = np.unique(got.rows[got.exit_stage == 0], return_counts=True)
    assert len(numbers) == 91
    assert times.max() == 1
    got = source.rows_for(reach=(1, 1, 1), rows=101, seed=0)
    assert len(np.unique(got.rows)) == 10


@pytest.mark.parametrize("deferral", [0.0, 0.05, 0.15, 0.3, 1.0])
def test_the_deferrals_of_the_bench_can_be_had(tiny: BenchScenario, deferral: float) -> None:
    wanted = reach_of(deferral, 3)
    got = tiny.rows_for(reach=wanted, rows=101, seed=0)
    np.testing.assert_allclose(got.reach(3), wanted, atol=0.5 / 101 + 1e-9)


@pytest.mark.parametrize(
    ("reach", "rows"),
    [((1, 0.5), 101), ((0.9, 0.5, 0.1), 101), ((1, 0.2, 0.5), 101), ((1, 0.2, -0.1), 101), ((1, 0.2, 0.1), 100)],
)
def test_a_mix_that_makes_no_sense_is_refused(tiny: BenchScenario, reach: tuple[float, ...], rows: int) -> None:
    with pytest.raises(DataError, match=r"reach|rows"):
        tiny.rows_for(reach=reach, rows=rows, seed=0)


def test_a_stage_where_no_row_exits_is_named(tiny: BenchScenario) -> None:
    source = numbered(np.zeros(POOL, np.int32), np.ones(POOL, np.float32), tiny)
    with pytest.raises(DataError, match="stage 2"):
        source.rows_for(reach=(1, 0.2, 0.2), rows=101, seed=0)


def test_exits_are_those_of_the_replay_and_the_imposed_ones(tiny: BenchScenario) -> None:
    names = tiny.recipe.scenario.members
    local = LocalMembers(tiny.repository, names)
    rows = tiny.recipe.rows_at(range(tiny.recipe.pool))
    records = Records(
        ids=np.arange(len(rows)),
        labels=None,
        outputs={name: local.ask(name, rows) for name in names},
        cost=dict.fromkeys(names, 1.0),
    )
    sure = tiny.margin >= MARGIN
    np.testing.assert_array_equal(replay(tiny.spec, records).exit_stage[sure], tiny.exit_stage[sure])
    shares = np.bincount(tiny.exit_stage, minlength=3) / len(rows)
    np.testing.assert_allclose(shares, (0.70, 0.15, 0.15), atol=0.06)
    assert (tiny.margin < 1e-5).mean() < 0.001


def test_members_say_that_their_weights_are_random_and_nobody_gives_them_an_accuracy(tiny: BenchScenario) -> None:
    assert tiny.recipe.scenario.imposed
    assert tiny.spec.fit is None
    for name in tiny.recipe.scenario.members:
        assert manifest_from_path(tiny.repository / name / "manifest.json").random_weights


def test_what_was_made_is_kept_and_other_settings_are_made_anew(tiny: BenchScenario) -> None:
    cache = tiny.repository.parents[1]
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.onnx")}
    again = bench_scenario(dataclasses.replace(TINY), cache)
    assert again.repository == tiny.repository
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.onnx")} == before
    other = bench_scenario(dataclasses.replace(TINY, pool=70, settings="other"), cache)
    assert other.repository != tiny.repository
    assert len(other.exit_stage) == 70


def test_rows_that_come_as_they_are_have_the_pools_own_mix_and_none_near_a_threshold(tiny: BenchScenario) -> None:
    rng = np.random.default_rng(0)
    exits = rng.choice([0, 1, 2], POOL, p=[0.7, 0.2, 0.1]).astype(np.int32)
    margin = np.where(np.arange(POOL) % 10 == 0, 0, 1).astype(np.float32)
    source = numbered(exits, margin, tiny)
    got = source.rows_for(reach=None, rows=359, seed=1)
    numbers = got.rows[:, 0].astype(int)
    assert len(np.unique(numbers)) == 359
    assert (numbers % 10 != 0).all()
    np.testing.assert_array_equal(exits[numbers], got.exit_stage)
    np.testing.assert_allclose(got.reach(3), source.reach, atol=0.05)
    with pytest.raises(DataError, match="at least 367"):
        source.rows_for(reach=None, rows=367, seed=1)
    with pytest.raises(DataError, match="prime"):
        source.rows_for(reach=None, rows=300, seed=1)
