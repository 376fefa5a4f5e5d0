"""When to try again: only where the server said so, ever more slowly, and never past the time limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one request may take and how often it may be repeated.

    Args:
        timeout_s: from the first attempt to the last answer.
        retries: further attempts after the first, on UNAVAILABLE only.
        first_delay_s: pause before the first repetition; it doubles each time.
        max_delay_s: no pause is longer (before jitter).
    """

    timeout_s: float = 30.0
    retries: int = 3
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0

    def delay_s(self, attempt: int, *, elapsed_s: float, jitter: float) -> float | None:
        """The pause after a failed attempt, or None to give up.

        Args:
            attempt: 0 for the first.
            elapsed_s: since the first attempt began.
            jitter: uniform in [0, 1). It spreads the pause over half to one and a half of its length, so
                that clients which failed together do not come back together.
        """
        if attempt >= self.retries:
            return None
        pause = min(self.max_delay_s, self.first_delay_s * 2.0**attempt) * (0.5 + jitter)
        return None if elapsed_s + pause >= self.timeout_s else pause
