"""A folder that a server polls is rendered again: what changed is loaded again, and no request is lost."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from orchestrator.repository.index import plan_of
from tests.repository.builders import render_output
from tests.served.fixtures import COMMITTED
from tests.served.test_member_versions import polling

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]
CASCADE = "digits_cascade"
LOADED = f"\"successfully loaded '{CASCADE}'\""


class Asking(threading.Thread):
    """Asks the cascade until it is told to stop, and keeps what went wrong."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.stop, self.answered = address, threading.Event(), 0
        self.failed: list[str] = []

    def run(self) -> None:
        client = triton.InferenceServerClient(self.address)
        rows = np.zeros((4, 1, 8, 8), np.float32)
        tensor = triton.InferInput("image", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        while not self.stop.is_set():
            try:
                client.infer(CASCADE, [tensor])
                self.answered += 1
            except InferenceServerException as error:
                self.failed.append(str(error))
            time.sleep(0.005)


def until(good: Callable[[], bool]) -> None:
    """Waits for something that a polling server does within seconds."""
    deadline_s = time.monotonic() + 40
    while not good():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_a_polling_server_loads_the_changed_cascade_alone_and_answers_all_along(tmp_path: Path) -> None:
    place, log = tmp_path / "served", tmp_path / "log"
    spec = plan_of(COMMITTED, CASCADE)
    render_output(COMMITTED, place, cascades=[spec], standalone=True)
    config = place / CASCADE / "config.pbtxt"
    edited = config.read_text().replace("count: 1", "count: 2")
    config.write_text(f"{edited}version_policy {{ all {{ }} }}\n")
    with polling(place, log) as address:
        asking = Asking(address)
        asking.start()
        # The server is ready a moment before it says so in its log.
        until(lambda: LOADED in log.read_text())
        begun = len(log.read_text())
        changed = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, max_batch_size=100))
        render_output(COMMITTED, place, cascades=[changed], standalone=True)
        client = triton.InferenceServerClient(address)
        until(lambda: client.get_model_config(CASCADE).config.max_batch_size == 100)
        asking.stop.set()
        asking.join()
        served = client.get_model_config(CASCADE).config
    assert asking.failed == []
    assert asking.answered
    assert served.instance_group[0].count == 2
    assert served.version_policy.HasField("all")
    loading = [line for line in log.read_text()[begun:].splitlines() if "loading:" in line]
    assert loading
    assert all(CASCADE in line for line in loading)
