"""Requests that wait for an answer, by token, and which of them named a deadline."""

from __future__ import annotations

from collections.abc import Iterable, Set

from orchestrator.bls.requests import PendingRequest

Tokens = Set[int]
NOBODY: Tokens = frozenset()


class PendingRequests:
    """Keeps what is waited for; the caller holds the lock that guards the run.

    Attributes:
        known: by token, requests nobody has answered yet.
    """

    def __init__(self) -> None:
        self.known: dict[int, PendingRequest] = {}
        self._dated: dict[int, int] = {}  # token -> deadline_ns

    def register(self, pending: PendingRequest) -> None:
        """Enters a request; once more changes nothing."""
        self.known[pending.token] = pending
        if pending.deadline_ns is not None:
            self._dated[pending.token] = pending.deadline_ns

    def forget(self, pending: PendingRequest) -> bool:
        """Takes a request out, which is then its caller's to answer; False where it is in no more."""
        self._dated.pop(pending.token, None)
        if self.known.pop(pending.token, None) is None:
            return False
        pending.answered = True
        return True

    @property
    def soonest_ns(self) -> int | None:
        """The next deadline on the monotonic clock."""
        return min(self._dated.values(), default=None)

    def take_late(self, now_ns: int) -> list[int]:
        """Tokens whose deadline has come; each is named once."""
        late = [token for token, deadline in self._dated.items() if deadline <= now_ns]
        for token in late:
            del self._dated[token]
        return late

    def older_than(self, arrived_ns: int, tokens: Iterable[int]) -> list[PendingRequest]:
        """Those of the tokens that wait since before."""
        found = (self.known.get(token) for token in tokens)
        return [one for one in found if one is not None and one.arrived_ns < arrived_ns]
