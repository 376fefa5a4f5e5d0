"""What a member refuses is asked again in halves, until bad rows stand alone or the room is used up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.bls.member_calls import Gate
from orchestrator.bls.pieces import CALLS_TO_SILENT, REPEATS, BatchPieces, Refusal

K = 3


class Answering:
    """A member that refuses every batch with a bad row in it, and some calls for rows of somebody else.

    Attributes:
        calls: rows of every call.
    """

    def __init__(self, bad: set[int], *, disturbed: frozenset[int] = frozenset()) -> None:
        self.bad, self.disturbed = bad, disturbed
        self.calls: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> list[np.ndarray] | Refusal:
        self.calls.append((start, end))
        if len(self.calls) - 1 in self.disturbed:
            return Refusal("a row of somebody else")
        found = sorted(self.bad & set(range(start, end)))
        return Refusal(f"row {found[0]}") if found else [values(start, end), values(start, end).astype(np.int64)]


def values(start: int, end: int) -> np.ndarray:
    return np.arange(start * K, end * K, dtype=np.float16).reshape(-1, K)


def answered(pieces: BatchPieces) -> list[int]:
    return [row for start, end, _ in sorted(pieces.answered, key=lambda one: one[0]) for row in range(start, end)]


def sets_of_rows(most: int) -> st.SearchStrategy[tuple[int, set[int]]]:
    return st.integers(1, most).flatmap(
        lambda rows: st.tuples(st.just(rows), st.sets(st.integers(0, rows - 1), max_size=rows))
    )


@given(sets_of_rows(16))
def test_in_a_batch_of_up_to_16_rows_every_good_one_is_answered(drawn: tuple[int, set[int]]) -> None:
    rows, bad = drawn
    member = Answering(bad)
    pieces = Gate().ask_in_pieces(member, rows, size=64)
    assert answered(pieces) == [row for row in range(rows) if row not in bad]
    assert {row: said.text for row, said in pieces.failed.items()} == {row: f"row {row}" for row in bad}
    assert len(member.calls) == 1 + pieces.further_calls


@given(sets_of_rows(200), st.integers(1, 64))
def test_of_a_member_that_answers_other_rows_every_good_one_is_answered(
    drawn: tuple[int, set[int]], size: int
) -> None:
    rows, bad = drawn
    pieces = Gate().ask_in_pieces(Answering(bad), rows, size=size, answers_others=lambda: True)
    assert answered(pieces) == [row for row in range(rows) if row not in bad]


@given(sets_of_rows(16), st.sets(st.integers(0, 60), max_size=1), st.booleans())
def test_rows_are_at_fault_where_the_member_answers_others(
    drawn: tuple[int, set[int]], disturbed: set[int], answers_others: bool
) -> None:
    rows, bad = drawn
    member = Answering(bad, disturbed=frozenset(disturbed))
    pieces = Gate().ask_in_pieces(member, rows, size=64, answers_others=lambda: answers_others)
    blamed = {row for row, said in pieces.failed.items() if said.is_of_rows}
    assert blamed <= bad, "a good row is never blamed for a call that fails once"
    if not disturbed and (answers_others or rows > len(bad)) and len(bad) <= 8:
        assert blamed == bad
    if not pieces.answered and not answers_others:
        assert not blamed


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_member_that_comes_back_blames_no_row(size: int) -> None:
    for down in range(12):
        calls: list[int] = []

        def ask(start: int, end: int, down: int = down, calls: list[int] = calls) -> list[np.ndarray] | Refusal:
            calls.append(end - start)
            return [values(start, end)] if len(calls) > down else Refusal("broken")

        def is_back(down: int = down, calls: list[int] = calls) -> bool:
            return len(calls) >= down

        pieces = Gate().ask_in_pieces(ask, 4, size=size, answers_others=is_back)
        assert not any(said.is_of_rows for said in pieces.failed.values()), down


def test_what_a_model_says_of_its_rows_holds_for_those_asked_alone() -> None:
    def ask(start: int, end: int) -> list[np.ndarray] | Refusal:
        return Refusal("no UTF-8", is_of_rows=True)

    alone = Gate().ask_in_pieces(ask, 2, size=2)
    assert [said.is_of_rows for said in alone.failed.values()] == [True, True]
    many = Gate().ask_in_pieces(ask, 64, size=64)
    assert not all(said.is_of_rows for said in many.failed.values()), "rows that nobody asked about alone"
    gone = Gate().ask_in_pieces(lambda *_: Refusal("gone", is_of_rows=True, is_final=True), 1, size=1)
    assert not gone.failed[0].is_of_rows


@given(
    rows=st.integers(1, 200),
    bad=st.sets(st.integers(0, 199), max_size=200),
    size=st.integers(1, 64),
    request=st.integers(1, 9),
)
def test_every_row_is_answered_or_failed_once_and_calls_are_bounded(
    rows: int, bad: set[int], size: int, request: int
) -> None:
    member = Answering(bad)
    pieces = Gate().ask_in_pieces(member, rows, size=size, owners=lambda: np.arange(rows) // request)
    assert sorted([*answered(pieces), *pieces.failed]) == list(range(rows))
    assert not bad & set(answered(pieces))
    parts = -(-rows // size)
    assert len(member.calls) == parts + pieces.further_calls <= parts + max(31, 2 * rows + 8 * REPEATS)
    outputs = pieces.outputs(rows)
    if outputs is None:
        assert len(pieces.failed) == rows
        return
    for row in answered(pieces):
        np.testing.assert_array_equal(outputs[0][row], values(row, row + 1)[0])
        np.testing.assert_array_equal(outputs[1][row], values(row, row + 1)[0])
    assert np.isnan(outputs[0][sorted(pieces.failed)].astype(np.float32)).all()
    assert outputs[0].dtype == np.float16


@given(rows=st.integers(2, 64), data=st.data())
def test_one_bad_row_costs_both_halves_of_every_level(rows: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, rows - 1))
    pieces = Gate().ask_in_pieces(Answering({bad}), rows, size=64)
    assert list(pieces.failed) == [bad]
    # The whole once more, both halves at every level, and in the end the row.
    assert pieces.further_calls <= 1 + 2 * (rows - 1).bit_length() + REPEATS


@given(sets_of_rows(16), st.integers(0, 40))
def test_a_call_that_fails_for_a_row_of_somebody_else_costs_no_good_row(
    drawn: tuple[int, set[int]], disturbed: int
) -> None:
    rows, bad = drawn
    # With a single good row among many, its own call may be the one that is disturbed, and no room is left.
    assume(len(bad) < rows - 1 or rows == 1)
    pieces = Gate().ask_in_pieces(Answering(bad, disturbed=frozenset({disturbed})), rows, size=64)
    assert answered(pieces) == [row for row in range(rows) if row not in bad]


@pytest.mark.parametrize(("rows", "size"), [(64, 64), (1000, 64), (1000, 1)])
def test_a_member_that_answers_nothing_is_asked_a_bounded_number_of_times(rows: int, size: int) -> None:
    pieces = Gate().ask_in_pieces(Answering(set(range(rows))), rows, size=size)
    assert not pieces.answered
    assert len(pieces.failed) == rows
    assert pieces.further_calls <= CALLS_TO_SILENT


def test_a_final_refusal_ends_it_and_what_was_answered_stays() -> None:
    calls = []

    def ask(start: int, end: int) -> list[np.ndarray] | Refusal:
        calls.append((start, end))
        return [values(start, end)] if start == 0 else Refusal("gone", is_final=True)

    pieces = Gate().ask_in_pieces(ask, 12, size=4)
    assert calls == [(0, 4), (4, 8)]
    assert answered(pieces) == [0, 1, 2, 3]
    assert {row: said.text for row, said in pieces.failed.items()} == dict.fromkeys(range(4, 12), "gone")


def test_rows_of_one_request_are_not_told_apart() -> None:
    member = Answering({2})
    pieces = Gate().ask_in_pieces(member, 8, size=8, owners=lambda: np.array([7, 7, 7, 7, 8, 8, 9, 9]))
    assert member.calls == [(0, 8), (0, 8), (0, 4), (4, 8), *[(0, 4)] * REPEATS]
    assert sorted(pieces.failed) == [0, 1, 2, 3]
    alone = Answering({2})
    Gate().ask_in_pieces(alone, 8, size=8, owners=lambda: np.zeros(8, np.int64))
    assert alone.calls == [(0, 8), (0, 8), *[(0, 8)] * REPEATS]


def test_nobody_asks_whose_rows_they_are_where_nothing_is_refused() -> None:
    def owners() -> np.ndarray:
        raise AssertionError("work on the path where nothing fails")

    assert Gate().ask_in_pieces(Answering(set()), 200, size=64, owners=owners).further_calls == 0


def test_a_gate_keeps_everybody_out_while_it_is_shut() -> None:
    gate, inside, leave, entered = Gate(), threading.Event(), threading.Event(), threading.Event()

    def call(start: int, end: int) -> list[np.ndarray]:
        inside.set()
        assert leave.wait(5)
        return []

    def late(start: int, end: int) -> list[np.ndarray]:
        entered.set()
        return []

    def alone() -> bool:
        with gate.alone():
            thread = threading.Thread(target=gate.beside_others, args=(late, 0, 1))
            thread.start()
            kept_out = not entered.wait(0.1)
        thread.join(5)
        return kept_out

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gate.beside_others, call, 0, 1)
        assert inside.wait(5)
        waiting = pool.submit(alone)
        assert not entered.wait(0.05)
        leave.set()
        assert first.result(timeout=5) == []
        assert waiting.result(timeout=5)
    assert entered.is_set()


def test_whether_it_answers_others_is_asked_while_nobody_else_asks() -> None:
    gate, inside, most = Gate(), [0], [0]
    begun = threading.Barrier(2)

    def ask(start: int, end: int) -> list[np.ndarray] | Refusal:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1
        return Refusal("bad") if end else [values(0, 1)]

    def answers_others() -> bool:
        # By the same gate, as members are asked about a row by hand.
        said = gate.beside_others(lambda *_: [values(0, 1)], 0, 1)
        assert inside[0] == 0, "a call of somebody else"
        return not isinstance(said, Refusal)

    def one() -> set[bool]:
        begun.wait(5)
        pieces = gate.ask_in_pieces(ask, 1, size=1, answers_others=answers_others)
        return {said.is_of_rows for said in pieces.failed.values()}

    with ThreadPoolExecutor(2) as threads:
        assert [one.result(10) for one in [threads.submit(one) for _ in range(2)]] == [{True}, {True}]
