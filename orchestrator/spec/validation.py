"""Validating descriptions: every unknown, missing or wrong field of a document is reported at once."""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

from orchestrator.errors import SpecError, shown

T = TypeVar("T")
# A Triton model name becomes a folder and a metric label, so only characters that are safe in both are allowed.
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")


# Bounds of numbers that say how much there is of something: far beyond any use, and harmless in sums and products.
MOST_CLASSES = 1 << 24  # the largest whole numbers that float32 tells apart
MOST_ROWS = 1 << 20  # in one call, or waiting
MOST_SIZE = 2**31 - 1  # along one axis of a tensor, and values of a row in all
MOST_INSTANCES = 1024
MOST_VERSION = 2**63 - 1  # a Triton version is a signed 64-bit number
MOST_PX = 1 << 16
MOST_COUNTED = 2**53  # of what is only counted: JSON's readers tell whole numbers apart up to here
MOST_THRESHOLD = 1000
LEAST_RATE, MOST_RATE = 1e-6, 1e9  # rows per second: from one in eleven days
DAY_US = 86_400_000_000  # past any client's patience, and most likely a wrong unit
# The core and the served `cost` are float32, and so are sums of costs.
LEAST_COST, MOST_COST = 1e-30, 1e30
COSTS = f"0, or numbers from {LEAST_COST:g} to {MOST_COST:g}"


class Faults:
    """Faults found so far in one description; `close` raises them all as one SpecError, see there.

    `prefix` is put before every field.
    """

    def __init__(self, subject: str, prefix: str = "", *, of_arguments: bool = False) -> None:
        self.subject = subject
        self.prefix = prefix
        self.of_arguments = of_arguments
        self.found: dict[str, str] = {}

    def add(self, field: str, text: str) -> None:
        """Adds a fault unless the field has one: later faults of a field usually follow from its first."""
        self.found.setdefault(f"{self.prefix}{field}", text)

    def check(self, field: str, good: bool, text: str) -> None:
        """Adds the fault unless `good`."""
        if not good:
            self.add(field, text)

    def name(self, field: str, value: object) -> None:
        """A model name: letters, digits, _ . - and no path separators."""
        good = isinstance(value, str) and NAME.match(value) is not None
        self.check(field, good, f"got {shown(value)}, expected a model name of letters, digits, '_', '.', '-'")

    def text(self, field: str, value: object) -> None:
        """A non-empty string."""
        good = isinstance(value, str) and bool(value) and "\0" not in value
        self.check(field, good, f"got {shown(value)}, expected a non-empty string without null characters")

    def one_of(self, field: str, value: object, known: Iterable[str]) -> None:
        """One of the known words."""
        words = list(known)
        self.check(field, value in words, f"got {shown(value)}, expected one of {', '.join(words)}")

    def integer(self, field: str, value: object, *, low: int, high: int) -> None:
        """A whole number (bool is not one) in [low, high]."""
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        expected = f"a whole number of at least {low} and at most {high}"
        self.check(field, good, f"got {shown(value)}, expected {expected}")

    def number(self, field: str, value: object, *, low: float, high: float) -> None:
        """A number in [low, high]."""
        good = is_finite(value) and low <= value <= high
        self.check(field, good, f"got {shown(value)}, expected a number from {low:g} to {high:g}")

    def positive(self, field: str, value: object) -> None:
        """A finite number above zero."""
        self.check(field, is_finite(value) and value > 0, f"got {shown(value)}, expected a finite number above 0")

    def rate(self, field: str, value: object) -> None:
        """Rows per second."""
        self.number(field, value, low=LEAST_RATE, high=MOST_RATE)

    def threshold(self, field: str, value: object) -> None:
        """A number that a score, which is in [0, 1], may be held against, or None, which no score reaches."""
        good = value is None or (is_finite(value) and abs(value) <= MOST_THRESHOLD)
        expected = f"a number from {-MOST_THRESHOLD} to {MOST_THRESHOLD}, or null for never"
        self.check(field, good, f"got {shown(value)}, expected {expected}")

    def cost(self, field: str, value: object) -> None:
        """What a row costs, in any unit."""
        self.check(field, is_cost(value), f"got {shown(value)}, expected {COSTS}")

    def sha256(self, field: str, value: object) -> None:
        """A hash in hexadecimal digits."""
        good = isinstance(value, str) and len(value) == 64
        self.check(field, good, f"got {shown(value)}, expected 64 hexadecimal digits")

    def file(self, sha256: object, version: object) -> None:
        """Hash of a model file and the number of its version, where they are given."""
        if sha256 is not None:
            self.sha256("sha256", sha256)
        if version is not None:
            self.integer("version", version, low=1, high=MOST_VERSION)

    def tensor_map(self, field: str, value: object) -> None:
        """Names of a model's tensors and of those of the cascade that they get."""
        good = isinstance(value, dict) and all(
            isinstance(name, str) and name and "\0" not in name for pair in value.items() for name in pair
        )
        self.check(field, good, f"got {shown(value)}, expected an object of names of tensors")

    def class_names(self, field: str, value: Iterable[object]) -> None:
        """Texts that a label file can hold, one per line."""
        for name in value:
            good = isinstance(name, str) and not set(name) & set("\r\n\0")
            self.check(field, good, f"got {shown(name)}, expected text without line breaks")

    def close(self) -> None:
        """Raises SpecError when anything was found."""
        if self.found:
            raise SpecError(self.subject, self.found, of_arguments=self.of_arguments)


