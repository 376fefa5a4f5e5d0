"""A batch job over a real server that dies in the middle and comes back."""

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from orchestrator.__main__ import run
from orchestrator.rows.digits import digits_split
from tests.served.fixtures import COMMITTED
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(120)]
ROWS = 4000


def test_a_job_waits_for_a_server_that_is_killed_and_started_again(tmp_path: Path) -> None:
    images = digits_split("test").images
    np.save(tmp_path / "in.npy", images[np.arange(ROWS) % len(images)])
    seen: list[int] = []
    with running_server(COMMITTED) as server:

        def restart() -> None:
            time.sleep(1)
            while not list((tmp_path / "answers").glob("part-*")):
                time.sleep(0.02)
            seen.append(sum(pq.read_metadata(one).num_rows for one in (tmp_path / "answers").glob("part-*")))
            server.restart()

        words = ["batch", tmp_path / "in.npy", tmp_path / "answers", "--model", "digits_cascade"]
        words += ["--url", server.grpc_address, "--request-rows", 2, "--in-flight", 2, "--part-rows", 100]
        killer = threading.Thread(target=restart)
        killer.start()
        assert run(list(map(str, [*words, "--patience-s", "inf"]))) == 0
        killer.join()
    assert 0 < seen[0] < ROWS, "it was killed too late to tell"
    table = pq.read_table(tmp_path / "answers")
    assert table["id"].to_pylist() == list(range(ROWS))
    labels = table["label"].to_numpy()
    # The kernels that a batch runs on may round a row at a threshold to either side.
    assert (labels == labels[np.arange(ROWS) % len(images)]).mean() > 0.999
