"""`committee batch` over several servers."""

import json
from typing import Any

import numpy as np
import pytest

from orchestrator.spec.cascade import PLAN_SHA256
from tests.batch.fixtures import KEYS, Batching
from tests.cli.digits import fake_server
from tests.fakes.kserve import cascade_answer, images
from tests.fakes.kserve_fronts import GrpcFront


def test_rows_go_to_both_servers_and_the_summary_says_how_many(job: Batching) -> None:
    job.save(images=images(KEYS))
    with GrpcFront(fake_server(max_batch_size=64)) as other:
        places = [job.front.address, other.address]
        options = ["--request-rows", 5, "--in-flight", 2]
        told = json.loads(job.batch("in.npz", "out.npz", "--url", ",".join(places), *options, "--json"))
        said = job.batch("in.npz", "out.npz", "--url", places[0], "--url", places[1], *options)
        rows = [sum(len(call.rows) for call in front.fake.calls) for front in (job.front, other)]
    assert list(told["server_requests"]) == places
    assert min(told["server_requests"].values()) > 5
    assert f"requests: {places[0]} " in said
    assert sum(rows) == 2 * len(KEYS)
    assert job.answers()["label"] == (KEYS % 10).tolist()


def test_a_server_that_is_down_at_the_start_is_named_and_the_job_goes_on(
    job: Batching, caplog: pytest.LogCaptureFixture
) -> None:
    job.save(images=images(KEYS))
    places = f"{job.front.address},127.0.0.1:9"
    told = json.loads(job.batch("in.npz", "out.npz", "--url", places, "--json"))
    assert told["answered"] == len(KEYS)
    assert "127.0.0.1:9 is not asked: failed to connect" in caplog.text


def test_servers_that_are_all_down_are_one_line(job: Batching) -> None:
    job.save(images=images(KEYS))
    said = job.batch("in.npz", "out.npz", "--url", "127.0.0.1:9,127.0.0.1:10", code=5)
    assert "none of 2 servers answers: failed to connect to all addresses" in said
    assert said.count("\n") <= 3
    assert job.files() == {"in.npz", "repository"}


def test_a_plan_that_all_servers_have_changed_to_ends_the_job(job: Batching) -> None:
    job.save(images=images(KEYS))
    with GrpcFront(fake_server(max_batch_size=64)) as other:
        fakes = [job.fake, other.fake]

        def changing(rows: np.ndarray, parameters: Any) -> Any:
            if sum(len(fake.calls) for fake in fakes) > 5:
                for fake in fakes:
                    fake.models[0].settings["parameters"] = {PLAN_SHA256: {"string_value": "b" * 64}}
            return cascade_answer(rows, parameters)

        for fake in fakes:
            fake.models[0].settings["parameters"] = {PLAN_SHA256: {"string_value": "a" * 64}}
            fake.models[0].__dict__["answer"] = changing
        places = f"{job.front.address},{other.address}"
        said = job.batch("in.npz", "out.npz", "--url", places, "--request-rows", 5, code=5)
    assert f"got plan {'b' * 12}, expected plan {'a' * 12}, as at the beginning" in said
    assert job.files() == {"in.npz", "repository"}


def test_a_server_whose_model_hangs_loses_its_requests_to_its_neighbour(job: Batching) -> None:
    job.save(images=images(KEYS))
    with GrpcFront(fake_server(max_batch_size=64)) as other:
        other.fake.delay_s = 1.5
        places = f"{job.front.address},{other.address}"
        options = ["--request-rows", 25, "--in-flight", 2, "--timeout-s", 0.4]
        told = json.loads(job.batch("in.npz", "out.npz", "--url", places, *options, "--json"))
        assert other.fake.calls
    assert told["answered"] == len(KEYS)
    # All four requests with rows, whatever else each was asked.
    assert told["server_requests"][job.front.address] >= 4
    assert job.answers()["label"] == (KEYS % 10).tolist()