def is_finite(value: object) -> TypeGuard[float]:
    """True for an int or float that is a finite float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_cost(value: object) -> TypeGuard[float]:
    """Whether a number may be what a row costs; see COSTS."""
    return is_finite(value) and (value == 0 or LEAST_COST <= value <= MOST_COST)


# (path of the value in the document, its JSON value, the faults so far) -> the converted value
Convert = Callable[[str, Any, Faults], Any]


def built(cls: type[T], value: object, subject: str, convert: Mapping[str, Convert]) -> T:
    """An instance of a dataclass, which validates values, from a whole JSON document, called `subject` in errors.

    A field whose JSON key is another word names that key in its metadata. `convert` has converters for the fields
    that are not plain JSON values.

    Raises:
        SpecError: with every fault found, keyed by field.
    """
    faults = Faults(subject)
    made = _build(cls, "", value, faults, convert)
    faults.close()
    assert made is not None
    return made


def _build(cls: type[T], path: str, value: object, faults: Faults, convert: Mapping[str, Convert]) -> T | None:
    """An instance from the object that lies at `path` in a document, or None after adding its faults."""
    if not isinstance(value, dict):
        faults.add(path or "document", f"got {type(value).__name__}, expected an object")
        return None
    before = len(faults.found)
    fields = {field.metadata.get("key", field.name): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    _check_keys(fields, path, value, faults)
    known = {
        fields[key].name: convert[key](_join(path, key), item, faults)
        if key in convert and item is not None
        else item
        for key, item in value.items()
        if key in fields
    }
    if len(faults.found) > before:
        return None
    try:
        return cls(**known)
    except SpecError as error:
        for name, text in error.faults.items():
            faults.add(_join(path, name), text)
    except (TypeError, ValueError) as error:
        faults.add(path or "document", f"cannot be read ({error})")
    return None


def _check_keys(
    fields: dict[str, dataclasses.Field[Any]], path: str, value: dict[str, Any], faults: Faults
) -> None:
    for key in value:
        faults.check(_join(path, key), key in fields, f"unknown field, expected one of {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            faults.add(_join(path, name), "missing")
        if name in value and value[name] is None and "None" not in str(field.type):
            faults.add(_join(path, name), "got null, expected a value")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def array_of(item: Convert) -> Convert:
    """A converter for a JSON array, giving a tuple."""

    def convert(path: str, value: object, faults: Faults) -> tuple[Any, ...] | None:
        if not isinstance(value, list):
            faults.add(path, f"got {type(value).__name__}, expected an array")
            return None
        return tuple(item(f"{path}[{index}]", part, faults) for index, part in enumerate(value))

    return convert


# A converter for an array of plain values, which the dataclass checks.
VALUES = array_of(lambda _path, value, _faults: value)


def object_of(cls: type[Any], **convert: Convert) -> Convert:
    """A converter for a JSON object, giving an instance of the dataclass; `convert` as for `built`."""
    return lambda path, value, faults: _build(cls, path, value, faults, convert)
