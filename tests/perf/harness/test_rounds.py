import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ServerFaultError, ServingError
from perf.harness.frame import is_unstable
from perf.harness.run import Rounds, RunOptions, Windows, with_rates
from perf.harness.serving import Cell
from perf.harness.windows import Journal
from tests.perf.harness.builders import record


def closed(route: str, **load: Any) -> Cell:
    return Cell(**{"scenario": "three_cnn", "route": route, "concurrency": 16, **load})


def poisson(route: str, of_route: str, share: float = 0.8) -> Cell:
    return Cell(scenario="three_cnn", route=route, sender="poisson", share=share, of_route=of_route)


# With what lies between two windows each takes a second.
ONE_S = Windows(rounds=3, seconds=0.0)


class Fake:
    """Takes windows whose figures a function of (cell, round, attempt) decides, and remembers the order."""

    def __init__(self, figures: Callable[[Cell, int, int], dict[str, Any]] = lambda *_: {}) -> None:
        self.figures = figures
        self.taken: list[tuple[str, int, str]] = []

    def __call__(self, cell: Cell, *, round_number: int, attempt: int, why: str) -> dict[str, Any]:
        self.taken.append((cell.route, round_number, why))
        return record(
            cell, round_number=round_number, attempt=attempt, why=why, **self.figures(cell, round_number, attempt)
        )


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "j.jsonl", {}, resume=False)


def rounds_of(fake: Fake, journal: Journal, **changes: Any) -> Rounds:
    return Rounds(fake, journal, **{"windows": lambda _: ONE_S, "end_s": 1e9, "clock": lambda: 0.0, **changes})


def test_every_round_visits_every_cell_once_there_and_back(journal: Journal) -> None:
    fake = Fake()
    cells = rounds_of(fake, journal).run([closed("a"), closed("b"), closed("c")])
    assert [route for route, _, _ in fake.taken] == list("abccbaabc")
    assert [cell.route for cell in cells] == list("abc")


def test_a_window_with_the_wrong_mix_is_taken_again_at_once_and_only_once(journal: Journal) -> None:
    fake = Fake(lambda cell, number, attempt: {"reach_off": 0.02 if (cell.route, number) == ("a", 2) else 0.0})
    rounds_of(fake, journal).run([closed("a"), closed("b")])
    assert fake.taken == [
        ("a", 1, ""), ("b", 1, ""), ("b", 2, ""), ("a", 2, ""), ("a", 2, "reach"), ("a", 3, ""), ("b", 3, ""),
    ]  # fmt: skip


def test_the_farthest_round_of_an_unstable_cell_is_taken_again_once(journal: Journal) -> None:
    def figures(cell: Cell, number: int, attempt: int) -> dict[str, Any]:
        return {"requests_per_s": 50.0 if number == 2 and attempt == 0 else 100.0 + number}

    fake = Fake(figures)
    rounds_of(fake, journal).run([closed("a")])
    assert fake.taken[3:] == [("a", 2, "spread")]
    assert not is_unstable(journal.of(closed("a").key), closed("a"))


def test_what_stays_unstable_is_left_so(journal: Journal) -> None:
    rates: Iterator[float] = itertools.cycle([100.0, 150.0, 200.0])
    fake = Fake(lambda *_: {"requests_per_s": next(rates)})
    rounds_of(fake, journal).run([closed("a")])
    assert len(fake.taken) == 4
    assert is_unstable(journal.of(closed("a").key), closed("a"))


def test_poisson_cells_are_compared_by_their_median_latency() -> None:
    cell = poisson("a", "a")
    same_rate = [record(cell, round_number=n, p50_ms=p50) for n, p50 in ((1, 10.0), (2, 14.0))]
    assert is_unstable(same_rate, cell)
    assert not is_unstable([record(cell, requests_per_s=rate) for rate in (50.0, 100.0)], cell)


def test_no_window_is_taken_again_when_time_is_up(journal: Journal) -> None:
    fake = Fake(lambda cell, number, attempt: {"reach_off": 0.5, "requests_per_s": 100.0 * number})
    # Each window takes one second by this clock: three must be taken, and there is time for one more.
    rounds_of(fake, journal, end_s=4.5, clock=lambda: float(len(fake.taken))).run([closed("a")])
    assert [why for _, _, why in fake.taken] == ["", "reach", "", ""]


