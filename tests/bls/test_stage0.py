"""Requests that stage 0 is sure of, among others that need the table."""

import threading
from pathlib import Path

import numpy as np
import pytest

from orchestrator.spec import Gear, Gears
from orchestrator.spec.answer import CAPPED, GEARED
from tests.bls.fixtures import EASY, HARD, K, answers_of, ask_all, asking, loaded, small, two_stages, usual
from tests.fakes.triton import FakeTriton


def members() -> FakeTriton:
    return usual()


def test_a_request_that_forbids_the_first_stage_is_passed_on_beside_sure_neighbours(tmp_path: Path) -> None:
    requests = [asking(EASY), asking(EASY, EASY, min_stage=1), asking(HARD), asking(EASY, max_stage=0)]
    answers = answers_of(tmp_path, *requests)
    assert [answer.column("exit_stage")[:, 0].tolist() for answer in answers] == [[0], [1, 1], [1], [0]]
    assert [answer.column("label")[:, 0].tolist() for answer in answers] == [[0], [1, 1], [2], [0]]


def test_a_stricter_request_is_not_answered_by_the_plans_own_threshold(tmp_path: Path) -> None:
    sure, strict = answers_of(tmp_path, asking(EASY), asking(EASY, threshold_shift=0.5))
    assert sure.column("exit_stage")[0, 0] == 0
    assert strict.column("exit_stage")[0, 0] == 1


def test_requests_of_several_sizes_get_their_own_rows(tmp_path: Path) -> None:
    kinds = [np.concatenate((np.roll(EASY[:K], shift), EASY[K:])) for shift in range(K)]
    requests = [asking(*kinds[: 1 + index % K]) for index in range(7)]
    requests.insert(3, asking(EASY, HARD))
    answers = answers_of(tmp_path, *requests)
    del answers[3]
    for index, answer in enumerate(answers):
        assert answer.column("label")[:, 0].tolist() == list(range(1 + index % K))
        assert answer.column("cost")[:, 0].tolist() == [1] * (1 + index % K)


def test_answers_that_share_their_constant_outputs_are_each_whole(tmp_path: Path) -> None:
    with loaded(tmp_path, members()) as model:
        first = ask_all(model, [asking(EASY)])[0]
        held = {name: first.column(name).copy() for name in ("exit_stage", "cost", "status", "label")}
        for _ in range(3):
            ask_all(model, [asking(HARD), asking(EASY)])
        for name, column in held.items():
            assert first.column(name).tobytes() == column.tobytes(), name


def test_a_request_answered_at_its_deadline_while_stage_0_runs_is_not_answered_again(tmp_path: Path) -> None:
    leave = threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        assert leave.wait(10)
        return small(rows)

    fake = usual(small=slow)
    dated = asking(EASY, deadline_us=1000)
    plain = asking(EASY)
    with loaded(tmp_path, fake) as model:
        threading.Thread(target=lambda: dated.sender.done.wait(10) and leave.set(), daemon=True).start()
        listed = model.execute([dated, plain])
    assert listed is not None
    assert listed[0] is None
    assert dated.sender.response is not None
    assert dated.sender.response.has_error()
    assert listed[1].column("label").tolist() == [[0]]


def test_a_deadline_alone_does_not_send_a_sure_request_through_the_table(tmp_path: Path) -> None:
    with loaded(tmp_path, members()) as model:
        request = asking(EASY, deadline_us=10_000_000)
        listed = model.execute([request])
    assert listed is not None
    assert listed[0].column("status").tolist() == [[0]]


@pytest.mark.parametrize(("gear", "status"), [(0, 0), (1, GEARED)])
def test_a_cheaper_gear_marks_what_it_answers_at_once(tmp_path: Path, gear: int, status: int) -> None:
    spec = two_stages(gears=Gears(cheaper=(Gear(thresholds=(0.3,), mean_cost=2.0),)))
    with loaded(tmp_path, members(), spec) as model:
        model._scheduler._gearbox.gear = gear  # stands for a shift under load
        model._scheduler._gearbox.observe_wait = lambda *_: 0
        answers = ask_all(model, [asking(EASY), asking(HARD)])
    assert [int(answer.column("status")[0, 0]) for answer in answers] == [0, status]
    assert [int(answer.column("exit_stage")[0, 0]) for answer in answers] == [0, 1 - gear]


def test_a_cap_is_marked_where_the_row_would_have_gone_on(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, asking(EASY, HARD, max_stage=0))
    assert answer.column("status")[:, 0].tolist() == [0, CAPPED]


def test_a_fault_of_our_own_after_others_were_decided_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("made up")

    requests = [asking(EASY), asking(HARD, max_stage=0), asking(HARD)]
    with loaded(tmp_path, members()) as model:
        monkeypatch.setattr(model._responder, "early_responses", broken)
        sure, decided, deferred = ask_all(model, requests)
    # Who was not decided by then is told; who was keeps the answer.
    assert "made up" in sure.error().message()
    assert "made up" in deferred.error().message()
    assert decided.column("status").tolist() == [[CAPPED]]
