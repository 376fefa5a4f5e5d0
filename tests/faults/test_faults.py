"""The fault matrix on the served product: rows of seconds here, all of them in `make faults`."""

from collections.abc import Iterator

import pytest

from tests.faults.frame import Bench
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


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.name not in QUICK], ids=lambda row: row.name)
def test_every_other_fault_too(bench: Bench, row: object) -> None:
    # Slow: servers that are killed start again, and some rows wait for a look that comes every few seconds.
    result = bench.run(row)  # type: ignore[arg-type]
    assert not result.faults, result