def test_poisson_rates_are_shares_of_what_the_closed_loops_showed(journal: Journal) -> None:
    speeds = {"tutorial": 200.0, "concatenate_4": 300.0, "client_sync": 350.0}
    fake = Fake(lambda cell, *_: {"requests_per_s": speeds.get(cell.route, 400.0) + (cell.concurrency or 0)})
    cells = [
        poisson("committee", "tutorial"),
        poisson("best_rival", "best_rival"),
        poisson("committee", "best_rival"),
        *(closed(route) for route in speeds),
        closed("tutorial", concurrency=64),
        closed("tutorial", concurrency=64, batch=8),
    ]
    measured = rounds_of(fake, journal).run(cells)
    found = {(cell.route, cell.of_route): cell.rate for cell in measured if cell.share}
    assert found == {
        ("committee", "tutorial"): pytest.approx(0.8 * 264),
        ("client_sync", "client_sync"): pytest.approx(0.8 * 366),
        ("committee", "client_sync"): pytest.approx(0.8 * 366),
    }


def test_a_rate_of_what_was_not_measured_cannot_be_sent(journal: Journal) -> None:
    cell = poisson("committee", "tutorial")
    assert with_rates([cell], [closed("committee")], journal) == []
    rounds = rounds_of(Fake(), journal)
    rounds.run([cell, closed("committee")])
    assert list(rounds.failures) == [cell.key]


def test_a_baseline_that_fails_does_not_cost_the_others_their_run(journal: Journal) -> None:
    def figures(cell: Cell, *_: int) -> dict[str, Any]:
        if cell.route == "a":
            raise ServerFaultError("perf_analyzer on a", got="no")
        return {}

    fake = Fake(figures)
    rounds = rounds_of(fake, journal)
    assert [cell.route for cell in rounds.run([closed("a"), closed("b")])] == ["b"]
    assert rounds.failures == {closed("a").key: "perf_analyzer on a: got no"}
    # Once more at once, and then never again.
    assert [route for route, _, _ in fake.taken] == ["a", "a", "b", "b", "b"]


def test_a_load_that_fails_once_is_sent_again(journal: Journal) -> None:
    failures = iter([True])

    def figures(*_: object) -> dict[str, Any]:
        if next(failures, False):
            raise ServerFaultError("perf_analyzer on a", got="no")
        return {}

    rounds = rounds_of(Fake(figures), journal)
    rounds.run([closed("a")])
    assert (rounds.failures, len(journal.of(closed("a").key))) == ({}, 3)


def test_a_server_that_is_gone_ends_the_run(journal: Journal) -> None:
    def figures(*_: object) -> dict[str, Any]:
        raise ServingError("embedded Triton ended")

    with pytest.raises(ServingError):
        rounds_of(Fake(figures), journal).run([closed("a")])


def test_a_resumed_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    path, cells = tmp_path / "j.jsonl", [closed("a"), closed("b"), poisson("a", "a")]
    rounds_of(Fake(), Journal(path, {}, resume=False)).run(cells)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5]) + "\n")
    fake = Fake()
    measured = rounds_of(fake, Journal(path, {}, resume=True)).run(cells)
    assert len(fake.taken) == 9 - 4
    assert len(measured) == 3


def test_tails_are_measured_in_longer_windows_and_more_of_them(journal: Journal) -> None:
    options = RunOptions(
        full=True,
        scenarios=(),
        output=Path(),
        seconds=8.0,
        rounds=3,
        long_seconds=60.0,
        long_rounds=5,
        budget_s=1e9,
    )
    tail = replace(closed("b"), long=True)
    assert (options.windows(closed("a")), options.windows(tail)) == (
        Windows(rounds=3, seconds=8.0),
        Windows(rounds=5, seconds=60.0),
    )
    fake = Fake()
    rounds_of(fake, journal, windows=options.windows).run([closed("a"), tail])
    assert [route for route, _, _ in fake.taken] == list("abbaabbb")
    assert replace(options, long_seconds=None, long_rounds=None).windows(tail) == Windows(rounds=3, seconds=8.0)
