"""The fault matrix on the served product: rows of seconds here, all of them in `make faults`."""

import dataclasses
import time
from collections.abc import Iterator

import psutil
import pytest

from perf.routes.obedient import STRICT
from tests.faults.frame import Bench, FaultRow
from tests.faults.matrix import ROWS

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]
# Of each kind one that takes seconds; the others start servers again or wait for what is noticed within 5 s.
QUICK = ("member_fails", "lenient_member_fails", "plan_swapped", "bad_requests", "clients_leave")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_harms_nobody_it_need_not(bench: Bench, name: str) -> None:
    result = bench.run(next(row for row in ROWS if row.name == name))
    assert not result.faults, result


def test_calls_that_hung_hold_no_thread_when_the_member_works_again(bench: Bench) -> None:
    row = dataclasses.replace(next(row for row in ROWS if row.name == "member_hangs"), hold_s=3)
    cascade = psutil.Process(bench.product().stub(STRICT))
    before = cascade.num_threads()
    result = bench.run(row)
    assert not result.faults, result
    assert result.counts["UNAVAILABLE"], "no call hung"
    until_s = time.monotonic() + 10
    # Threads that wait for work are few and may be more than before the load.
    while (now := cascade.num_threads()) > before + 2:
        assert time.monotonic() < until_s, (before, now)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in QUICK], ids=lambda row: row.name)
def test_every_other_fault_too(bench: Bench, row: FaultRow) -> None:
    # Slow: servers that are killed start again, and some rows wait for a look that comes every few seconds.
    result = bench.run(row)
    assert not result.faults, result
