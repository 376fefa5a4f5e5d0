"""Threads that make calls for others: one is enough for one call after another, and it keeps nothing of them."""

import threading
import time
import weakref
from functools import partial
from typing import Any

from orchestrator.bls.pieces import Helpers
from tests.bls.fixtures import eventually

CALLS = 50


class Asked:
    """What a call is about."""


class Lingering:
    """A lock whose `release` comes back late, when who waited for it runs already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.acquire = self._lock.acquire

    def release(self) -> None:
        self._lock.release()
        time.sleep(0.005)


def test_who_is_woken_finds_the_helper_idle_and_needs_no_second_one() -> None:
    helpers, used = Helpers(1), set[int]()

    def work(waits: Lingering) -> Any:
        used.add(threading.get_ident())
        return waits

    for _ in range(CALLS):
        waits = Lingering()
        helpers.submit(partial(work, waits))
        assert waits.acquire(timeout=10)
    helpers.close()
    assert len(used) == 1


def test_an_idle_helper_keeps_nothing_of_the_last_call() -> None:
    helpers, waits = Helpers(1), threading.Lock()
    waits.acquire()
    asked = Asked()
    was_kept = weakref.ref(asked)
    helpers.submit(partial(lambda _: waits, asked))
    del asked
    assert waits.acquire(timeout=10)
    eventually(lambda: was_kept() is None)
    helpers.close()
