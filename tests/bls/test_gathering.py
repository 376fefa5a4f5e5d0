"""The next batch of a stage is taken when a running call has had most of its time."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bls.gathering import SHARE, Gathering
from tests.bls.fixtures import HARD, asking, eventually, large, loaded, usual, wait_for

MS = 1_000_000


def gathering(*, instances: int = 1, rows: int = 10, ms: int = 100) -> Gathering:
    found = Gathering(instances)
    found.returned(0, rows, ms * MS)
    return found


def test_nothing_is_waited_for_while_a_member_is_free_or_nothing_is_known() -> None:
    assert gathering().wait_ns([], 5) == 0
    assert gathering(instances=2).wait_ns([(0, 10)], 5) == 0
    assert Gathering(1).wait_ns([(0, 10)], 5) == 0


def test_a_busy_member_has_the_next_batch_before_its_call_ends() -> None:
    assert gathering().wait_ns([(0, 10)], 30 * MS) == pytest.approx((SHARE * 100 - 30) * MS)
    assert gathering().wait_ns([(0, 10)], 90 * MS) < 0
    # The call that was taken first ends first.
    assert gathering(instances=2).wait_ns([(0, 10), (40 * MS, 10)], 50 * MS) == pytest.approx((80 - 50) * MS)


@pytest.mark.parametrize(("rows", "ms"), [(5, 50), (10, 100), (20, 100)])
def test_a_small_call_is_expected_to_end_sooner_and_a_large_one_no_later(rows: int, ms: int) -> None:
    """On a GPU a call of twice the rows may take the same; the member must not idle for that."""
    assert gathering().wait_ns([(0, rows)], 0) == pytest.approx(SHARE * ms * MS)


def test_one_call_that_hung_changes_little_and_a_change_that_stays_is_learnt() -> None:
    found = gathering()
    found.returned(0, 10, 60_000 * MS)
    assert found.wait_ns([(0, 10)], 0) == pytest.approx(SHARE * 120 * MS)
    for _ in range(40):
        found.returned(0, 10, 10 * MS)
    assert found.wait_ns([(0, 10)], 0) == pytest.approx(SHARE * 10 * MS, rel=0.05)


def test_rows_that_are_deferred_while_the_member_runs_make_one_batch(tmp_path: Path) -> None:
    free, begun = threading.Event(), list[int]()

    def slow(rows: np.ndarray) -> np.ndarray:
        begun.append(len(rows))
        if len(begun) == 1:
            time.sleep(0.5)  # so long are calls expected to take from now on
        if len(begun) == 2:
            free.wait(10)
        return large(rows)

    requests = [asking(HARD) for _ in range(4)]
    with loaded(tmp_path, usual(large=slow)) as model:
        assert model.execute(requests[:1]) is None
        wait_for(requests[0], None)
        assert model.execute(requests[1:2]) is None
        eventually(lambda: len(begun) == 2)
        assert model.execute(requests[2:3]) is None
        assert model.execute(requests[3:]) is None
        # The other worker takes both, before the call that runs returns.
        eventually(lambda: len(begun) == 3)
        free.set()
        answers = [wait_for(request, None) for request in requests[1:]]
    assert begun == [1, 1, 2]
    assert [answer.column("exit_stage")[0, 0] for answer in answers] == [1, 1, 1]
