"""The predictor against a fake server: columns in, columns out."""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.errors import InputError, TimeLimitError, UnavailableError, UnknownModelError
from orchestrator.predictor.predictor import Predictor, ServedModels
from orchestrator.rows.blocks import RowBlock
from tests.cli.digits import fake_server
from tests.fakes.kserve import FakeKServe, cascade_answer, images
from tests.fakes.kserve_fronts import GrpcFront


@pytest.fixture
def fake() -> FakeKServe:
    return fake_server(max_batch_size=64)


@pytest.fixture
def front(fake: FakeKServe) -> Iterator[GrpcFront]:
    with GrpcFront(fake) as front:
        yield front


def predictor_of(front: GrpcFront, model: str = "digits_cascade", timeout_s: float = 60, **more: Any) -> Predictor:
    return Predictor(ServedModels(servers=front.address, timeout_s=timeout_s), model, **more)


def test_columns_come_back_in_order_and_refused_rows_are_a_column(front: GrpcFront) -> None:
    rows = images(np.arange(100) % 30)
    rows[[3, 70]] = np.nan
    with predictor_of(front, request_rows=16, probabilities=True) as predictor:
        answers = predictor.predict({"image": rows})
    good = np.setdiff1d(np.arange(100), [3, 70])
    assert answers["label"][good].tolist() == (good % 30 % 10).tolist()
    assert answers["exit_stage"][good].tolist() == (good % 30 // 10).tolist()
    assert answers["probabilities"].shape == (100, 10)
    assert np.isnan(answers["probabilities"][3]).all()
    assert answers["label"][[3, 70]].tolist() == [-1, -1]
    assert [row for row in range(100) if answers["refused"][row]] == [3, 70]
    assert "NaN" in answers["refused"][70]


def test_a_table_comes_back_as_a_table(front: GrpcFront) -> None:
    lists = images(range(5)).reshape(5, -1).tolist()
    lists[2] = lists[2][:-1]
    table = pa.table({"other": range(5), "image": pa.array(lists, pa.list_(pa.float32()))})
    with predictor_of(front) as predictor:
        for rows in (table, table.to_batches()[0]):
            answers = predictor.predict(rows)
            assert answers["label"].to_pylist() == [0, 1, -1, 3, 4]
            assert "got 63 values" in answers["refused"][2].as_py()


def test_a_predictor_travels_unconnected_and_connects_with_the_first_row(
    front: GrpcFront, fake: FakeKServe
) -> None:
    predictor = predictor_of(front)
    assert not fake.described
    with predictor:
        predictor.predict({"image": images([1])})
        again = pickle.loads(pickle.dumps(predictor))
    with again:
        assert again.predict({"image": images([7])})["label"].tolist() == [7]


def test_requests_in_flight_are_bounded(front: GrpcFront, fake: FakeKServe) -> None:
    fake.delay_s = 0.02
    with predictor_of(front, request_rows=1, in_flight=3) as predictor:
        predictor.predict({"image": images(range(20))})
    assert fake.most_at_once == 3


def test_requests_grow_while_that_answers_more_rows_per_second(front: GrpcFront, fake: FakeKServe) -> None:
    fake.delay_s = 0.02
    blocks = (RowBlock(ids=np.arange(256), rows=images(np.zeros(256))) for _ in range(80))
    with predictor_of(front, in_flight=4) as predictor:
        assert sum(outcome.size for outcome in predictor.outcomes(blocks)) == 80 * 256
    sizes = [len(call.rows) for call in fake.calls]
    assert sizes[0] == 32
    assert sizes[-1] == 64  # the model takes no more


def test_a_server_that_is_away_is_waited_for_as_long_as_patience_lasts(fake: FakeKServe) -> None:
    with GrpcFront(fake) as front:
        port = front.port
    # Not there yet.
    with predictor_of(front, patience_s=0.3) as predictor, pytest.raises(UnavailableError):
        predictor.predict({"image": images([1])})
    comes = threading.Event()

    def serve() -> None:
        time.sleep(1)
        with GrpcFront(fake, port):
            comes.set()
            goes.wait(30)

    goes = threading.Event()
    with predictor_of(front, patience_s=float("inf"), request_rows=8) as predictor:
        thread = threading.Thread(target=serve)
        thread.start()
        assert predictor.predict({"image": images([7])})["label"].tolist() == [7]
        # Gone in the middle, and back without its models at first.
        goes.set()
        thread.join()
        models, fake.models = fake.models, []
        goes.clear()
        thread = threading.Thread(target=serve)
        thread.start()
        threading.Timer(2, lambda: setattr(fake, "models", models)).start()
        keys = np.arange(100) % 30
        assert predictor.predict({"image": images(keys)})["label"].tolist() == (keys % 10).tolist()
    goes.set()
    thread.join()


def test_an_answer_out_of_time_is_asked_for_again_while_patience_lasts_but_not_for_ever(
    fake: FakeKServe, front: GrpcFront, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {3: 1}

    def stalling(rows: np.ndarray, parameters: Any) -> Any:
        key = round(float(rows[0, 0, 0, 0]))
        if slow.get(key, 0) > 0:
            slow[key] -= 1
            time.sleep(0.6)
        return cascade_answer(rows, parameters)

    fake.models[0].__dict__["answer"] = stalling
    options = {"timeout_s": 0.3, "patience_s": float("inf"), "request_rows": 1}
    with predictor_of(front, **options) as predictor:
        assert predictor.predict({"image": images([1, 3, 4])})["label"].tolist() == [1, 3, 4]
        # Said once, however many requests wait.
        said = [line for line in caplog.messages if line.startswith("waiting for an answer: ")]
        assert len(said) == 1
        slow[3] = 100
        with pytest.raises(TimeLimitError):
            predictor.predict({"image": images([3])})


def test_patience_waits_for_no_model_that_was_never_there_and_no_wrong_row(front: GrpcFront) -> None:
    with predictor_of(front, "nobody", patience_s=float("inf")) as predictor, pytest.raises(UnknownModelError):
        predictor.predict({"image": images([1])})
    with predictor_of(front, patience_s=float("inf")) as predictor:
        with pytest.raises(InputError):
            predictor.predict({"image": images([1])[0]})
        assert predictor.predict({"image": images([1, -5]) * np.float32(np.nan)})["label"].tolist() == [-1, -1]


def test_an_answer_that_takes_too_long_ends_the_work_though_others_would_come(
    front: GrpcFront, fake: FakeKServe
) -> None:
    def slow(rows: np.ndarray, parameters: Any) -> Any:
        if (rows[:, 0, 0, 0] == 9).any():
            time.sleep(1.5)
        return cascade_answer(rows, parameters)

    fake.models[0].__dict__["answer"] = slow
    with predictor_of(front, timeout_s=0.5, request_rows=1) as predictor, pytest.raises(TimeLimitError):
        predictor.predict({"image": images(range(20))})


def test_batches_without_an_answer_have_the_columns_of_others(front: GrpcFront) -> None:
    with predictor_of(front, probabilities=True) as predictor:
        whole = predictor.predict({"image": images([1])})
        none = predictor.predict({"image": images([1])[:0]})
        refused = predictor.predict({"image": images([1]) * np.nan})
        table = predictor.predict(pa.table({"image": pa.array([], pa.list_(pa.float32()))}))
    assert list(none) == list(refused) == list(whole) == table.schema.names
    assert none["probabilities"].shape == (0, 10)
    assert refused["probabilities"].shape == (1, 10)
    assert len(none["label"]) == table.num_rows == 0


def test_rows_that_are_no_columns_are_one_line(front: GrpcFront) -> None:
    with predictor_of(front) as predictor, pytest.raises(InputError, match="got ndarray, expected a dict"):
        predictor.predict(images([1]))


def test_a_call_with_many_rows_finds_the_size_of_its_requests(front: GrpcFront, fake: FakeKServe) -> None:
    fake.delay_s = 0.02
    with predictor_of(front, in_flight=2) as predictor:
        predictor.predict({"image": images(np.arange(12_000) % 30)})
    assert {len(call.rows) for call in fake.calls} >= {32, 64}


@pytest.mark.parametrize("local", [True, False])
def test_a_forked_process_opens_its_own_members_and_is_refused_connections(front: GrpcFront, local: bool) -> None:
    code = f"""
import os, signal, sys
import numpy as np
from orchestrator.predictor.in_process import LocalModels
from orchestrator.predictor.predictor import Predictor, ServedModels
from pathlib import Path
models = LocalModels(repository=Path("model_repository"))
if not {local}:
    models = ServedModels(servers={front.address!r})
predictor = Predictor(models, "digits_cascade")
rows = {{"image": np.zeros((3, 1, 8, 8), np.float32)}}
predictor.predict(rows)
if os.fork() == 0:
    signal.alarm(20)
    try:
        print("child", len(predictor.predict(rows)["label"]), flush=True)
    except Exception as error:
        print("child", error, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said = "child 3" if local else "child predictor: got a process forked from one that has connections"
    assert said in done.stdout, done
