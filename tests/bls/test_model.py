"""What clients get of a model with two stages: sure requests at once, others late, each the right answer."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.spec import Gear, Gears, Limits, Member, Stage
from orchestrator.spec.answer import CAPPED, DEADLINE, DEGRADED, GEARED
from tests.bls.fixtures import (
    EASY,
    HARD,
    K,
    answers_of,
    ask_all,
    asking,
    large,
    loaded,
    rows_of,
    small,
    two_stages,
    usual,
    wait_for,
)
from tests.fakes.triton import FakeTriton, Request, TritonError


def test_an_easy_batch_is_returned_as_a_plain_list_and_never_reaches_the_later_stage(tmp_path: Path) -> None:
    with loaded(tmp_path, fake := usual()) as model:
        answers = model.execute([asking(EASY, EASY), asking(EASY)])
    assert answers is not None
    assert fake.asked == [("small", 3)]
    assert answers[0].column("label").tolist() == [[0], [0]]
    assert answers[1].column("exit_stage").tolist() == [[0]]
    assert answers[1].column("probabilities").shape == (1, K)


def test_only_deferred_rows_reach_the_later_stage_and_answers_keep_their_places(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, asking(EASY, HARD, EASY, HARD), fake=(fake := usual()))
    assert answer.column("label")[:, 0].tolist() == [0, 2, 0, 2]
    assert answer.column("exit_stage")[:, 0].tolist() == [0, 1, 0, 1]
    assert answer.column("cost")[:, 0].tolist() == [1, 11, 1, 11]
    assert sum(n for name, n in fake.asked if name == "large") == 2


def test_rows_that_exit_at_the_same_stage_are_not_mixed_up(tmp_path: Path) -> None:
    easy = [np.roll(EASY[:K], shift).tolist() + [0] * K for shift in range(K)]
    hard = [HARD[:K].tolist() + np.roll(HARD[K:], shift).tolist() for shift in range(K)]
    (answer,) = answers_of(tmp_path, asking(*easy, *hard))
    assert answer.column("label")[:, 0].tolist() == [0, 1, 2, 2, 0, 1]


def test_a_single_request_is_forwarded_without_a_copy(tmp_path: Path) -> None:
    fake = usual()
    request = asking(EASY)
    with loaded(tmp_path, fake) as model:
        model.execute([request])
    assert fake.forwarded[0] is request.tensors["x"]


def test_a_request_longer_than_a_members_limit_is_asked_in_chunks(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, asking(*[HARD] * 21), fake=(fake := usual()))
    assert [n for name, n in fake.asked if name == "small"] == [8, 8, 5]
    assert max(n for name, n in fake.asked if name == "large") <= 4
    assert set(answer.column("label")[:, 0].tolist()) == {2}


@pytest.mark.parametrize(
    ("tensors", "parameters", "said"),
    [
        ({"x": np.zeros((1, 2 * K), np.float64)}, {}, "expected FP32"),
        ({"x": np.zeros((1, K), np.float32)}, {}, "shape [1, 3]"),
        ({"x": np.zeros((0, 2 * K), np.float32)}, {}, "empty batch"),
        ({"x": np.full((2, 2 * K), np.nan, np.float32)}, {}, "NaN or infinity in 2 of 2 rows"),
        ({"x": -np.full((1, 2 * K), np.inf, np.float32)}, {}, "NaN or infinity"),
        ({"x": rows_of(EASY, [9, 0, -np.inf, 0, 9, 0])}, {}, "NaN or infinity in 1 of 2 rows, first row 1"),
        ({"y": np.zeros((1, 2 * K), np.float32)}, {}, "no such tensor"),
        ({"x": rows_of(EASY)}, {"treshold_shift": 0.1}, "expected only min_stage, max_stage"),
        ({"x": rows_of(EASY)}, {"x" * 10_000: 1}, "got '" + "x" * 40 + "', expected only"),
        ({"x": rows_of(EASY)}, {"max_stage": 2}, "from 0 to 1"),
        ({"x": rows_of(EASY)}, {"min_stage": -1}, "from 0 to 1"),
        ({"x": rows_of(EASY)}, {"min_stage": 1, "max_stage": 0}, "at most max_stage 0"),
        ({"x": rows_of(EASY)}, {"threshold_shift": 1.5}, "from -1 to 1"),
        ({"x": rows_of(EASY)}, {"threshold_shift": "nan"}, "from -1 to 1"),
        ({"x": rows_of(EASY)}, {"deadline_us": 0}, "from 1 to"),
        ({"x": rows_of(EASY)}, {"max_stage": True}, "whole number"),
    ],
)
def test_a_bad_request_is_refused_alone_in_easy_and_in_hard_company(
    tmp_path: Path, tensors: dict, parameters: dict, said: str
) -> None:
    for company in (EASY, HARD):
        requests = asking(company), Request(tensors, parameters=parameters), asking(EASY)
        good, bad, other = answers_of(tmp_path, *requests)
        assert not any(one.has_error() for one in (good, other))
        assert bad.error().code() == TritonError.INVALID_ARG
        assert said in bad.error().message()
        assert "\n" not in bad.error().message()


def test_a_failing_later_member_fails_only_requests_with_deferred_rows_and_names_stage_and_member(
    tmp_path: Path,
) -> None:
    fake = FakeTriton({"small": small})
    easy, hard = answers_of(tmp_path, asking(EASY), asking(EASY, HARD), fake=fake)
    assert not easy.has_error()
    assert hard.error().code() == TritonError.UNAVAILABLE
    assert hard.error().message().startswith("stage 1 member large: ")
    assert fake.total("committee_member_failures_total", member="large") == 1


def test_on_failure_answer_gives_the_answer_so_far_with_the_degraded_bit(tmp_path: Path) -> None:
    first, second = two_stages().stages
    spec = two_stages(stages=(first, Stage(members=second.members, on_failure="answer")))
    (answer,) = answers_of(tmp_path, asking(HARD, EASY), fake=FakeTriton({"small": small}), spec=spec)
    assert answer.column("status")[:, 0].tolist() == [DEGRADED, 0]
    assert answer.column("exit_stage")[:, 0].tolist() == [0, 0]
    assert answer.column("cost")[:, 0].tolist() == [11, 1]


def test_a_non_finite_output_fails_its_own_request_and_not_its_pool_mates(tmp_path: Path) -> None:
    def sometimes(rows: np.ndarray) -> np.ndarray:
        out = rows[:, K:].copy()
        out[rows[:, K] == 7] = np.nan
        return out

    poison = HARD.copy()
    poison[K] = 7
    good, bad = answers_of(tmp_path, asking(HARD), asking(poison), fake=usual(large=sometimes))
    assert good.column("label")[0, 0] == 2
    assert bad.error().code() == TritonError.UNAVAILABLE
    assert "member large" in bad.error().message()


def gated(gate: threading.Event):
    def member(rows: np.ndarray) -> np.ndarray:
        assert gate.wait(20)
        return rows[:, K:]

    return member


def test_an_easy_request_overtakes_a_hard_one_that_came_before_it(tmp_path: Path) -> None:
    gate = threading.Event()
    hard, easy = asking(HARD), asking(EASY)
    with loaded(tmp_path, usual(large=gated(gate))) as model:
        assert model.execute([hard]) is None
        answers = model.execute([easy])
        assert answers is not None
        assert hard.sender.response is None
        gate.set()
        assert hard.sender.done.wait(10)


def test_a_deadline_gives_the_best_answer_so_far_at_once_and_the_late_result_is_dropped(tmp_path: Path) -> None:
    gate = threading.Event()
    request = asking(HARD, EASY, deadline_us=50_000)
    with loaded(tmp_path, usual(large=gated(gate))) as model:
        start = time.monotonic()
        (answer,) = ask_all(model, [request])
        taken_s = time.monotonic() - start
        gate.set()
        (later,) = ask_all(model, [asking(HARD)])
    assert 0.05 <= taken_s < 5
    assert answer.column("status")[:, 0].tolist() == [DEADLINE, 0]
    assert answer.column("exit_stage")[:, 0].tolist() == [0, 0]
    assert answer.column("cost")[:, 0].tolist() == [11, 1]
    assert later.column("exit_stage")[0, 0] == 1


def test_a_deadline_that_passes_before_stage_0_answers_is_unavailable_while_others_wait_on(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(rows: np.ndarray) -> np.ndarray:
        assert gate.wait(20)
        return rows[:, :K]

    hasty = asking(HARD, deadline_us=30_000)
    calm = asking(EASY)
    fake = usual(small=slow)
    with loaded(tmp_path, fake) as model:
        listed: list = []
        thread = threading.Thread(target=lambda: listed.extend(model.execute([hasty, calm])))
        thread.start()
        assert hasty.sender.done.wait(10)
        assert calm.sender.response is None
        gate.set()
        thread.join()
    assert hasty.sender.response.error().code() == TritonError.UNAVAILABLE
    assert "deadline passed" in hasty.sender.response.error().message()
    # Nobody waits for the hasty request's row any more, so no later member is asked about it.
    assert {name for name, _ in fake.asked} == {"small"}
    assert listed[0] is None
    assert not wait_for(calm, listed[1]).has_error()


def test_max_stage_answers_there_and_marks_only_rows_that_would_have_gone_on(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, asking(EASY, HARD, max_stage=0))
    assert answer.column("status")[:, 0].tolist() == [0, CAPPED]


def test_the_door_holds_requests_back_while_too_many_rows_are_deferred(tmp_path: Path) -> None:
    gate = threading.Event()
    first = asking(*[HARD] * 12)
    second = asking(*[EASY] * 12)
    with loaded(tmp_path, usual(large=gated(gate))) as model:
        model.execute([first])
        answered: list[object] = []
        thread = threading.Thread(target=lambda: answered.append(model.execute([second])))
        thread.start()
        time.sleep(0.2)
        assert not answered
        gate.set()
        thread.join(10)
        assert answered[0] is not None
        assert first.sender.done.wait(10)


def test_a_request_larger_than_the_bound_enters_when_nothing_is_deferred(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, asking(*[HARD] * 60))
    assert set(answer.column("exit_stage")[:, 0].tolist()) == {1}


def test_a_cancelled_request_is_not_asked_about_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.bls.scheduler.CANCEL_CHECK_AGE_NS", 0)
    request = asking(HARD)
    request.cancelled = True
    (answer,) = answers_of(tmp_path, request)
    assert answer.error().code() == TritonError.CANCELLED


def test_members_of_one_stage_are_asked_in_parallel(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def meet(rows: np.ndarray) -> np.ndarray:
        both.wait(10)
        return rows[:, :K]

    members = tuple(Member(name=name, output="logits", max_batch_size=8) for name in ("one", "two"))
    spec = two_stages(stages=(Stage(members=members),), combine="mean_logit")
    (answer,) = answers_of(tmp_path, asking(EASY), fake=FakeTriton({"one": meet, "two": meet}), spec=spec)
    assert answer.column("label")[0, 0] == 0


def test_unloading_waits_for_deferred_rows(tmp_path: Path) -> None:
    gate = threading.Event()
    request = asking(HARD)
    with loaded(tmp_path, usual(large=gated(gate))) as model:
        model.execute([request])
        threading.Timer(0.3, gate.set).start()
    assert not request.sender.response.has_error()


def test_only_the_outputs_asked_for_are_sent(tmp_path: Path) -> None:
    (answer,) = answers_of(tmp_path, Request({"x": rows_of(HARD)}, wanted=["label"]))
    assert [t.name() for t in answer.output_tensors()] == ["label"]


def test_metrics_add_up_to_what_was_served(tmp_path: Path) -> None:
    fake = usual()
    with loaded(tmp_path, fake) as model:
        ask_all(model, [asking(EASY, HARD, HARD), asking(EASY)])
    assert fake.total("committee_rows_total") == 4
    assert fake.total("committee_exits_total", stage="0") == 2
    assert fake.total("committee_exits_total", stage="1") == 2
    assert fake.total("committee_deferred_total", stage="0") == 2
    assert fake.total("committee_cost_total") == 4 * 1 + 2 * 10
    assert fake.total("committee_latency_us_count") == 2
    assert fake.total("committee_latency_us_bucket", le="+Inf") == 2


def mixed_batch(rng: np.random.Generator) -> list[tuple[np.ndarray, Request]]:
    batch = []
    for _ in range(int(rng.integers(1, 6))):
        hard = rng.random(int(rng.integers(1, 9))) < 0.3
        batch.append((hard, Request({"x": np.where(hard[:, None], HARD, EASY).astype(np.float32)})))
    return batch


def right_answers(batch: list[tuple[np.ndarray, Request]], listed: list | None) -> int:
    right = 0
    for (hard, request), response in zip(batch, listed or [None] * len(batch), strict=True):
        answer = wait_for(request, response, 20)
        right += np.array_equal(answer.column("label")[:, 0], np.where(hard, 2, 0))
    return right


def test_mixed_requests_from_many_threads_are_each_answered_once_and_right(tmp_path: Path) -> None:
    sent, right = [0] * 8, [0] * 8
    # Triton calls execute of one instance from one thread at a time.
    execute_lock = threading.Lock()

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            batch = mixed_batch(rng)
            with execute_lock:
                listed = model.execute([request for _, request in batch])
            sent[seed] += len(batch)
            right[seed] += right_answers(batch, listed)

    with loaded(tmp_path, usual()) as model:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model._scheduler._run.rows_in_table == 0
    assert min(sent) >= 50
    assert right == sent


def test_idle_workers_of_a_stage_share_what_is_more_than_one_batch(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=10)

    def together(rows: np.ndarray) -> np.ndarray:
        both.wait()
        return large(rows)

    fake = usual(large=together)
    spec = two_stages(limits=Limits(max_batch_size=64, max_deferred_rows=16, workers_per_stage=2))
    (answer,) = answers_of(tmp_path, asking(*[HARD] * 8), fake=fake, spec=spec)
    assert answer.error() is None
    assert answer.column("exit_stage")[:, 0].tolist() == [1] * 8
    assert [rows for name, rows in fake.asked if name == "large"] == [4, 4]


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
    with loaded(tmp_path, usual()) as model:
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
    with loaded(tmp_path, usual()) as model:
        request = asking(EASY, deadline_us=10_000_000)
        listed = model.execute([request])
    assert listed is not None
    assert listed[0].column("status").tolist() == [[0]]


@pytest.mark.parametrize(("gear", "status"), [(0, 0), (1, GEARED)])
def test_a_cheaper_gear_marks_what_it_answers_at_once(tmp_path: Path, gear: int, status: int) -> None:
    spec = two_stages(gears=Gears(cheaper=(Gear(thresholds=(0.3,), mean_cost=2.0),)))
    with loaded(tmp_path, usual(), spec) as model:
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
    with loaded(tmp_path, usual()) as model:
        monkeypatch.setattr(model._responder, "early_responses", broken)
        sure, decided, deferred = ask_all(model, requests)
    # Who was not decided by then is told; who was keeps the answer.
    assert "made up" in sure.error().message()
    assert "made up" in deferred.error().message()
    assert decided.column("status").tolist() == [[CAPPED]]


def test_a_response_that_cannot_be_made_loses_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(tmp_path, usual()) as model:
        make, left = model._responder.response, [MemoryError("made up")]

        def response(reply: Any) -> Any:
            if left:
                raise left.pop()
            return make(reply)

        monkeypatch.setattr(model._responder, "response", response)
        first, second = ask_all(model, [asking(HARD, max_stage=0), asking(HARD, max_stage=0)])
    assert "made up" in first.error().message()
    assert second.column("status").tolist() == [[CAPPED]]
