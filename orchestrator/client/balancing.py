"""Which of several servers gets the next request: health, least outstanding requests, ejection and return.

This is the state without clock and I/O: times are handed in, in seconds of one monotonic clock. The ejection of a
server that fails is what Envoy calls outlier detection (consecutive failures, an ejection time that grows with the
number of ejections, a largest share of ejected servers):
https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier
"""

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class BalancingPolicy:
    """When a server gets no requests, and when it gets them again.

    Envoy's own defaults are meant for hundreds of hosts: 30 s, 300 s and 10 %.
    """

    attempt_s: float = float("inf")  # longest wait for an answer of one server; then a neighbour is asked
    check_s: float = 1.0  # pause between two health checks of a server
    check_timeout_s: float = 2.0  # for each call of a health check
    consecutive_failures: int = 5  # that eject a server
    base_ejection_s: float = 5.0  # times the number of ejections that it had of late
    max_ejection_s: float = 60.0
    max_ejection_percent: int = 50  # of all servers; one may always be ejected


BALANCING = BalancingPolicy()


@dataclass(eq=False)
class BalancedServer:
    """What is known of one server, and the counts of its share."""

    address: str
    outstanding: int = 0  # requests under way there
    answered: int = 0
    failed: int = 0  # requests that went to a neighbour, or failed
    ejections: int = 0
    # Why it is not asked, by model; under an empty name what holds for all of them.
    reasons: dict[str, str] = field(default_factory=dict)
    # By model, what it says of a model that is not the one its neighbours serve; then it is never asked about it.
    others: dict[str, str] = field(default_factory=dict)
    in_a_row: int = 0  # failures since the last answer; back from an ejection, one more ejects it again
    ejected_until_s: float = float("-inf")
    # Ejections that count for the length of the next one; a quiet time takes one away.
    backoff: int = 0
    quiet_since_s: float = 0.0
    last_fault: str = ""
    last_pick: int = 0  # number of the pick that chose it last

    def reason(self, model: str, now_s: float) -> str | None:
        """Why it is not asked about a model now; None where it is."""
        known = self.reasons.get("") or self.reasons.get(model) or self.others.get(model)
        if known is None and now_s < self.ejected_until_s:
            return f"{self.in_a_row} failures in a row, the last: {self.last_fault}"
        return known


class Balancer:
    """The servers, and the choice among them.

    Attributes:
        servers: in the order of the addresses.
        policy: when one gets no requests.
    """

    def __init__(self, addresses: Collection[str], policy: BalancingPolicy) -> None:
        self.servers = [BalancedServer(address) for address in addresses]
        self.policy = policy
        self._picks = 0

    def pick(self, model: str, now_s: float, *, without: Collection[BalancedServer] = ()) -> BalancedServer | None:
        """The server with the fewest requests under way that may be asked, the longest unasked among equals.

        Where none may be asked, any is, in case its fault has passed, but for those that serve something else.

        Args:
            model: that is asked for.
            now_s: the time.
            without: servers that have failed this request. With them left out there may be none, then None.
        """
        able = self.able(model, now_s) or [one for one in self.servers if model not in one.others]
        left = [one for one in able if one not in without]
        if not left:
            return None
        self._picks += 1
        server = min(left, key=lambda one: (one.outstanding, one.last_pick))
        server.last_pick = self._picks
        return server

    def able(self, model: str, now_s: float) -> list[BalancedServer]:
        """The servers that may be asked about a model."""
        return [one for one in self.servers if one.reason(model, now_s) is None]

    def succeeded(self, server: BalancedServer) -> None:
        """Counts an answer."""
        server.answered += 1
        server.in_a_row = 0

    def failed(self, server: BalancedServer, now_s: float, fault: str, *, counts: bool = True) -> bool:
        """Counts a failed request; whether the server is ejected by it.

        Args:
            server: that failed.
            now_s: the time.
            fault: what it said.
            counts: False for a failure that says nothing against it, such as a full queue.
        """
        server.failed += 1
        if not counts:
            return False
        server.in_a_row += 1
        server.last_fault = fault
        if server.in_a_row < self.policy.consecutive_failures or now_s < server.ejected_until_s:
            return False
        ejected = 1 + sum(now_s < one.ejected_until_s for one in self.servers)
        if ejected > 1 and 100 * ejected > self.policy.max_ejection_percent * len(self.servers):
            return False
        server.ejections += 1
        server.backoff += 1
        lasts_s = min(server.backoff * self.policy.base_ejection_s, self.policy.max_ejection_s)
        server.ejected_until_s = server.quiet_since_s = now_s + lasts_s
        return True

    def checked(self, server: BalancedServer, now_s: float, reasons: dict[str, str]) -> None:
        """Takes in a health check: why the server is not to be asked, by model; empty where all is well."""
        server.reasons = reasons
        if server.backoff and now_s - server.quiet_since_s >= self.policy.base_ejection_s:
            server.backoff -= 1
            server.quiet_since_s = now_s
