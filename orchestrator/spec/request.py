"""What a cascade is asked with: tensors of its rows, how a client makes a row of a picture, forwarded headers."""

import importlib
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from orchestrator.errors import SpecError, shown
from orchestrator.spec.validation import MOST_COUNTED, MOST_PX, MOST_SIZE, Faults

NON_FINITE_INPUT = ("reject", "pass")
# Triton's numeric dtypes -> numpy's. BF16 has no numpy dtype.
INPUT_DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
TEXT = "STRING"  # the dtype of text, whose elements are bytes


def is_named_mask(name: str) -> bool:
    """Whether a tensor of that name is a mask."""
    return "mask" in name.lower()


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
class RowTensor:
    """A tensor that every row of a cascade has, given by the client or derived from others."""

    name: str  # the same in the cascade and (for copy-free forwarding) in the members
    dtype: str  # Triton dtype, e.g. "FP32", "UINT8" or "STRING"
    # shape of one row, without the batch axis; one size may be -1, a length that varies from row to row. A row's
    # text is one element, (1,).
    dims: tuple[int, ...]
    pad: float = 0  # what fills rows of varying length up to the longest of a batch
    # lengths that vary are grouped by: a batch holds rows between two neighbours. Longer rows than the last one
    # are refused; empty means one group without a limit
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        faults = Faults("tensor")
        faults.text("name", self.name)
        faults.one_of("dtype", self.dtype, (*INPUT_DTYPES, TEXT))
        self._check_dims(faults)
        if not faults.found and self.is_text:
            faults.check(
                "dims", self.dims == (1,), f"got {list(self.dims)}, expected [1]: a row's text is one element"
            )
        if not faults.found:
            self._check_lengths(faults)
        faults.close()

    def _check_dims(self, faults: Faults) -> None:
        faults.check("dims", len(self.dims) > 0, "got none, expected at least one size")
        for size in self.dims:
            if type(size) is not int or size != -1:
                faults.integer("dims", size, low=1, high=MOST_SIZE)
        if "dims" not in faults.found:
            free, values = self.dims.count(-1), math.prod(map(abs, self.dims))
            faults.check("dims", free < 2, f"got {free} sizes of -1, expected at most one length that varies")
            faults.check("dims", values <= MOST_SIZE, f"got {values} values, expected at most {MOST_SIZE}")

    def _check_lengths(self, faults: Faults) -> None:
        for length in self.buckets:
            faults.integer("buckets", length, low=1, high=MOST_SIZE)
        if not faults.found:
            rising = all(one < other for one, other in pairwise(self.buckets))
            faults.check("buckets", rising, f"got {shown(list(self.buckets))}, expected lengths that ascend")
        faults.number("pad", self.pad, low=-MOST_COUNTED, high=MOST_COUNTED)
        if not faults.found and not self.is_text:
            good = _holds(self.numpy_dtype, self.pad)
            faults.check("pad", good, f"got {self.pad}, expected a value of {self.dtype}")
        if self.length_axis is None:
            text = "expected it only where a size of dims is -1"
            faults.check("pad", self.pad == 0, f"got {self.pad}, {text}")
            faults.check("buckets", not self.buckets, f"got {list(self.buckets)}, {text}")

    @property
    def is_text(self) -> bool:
        """Whether rows hold text: one element of bytes each."""
        return self.dtype == TEXT

    @property
    def is_mask(self) -> bool:
        """Whether its name says that it tells values of a row from padding, which is 0 in it."""
        return is_named_mask(self.name) and self.length_axis is not None and self.pad == 0 and not self.is_text

    @property
    def length_axis(self) -> int | None:
        """Which axis of a row varies; None where its shape is fixed."""
        return self.dims.index(-1) if -1 in self.dims else None

    @property
    def numpy_dtype(self) -> str:
        """Numpy name of the dtype, "object" for text."""
        return INPUT_DTYPES.get(self.dtype, "object")


@dataclass(frozen=True, kw_only=True)
class InputSpec(RowTensor):
    """A tensor that requests bring."""

    # "reject" answers INVALID_ARGUMENT to NaN or infinity, "pass" hands them to the members
    non_finite: str = "reject"
    preprocess: Preprocess | None = None  # how clients build a row from an image file; None where nothing says

    def __post_init__(self) -> None:
        faults = Faults("input")
        try:
            super().__post_init__()
        except SpecError as error:
            faults.found |= error.faults
        faults.one_of("non_finite", self.non_finite, NON_FINITE_INPUT)
        if not faults.found and self.is_text:
            text = "expected none for text"
            faults.check("non_finite", self.non_finite == "reject", f"got {self.non_finite}, {text}")
            faults.check("preprocess", self.preprocess is None, f"got an image's, {text}")
        faults.close()


def _holds(dtype: str, value: float) -> bool:
    """Whether a dtype has a value: a whole number as it is, others rounded."""
    exact = np.array(int(value) if value == int(value) else value)
    with np.errstate(all="ignore"):
        stored = exact.astype(dtype)
    return bool(np.isfinite(stored) if stored.dtype.kind == "f" else stored == exact)


def plan_dtype(dtype: str) -> str:
    """A dtype as plans name it: requests and graphs call text BYTES."""
    return TEXT if dtype == "BYTES" else dtype


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
