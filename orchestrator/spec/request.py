"""What a cascade is asked with: its input tensor, how a client makes a row of a picture, and forwarded headers."""

import importlib
import math
import re
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import shown
from orchestrator.spec.validation import MOST_PX, MOST_SIZE, Faults

NON_FINITE_INPUT = ("reject", "pass")
# Triton's numeric dtypes -> numpy's. BF16 has no numpy dtype, and BYTES would have to be parsed row by row.
INPUT_DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a client turns an image file into one row; the server never runs it."""

    mode: str  # "L" (one channel) or "RGB"
    height_px: int  # size after resizing
    width_px: int  # size after resizing
    resize_px: int | None = None  # shorter side before a centre crop; None resizes straight to the size
    value_min: float = 0.0  # what pixel 0 and pixel 255 become
    value_max: float = 255.0  # what pixel 0 and pixel 255 become
    invert: bool = False  # True where the model was trained on light strokes over dark ground
    layout: str = "CHW"  # "CHW" or "HWC"

    def __post_init__(self) -> None:
        faults = Faults("preprocess")
        faults.one_of("mode", self.mode, ("L", "RGB"))
        faults.one_of("layout", self.layout, ("CHW", "HWC"))
        faults.integer("height_px", self.height_px, low=1, high=MOST_PX)
        faults.integer("width_px", self.width_px, low=1, high=MOST_PX)
        if self.resize_px is not None:
            faults.integer("resize_px", self.resize_px, low=1, high=MOST_PX)
        for name in ("value_min", "value_max"):
            faults.number(name, getattr(self, name), low=-MOST_SIZE, high=MOST_SIZE)
        faults.check("invert", isinstance(self.invert, bool), f"got {shown(self.invert)}, expected true or false")
        faults.close()


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The one tensor every member shares."""

    name: str  # tensor name, the same in the cascade and (for copy-free forwarding) in the members
    dtype: str  # Triton dtype, e.g. "FP32" or "UINT8".
    dims: tuple[int, ...]  # shape of one row, without the batch axis, all sizes fixed
    # "reject" answers INVALID_ARGUMENT to NaN or infinity, "pass" hands them to the members
    non_finite: str = "reject"
    preprocess: Preprocess | None = None  # how clients build a row from an image file; None where nothing says

    def __post_init__(self) -> None:
        faults = Faults("input")
        faults.text("name", self.name)
        faults.one_of("dtype", self.dtype, INPUT_DTYPES)
        faults.check("dims", len(self.dims) > 0, "got none, expected at least one size")
        for size in self.dims:
            faults.integer("dims", size, low=1, high=MOST_SIZE)
        if not faults.found:
            values = math.prod(self.dims)
            faults.check("dims", values <= MOST_SIZE, f"got {values} values, expected at most {MOST_SIZE}")
        faults.one_of("non_finite", self.non_finite, NON_FINITE_INPUT)
        faults.close()

    @property
    def numpy_dtype(self) -> str:
        """Numpy name of the dtype."""
        return INPUT_DTYPES[self.dtype]


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
        return f"got {shown(pattern)}, expected a regular expression, as x-.*|traceparent, or ^$ for no header"
    try:
        header_regex(pattern)
        ways = MAX_HEADER_NAME * _ways(_parser.parse(pattern))
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        return f"got {shown(pattern)}, expected a regular expression ({error})"
    if ways > _MAX_WAYS:
        return (
            f"got {shown(pattern)}, which could take too long on some names, expected at most two repetitions in "
            "a row and none inside another, such as x-.*|traceparent"
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
