"""Three real servers behind one client, while one is silent, stops or is killed."""

from pathlib import Path

import pytest

from perf.studies.servers import FAULTS, passes, table_of, three_servers

pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]
COMMITTED = Path(__file__).resolve().parents[3] / "model_repository"


def test_no_request_is_lost_and_none_answered_twice_whatever_becomes_of_one_server() -> None:
    requests = 400
    with three_servers(COMMITTED) as servers:
        found = passes(servers, requests=requests)
    head, rows = table_of(found)
    print(*(" | ".join(line) for line in [head, *rows]), sep="\n")  # noqa: T201 - the share of each server
    assert [one.fault for one in found] == list(FAULTS)
    for one in found:
        assert (one.lost, one.other, sum(one.answered)) == (0, 0, requests), one
    # All answer while all are well, and who is not answers less than half: shares depend on who is fast here.
    assert min(found[0].answered) > 0
    for one in found[1:]:
        assert one.answered[0] < requests / 2, one
        assert one.moved[0] > 0, one
