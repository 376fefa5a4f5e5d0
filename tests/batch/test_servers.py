"""`committee batch` over several servers."""

import json

import pytest

from tests.batch.fixtures import KEYS, Batching
from tests.cli.digits import fake_server
from tests.fakes.kserve import images
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
