import dataclasses

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import (
    has_seen,
    parts_from_records,
    records_of_rows,
    shuffled_halves,
    split_from_ids,
)
from orchestrator.spec.cascade import Fit
from tests.planner.builders import made_records, pool_of


def test_the_same_rows_certify_whatever_order_they_are_recorded_in() -> None:
    ids = np.array([f"row {place}" for place in range(100)])
    order = np.random.default_rng(0).permutation(100)
    one, other = split_from_ids(ids, certify_share=0.3), split_from_ids(ids[order], certify_share=0.3)
    assert set(ids[one.certify]) == set(ids[order][other.certify])
    assert len(one.certify) == 30
    assert np.array_equal(np.sort(np.concatenate((one.search, one.certify))), np.arange(100))


def test_another_seed_is_another_split() -> None:
    ids = np.arange(100)
    splits = [split_from_ids(ids, certify_share=0.5, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(splits[0].certify, splits[1].certify)


def test_the_split_has_nothing_to_do_with_the_number_in_an_id() -> None:
    certify = split_from_ids(np.arange(10_000), certify_share=0.5).certify
    assert abs(certify.mean() - 5000) < 150
    assert abs((certify % 2).mean() - 0.5) < 0.03


def test_halves_are_the_given_rows_in_an_order_of_their_own() -> None:
    rows = np.arange(100, 300)
    halves = shuffled_halves(made_records(0, rows=1000), rows, seed=0)
    order = np.concatenate(halves)
    assert [len(half) for half in halves] == [100, 100]
    assert np.array_equal(np.sort(order), rows)
    assert abs(np.corrcoef(order, rows)[0, 1]) < 0.2


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_rows_of_a_group_stay_together_whatever_order_they_are_in(kind: str) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 1000)
    groups = groups if kind == "numbers" else np.array([f"patient {one}" for one in groups])
    order = rng.permutation(1000)
    ids = np.arange(1000)
    one = split_from_ids(ids, certify_share=0.3, groups=groups)
    other = split_from_ids(ids[order], certify_share=0.3, groups=groups[order])
    assert set(ids[one.certify]) == set(ids[order][other.certify])
    assert not {*groups[one.search]} & {*groups[one.certify]}
    # A group has 25 rows or so.
    assert abs(len(one.certify) - 300) <= 25
    records = dataclasses.replace(made_records(0, rows=1000), groups=groups)
    halves = shuffled_halves(records, one.search, seed=0)
    assert not {*groups[halves[0]]} & {*groups[halves[1]]}
    assert sorted(np.concatenate(halves)) == one.search.tolist()
    parts = parts_from_records(records, share=0.6, seed=2)
    assert not {*parts[0].groups} & {*parts[1].groups}
    assert sorted(np.concatenate([part.ids for part in parts])) == ids.tolist()


def test_groups_of_one_row_each_are_no_groups() -> None:
    ids = np.arange(100)
    plain, grouped = (split_from_ids(ids, certify_share=0.3, groups=groups) for groups in (None, ids))
    assert np.array_equal(plain.certify, grouped.certify)


def test_a_cut_by_groups_and_one_by_rows_share_rows() -> None:
    plain = dataclasses.replace(made_records(0, rows=200), meta={"data_sha256": "aa"})
    grouped = dataclasses.replace(plain, groups=np.arange(200) // 4)
    (first, rest), (_, other) = (parts_from_records(one, share=0.5, seed=0) for one in (grouped, plain))
    fit = Fit(
        data_sha256=first.data_sha256,
        rows=first.rows,
        split="",
        target="",
        accuracy=None,
        accuracy_ci95=None,
        exit_share=(1.0,),
        mean_cost=1.0,
        extra={"part": first.meta["part"]},
    )
    spec = dataclasses.replace(pool_of(plain), fit=fit)
    assert not has_seen(spec, rest)
    assert has_seen(spec, other)


def test_one_group_is_too_few_and_says_so() -> None:
    with pytest.raises(DataError, match="50 rows to search and 0 to certify, in 1 groups, which stay together"):
        split_from_ids(np.arange(50), certify_share=0.5, groups=np.zeros(50, int))


@pytest.mark.parametrize(("rows", "share"), [(9, 0.0), (15, 0.5), (100, 0.95)])
def test_parts_too_small_to_mean_anything_are_refused(rows: int, share: float) -> None:
    with pytest.raises(DataError, match="at least 10 of each" if share else "at least 10; record more rows$"):
        split_from_ids(np.arange(rows), certify_share=share)


def test_some_rows_of_some_members_are_records_again() -> None:
    records = made_records(0, members=3)
    few = records_of_rows(records, np.array([3, 1]), pool_of(records).members[1:])
    assert list(few.outputs) == ["b", "c"]
    assert np.array_equal(few.outputs["c"], records.outputs["c"][[3, 1]])
    assert np.array_equal(few.labels, records.labels[[3, 1]])
