import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.dataset_split import records_of_rows, shuffled, split_from_ids
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


def test_shuffled_rows_are_the_given_ones_in_an_order_of_their_own() -> None:
    ids, rows = np.arange(1000), np.arange(100, 300)
    order = shuffled(ids, rows, seed=0)
    assert np.array_equal(np.sort(order), rows)
    assert abs(np.corrcoef(order, rows)[0, 1]) < 0.2


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
