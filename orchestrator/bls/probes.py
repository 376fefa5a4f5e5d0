"""Asking members about one row now and then: are they there, and are their scores those they gave at first?

In a thread of its own, so that a member that hangs does not keep the watch from noticing that a file changes.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.bls.isolation import Refusal, Rows
from orchestrator.bls.member_calls import MemberCalls

# How often a member is asked, so that another model in its place shows within 5 s. Where a row takes long it is
# asked less often, so that this stays a hundredth of its time; in a hurry it is asked at every turn.
PROBE_S, PROBE_SHARE, TURN_S = 4.0, 0.01, 0.25
# The first request waits so long for the first answers of the members, with which later ones are compared.
FIRST_TURN_S = 2.0
# A member that refuses the row so often before it has answered it once is not asked any more.
MOST_REFUSALS = 3
# The same row gives the same scores but for rounding; other weights differ by more than this share of the largest.
TOLERANCE = 1e-3
Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer of a version of a model about the row.

    Args:
        scores: (1, k); None where it refused the row, or was not asked yet.
        is_absent: whether the server has no such version ready.
        began_s: on the monotonic clock, when it was asked; 0 where it was not.
        until_s: when it is asked again, where nothing hurries.
    """

    scores: Rows | None = None
    is_absent: bool = False
    began_s: float = 0.0
    until_s: float = 0.0


class MemberProbes:
    """The answers of a cascade's models about one row.

    Args:
        pb_utils: the server's Python module.
        calls: asks members.
        row: (1, *dims), that of a request, so that it is one they understand.
    """

    def __init__(self, pb_utils: Any, calls: MemberCalls, row: Rows) -> None:
        self._pb = pb_utils
        self._calls = calls
        self._row = row.copy()
        self._found: dict[Key, Probe] = {}
        self._first: dict[str, Rows] = {}
        self._refusals: dict[str, int] = {}
        self._hurry_until_s: dict[str, float] = {}
        self._turned = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="committee-probes", daemon=True)

    def begin(self, keys: Iterable[Key]) -> None:
        """Starts to ask these, and waits a while for their first answers.

        Args:
            keys: names of models with the version to ask, None for any.
        """
        for key in keys:
            self._found[key] = Probe()
        self._thread.start()
        self._turned.wait(FIRST_TURN_S)

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def of(self, name: str, version: int | None) -> Probe:
        """The last answer; a version that was not asked yet will be."""
        return self._found.setdefault((name, version), Probe())

    def is_there(self, name: str, version: int | None) -> bool:
        """Whether the server had a version ready when it was asked last."""
        probe = self.of(name, version)
        if probe.began_s:
            return not probe.is_absent
        # Not asked yet: another version of the model stands for it.
        return not any(one.is_absent for (other, _), one in list(self._found.items()) if other == name)

    def hurry(self, name: str, *, until_s: float) -> None:
        """Asks a model at every turn for a while."""
        self._hurry_until_s[name] = until_s

    def has_first(self, name: str) -> bool:
        """Whether a model has answered the row."""
        return name in self._first

    def are_first(self, name: str, scores: Rows) -> bool:
        """Whether scores are those that a model gave at first, but for rounding."""
        before = self._first[name]
        if before.shape != scores.shape:
            return False
        most = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
        return bool(np.allclose(before, scores, rtol=0, atol=TOLERANCE * most, equal_nan=True))

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception as error:  # the next turn may go well
                self._pb.Logger.log_error(f"committee: probes: {type(error).__name__}: {error}")
            self._turned.set()
            self._stop.wait(TURN_S)

    def _turn(self) -> None:
        for (name, version), known in list(self._found.items()):
            now_s = time.monotonic()
            is_due = now_s >= known.until_s or now_s < self._hurry_until_s.get(name, 0.0)
            if is_due and known.until_s < float("inf") and not self._stop.is_set():
                self._found[name, version] = self._asked(name, version)

    def _asked(self, name: str, version: int | None) -> Probe:
        began_s = time.monotonic()
        said = self._calls.ask_about_row(name, self._row, version=version)
        ended_s = time.monotonic()
        until_s = ended_s + max(PROBE_S, (ended_s - began_s) / PROBE_SHARE)
        if not isinstance(said, Refusal):
            self._first.setdefault(name, said)
            return Probe(said, False, began_s, until_s)
        if not said.is_absent and name not in self._first:
            self._refusals[name] = self._refusals.get(name, 0) + 1
            if self._refusals[name] == MOST_REFUSALS:
                until_s = float("inf")
                text = (
                    f"{name} refuses the first request's row, so that it is watched by its files only: {said.text}"
                )
                self._pb.Logger.log_warn(f"committee: {text}")
        return Probe(None, said.is_absent, began_s, until_s)
