"""A plan's `header_pattern`: which names of request parameters are forwarded headers, as a regular expression."""

import importlib
import math
import re
from typing import Any

# Nobody forwards headers with longer names, so the pattern is never tried on them.
MAX_HEADER_NAME = 128
# Names come from clients and Python's matcher backtracks; this bound keeps the time for one name to milliseconds.
_MAX_WAYS = 2.0**23
# `sre_parse` under another name from Python 3.11 on.
_parser: Any = getattr(re, "_parser", None) or importlib.import_module("sre_parse")


def header_regex(pattern: str) -> re.Pattern[str]:
    """The pattern compiled; it may match anywhere in a name, in any case, as with Triton's own option."""
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


def header_pattern_fault(pattern: object) -> str | None:
    """What is wrong with a pattern; None where it can be used."""
    if not isinstance(pattern, str) or not pattern:
        return f"got {pattern!r}, expected a regular expression, such as x-.*|traceparent, or ^$ for no header"
    try:
        header_regex(pattern)
        ways = MAX_HEADER_NAME * _ways(_parser.parse(pattern))
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return f"got {pattern!r}, expected a regular expression ({error})"
    if ways > _MAX_WAYS:
        return (
            f"got {pattern!r}, which could take too long on some names, expected at most two repetitions in a row "
            "and none inside another, such as x-.*|traceparent"
        )
    return None


def _ways(parsed: Any) -> float:
    """Upper bound of the number of ways in which an expression can match from one place in the longest name."""
    return math.prod(_ways_of(str(code), value) for code, value in parsed)


def _ways_of(code: str, value: Any) -> float:
    if code in ("ASSERT", "ASSERT_NOT", "GROUPREF", "GROUPREF_EXISTS"):
        # Each of these is tried from every place in a name, and no header name needs one.
        return math.inf
    if code == "BRANCH":
        return math.fsum(_ways(branch) for branch in value[1])
    if code == "SUBPATTERN":
        return _ways(value[-1])
    if code == "ATOMIC_GROUP":
        return _ways(value)
    if code.endswith("REPEAT"):
        return _ways_of_repeat(*value)
    return 1


def _ways_of_repeat(least: int, most: int, repeated: Any) -> float:
    each = _ways(repeated)
    most = min(int(most), max(int(least), MAX_HEADER_NAME))
    if each == 1:
        return most - least + 1
    # The largest term alone shows that the sum is too large; computing it could overflow.
    return math.inf if most * math.log2(each) > 64 else math.fsum(each**count for count in range(least, most + 1))
