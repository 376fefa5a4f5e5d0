"""What one request may ask of the cascade, read from its parameters.

Triton may forward headers among them: with `--http-header-forward-pattern` or `--grpc-header-forward-pattern` the
headers of a request arrive as strings under names of any case. They say nothing about the decision.
"""

import difflib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import InputError
from orchestrator.spec.request import MAX_HEADER_NAME, header_regex
from orchestrator.spec.validation import DAY_US

# What the protocol can carry.
_MAX_INTEGER = 2**63 - 1
# A caller's own words go back to it shortened.
MAX_ECHO = 40
PARAMETERS = {
    "min_stage": "no exit before this stage",
    "max_stage": "answer at this stage at the latest",
    "threshold_shift": "added to every finite threshold, -1 to 1, positive is stricter",
    "deadline_us": "microseconds from arrival until the best answer so far is due",
    "deadline_at_us": "the same as a point in Unix time, in microseconds; the wait in front of the cascade counts",
    "gear": "judge by this gear's thresholds whatever the load, 0 for the plan's own",
}
# The protocol's own request parameters: they say nothing about the decision and are not ours to refuse.
PROTOCOL = frozenset(
    ["binary_data_output", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout"]
)
# Request headers whose names are one word; all others have a dash, which no parameter of a cascade has. Those that
# are registered and sent by clients and proxies, those of tracing (W3C, B3, New Relic), and the usual API key.
_ONE_WORD = """
accept apikey authorization b3 baggage connection cookie cookie2 date digest dnt dpop expect forwarded from host
link newrelic origin pragma priority range referer signature soapaction te timeout traceparent tracestate trailer
upgrade urgency via warning
"""
ONE_WORD = frozenset(_ONE_WORD.split())
# Names whose answer is kept; clients could send others for ever.
_MAX_KEPT = 1024


class ForwardedHeaders:
    """Tells forwarded headers from parameters of a cascade, which no header hides.

    Args:
        pattern: what names headers have, searched for in any case; None for names with a dash, or of one word
            that is a header's.
    """

    def __init__(self, pattern: str | None = None) -> None:
        self._regex = None if pattern is None else header_regex(pattern)
        self._kept = functools.lru_cache(_MAX_KEPT)(self._is_header_name)

    def without(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """The parameters that are no headers."""
        return {name: value for name, value in parameters.items() if not self.is_header(name, value)}

    def is_header(self, name: str, value: object) -> bool:
        """Whether a parameter is a forwarded header; those are strings, whatever they mean."""
        if not isinstance(value, str):
            return False
        return self._kept(name) if len(name) <= MAX_HEADER_NAME else self._is_header_name(name)

    def _is_header_name(self, name: str) -> bool:
        if name in PARAMETERS:
            return False
        if self._regex is not None:
            return len(name) <= MAX_HEADER_NAME and self._regex.search(name) is not None
        lower = name.lower()
        if lower in ONE_WORD or lower.startswith(":"):
            return True
        # `max-stage` is no header anybody sends, but a parameter with a dash where an underscore belongs.
        return "-" in lower and lower.replace("-", "_") not in PARAMETERS


_HEADERS = ForwardedHeaders()


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What one request asks for; it applies to all of its rows.

    Args:
        min_stage: no exit before it.
        max_stage: answered there at the latest; None for no limit.
        threshold_shift: added to every finite threshold.
        deadline_us: microseconds from arrival until an answer is due, None for no deadline; of a request read with
            a `deadline_at_us` the smaller of both, zero or less where it came too late.
        deadline_at_us: the same in Unix time, so that the wait in front of the cascade counts.
        left_us: microseconds from arrival until `deadline_at_us`, None without one.
        gear: whose thresholds decide; None leaves it to the load.
    """

    min_stage: int = 0
    max_stage: int | None = None
    threshold_shift: float = 0.0
    deadline_us: int | None = None
    deadline_at_us: int | None = None
    left_us: int | None = None
    gear: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether rows exit as the plan has it; a deadline does not change that."""
        return self.min_stage == 0 and self.max_stage is None and self.threshold_shift == 0 and self.gear is None


DEFAULT = Policy()


def policy_from_parameters(
    parameters: Mapping[str, object],
    stages: int,
    gears: int = 1,
    *,
    now_us: int,
    headers: ForwardedHeaders = _HEADERS,
) -> Policy:
    """The policy a request asks for.

    Args:
        parameters: as the request carries them.
        stages: number of stages of the cascade.
        gears: number of its gears, the plan's own thresholds among them.
        now_us: Unix time of its arrival in microseconds, which turns `deadline_at_us` into time left.
        headers: tells headers that Triton forwards as parameters, which say nothing about the decision.

    Raises:
        InputError: an unknown parameter, or a value of the wrong type or out of range.
    """
    values = headers.without(parameters)
    if not values:
        return DEFAULT
    values = {k: v for k, v in values.items() if k not in PROTOCOL and not k.startswith("triton_")}
    unknown = sorted(set(values) - set(PARAMETERS))
    if unknown:
        raise _unknown_error(unknown, values)
    within_us = _integer(values, "deadline_us", 1, high=DAY_US)
    left_us = _left(values, now_us)
    gear = _integer(values, "gear", 0, high=gears - 1)
    policy = Policy(
        min_stage=_integer(values, "min_stage", 0, high=stages - 1) or 0,
        max_stage=_integer(values, "max_stage", 0, high=stages - 1),
        threshold_shift=_shift(values.get("threshold_shift", 0.0)),
        deadline_us=min((us for us in (within_us, left_us) if us is not None), default=None),
        deadline_at_us=None if left_us is None else now_us + left_us,
        left_us=left_us,
        # A cascade that has the plan's own gear alone is in it anyway.
        gear=gear if gears > 1 else None,
    )
    if policy == DEFAULT:
        return DEFAULT
    if policy.max_stage is not None and policy.min_stage > policy.max_stage:
        raise _value_error("min_stage", policy.min_stage, f"at most max_stage {policy.max_stage}")
    return policy


def _unknown_error(unknown: Sequence[str], values: Mapping[str, object]) -> InputError:
    named = ", ".join(repr(name[:MAX_ECHO]) for name in unknown[:3])
    first = unknown[0][:MAX_ECHO].lower().replace("-", "_")
    fix = None
    if nearest := difflib.get_close_matches(first, PARAMETERS, n=1):
        fix = f"did you mean {nearest[0]}?"
    elif isinstance(values[unknown[0]], str):
        fix = "if it is a header that Triton forwards, name it in the plan's header_pattern"
    return InputError("request parameters", got=named, expected=f"only {', '.join(PARAMETERS)}", fix=fix)


def _value_error(name: str, value: object, expected: str) -> InputError:
    return InputError(f"request parameter {name}", got=repr(value)[:MAX_ECHO], expected=expected)


def _integer(values: Mapping[str, object], name: str, low: int, *, high: int = _MAX_INTEGER) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _value_error(name, value, f"a whole number from {low} to {high}")
    return value


def _left(values: Mapping[str, object], now_us: int) -> int | None:
    """Microseconds until `deadline_at_us`; zero or less where it has passed."""
    at_us = _integer(values, "deadline_at_us", 0)
    if at_us is not None and abs(at_us - now_us) > DAY_US:
        # Seconds or milliseconds in place of microseconds, or clocks that have nothing to do with each other.
        clock = f"Unix time in microseconds within a day of the server's clock, which says {now_us}"
        raise _value_error("deadline_at_us", at_us, clock)
    return None if at_us is None else at_us - now_us


def _shift(given: object) -> float:
    try:
        # Some clients have no floating-point parameters, so a number in a string is taken as well.
        shift = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        shift = math.nan
    if not -1 <= shift <= 1:
        raise _value_error("threshold_shift", given, "a number from -1 to 1, positive is stricter")
    return shift
