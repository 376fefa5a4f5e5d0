"""Validating descriptions: every unknown, missing or wrong field of a document is reported at once."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from orchestrator.errors import SpecError

T = TypeVar("T")
# A Triton model name becomes a folder and a metric label, so only characters that are safe in both are allowed.
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}\Z")


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
        self.check(field, good, f"got {value!r}, expected a model name of letters, digits, '_', '.', '-'")

    def text(self, field: str, value: object) -> None:
        """A non-empty string."""
        good = isinstance(value, str) and bool(value)
        self.check(field, good, f"got {value!r}, expected a non-empty string")

    def one_of(self, field: str, value: object, known: Iterable[str]) -> None:
        """One of the known words."""
        words = list(known)
        self.check(field, value in words, f"got {value!r}, expected one of {', '.join(words)}")

    def integer(self, field: str, value: object, *, low: int, high: int | None = None) -> None:
        """A whole number (bool is not one) in [low, high]."""
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value
        good = good and (high is None or value <= high)  # type: ignore[operator]
        upper = "" if high is None else f" and at most {high}"
        self.check(field, good, f"got {value!r}, expected a whole number of at least {low}{upper}")

    def positive(self, field: str, value: object) -> None:
        """A finite number above zero."""
        self.check(field, is_finite(value) and value > 0, f"got {value!r}, expected a finite number above 0")

    def not_negative(self, field: str, value: object, *, high: float | None = None) -> None:
        """A finite number of at least zero."""
        good = is_finite(value) and value >= 0 and (high is None or value <= high)
        upper = "" if high is None else f" and at most {high:g}"
        self.check(field, good, f"got {value!r}, expected a finite number of at least 0{upper}")

    def share(self, field: str, value: object) -> None:
        """A number from 0 to 1, or None where it is not known."""
        good = value is None or (is_finite(value) and 0 <= value <= 1)
        self.check(field, good, f"got {value!r}, expected a number from 0 to 1")

    def threshold(self, field: str, value: object, *, most: float) -> None:
        """A finite number, of so large an amount at most, or None, which no score reaches."""
        good = value is None or (is_finite(value) and -most <= value <= most)
        expected = f"a finite number from {-most:g} to {most:g}, or null for never"
        self.check(field, good, f"got {value!r}, expected {expected}")

    def sha256(self, field: str, value: object) -> None:
        """A hash in hexadecimal digits."""
        good = isinstance(value, str) and len(value) == 64
        self.check(field, good, f"got {value!r}, expected 64 hexadecimal digits")

    def class_names(self, field: str, value: Iterable[object]) -> None:
        """Texts that a label file can hold, one per line."""
        for name in value:
            good = isinstance(name, str) and not set(name) & set("\r\n")
            self.check(field, good, f"got {name!r}, expected text without line breaks")

    def close(self) -> None:
        """Raises SpecError when anything was found."""
        if self.found:
            raise SpecError(self.subject, self.found, of_arguments=self.of_arguments)


def is_finite(value: object) -> TypeGuard[float]:
    """True for an int or float that is a finite float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


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


def text_from_json(value: object) -> str:
    """The text of a file that people read, too; equal values give equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_from_text(text: str, subject: str) -> Any:
    """The JSON value of a text.

    Raises:
        SpecError: truncated or malformed text, or the NaN and Infinity that Python alone accepts.
    """

    def refusal(message: str) -> SpecError:
        return SpecError(subject, {"document": message})

    def refuse(word: str) -> object:
        raise refusal(f"got {word}, expected a finite number, or null for never")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        got = f"JSON that ends or breaks at line {error.lineno} column {error.colno} ({error.msg})"
        raise refusal(f"got {got}, expected one complete JSON document") from error
    except RecursionError as error:
        raise refusal("got JSON nested too deeply to read, expected a few levels") from error


def text_of_file(path: Path, subject: str) -> str:
    """The file's text; SpecError where the file is missing, not readable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError(subject, {"file": f"{path} does not exist"}) from error
    except UnicodeDecodeError as error:
        raise SpecError(subject, {"file": f"{path} is not UTF-8 text"}) from error
    except OSError as error:
        raise SpecError(subject, {"file": f"{path} cannot be read ({error.strerror})"}) from error


def value_from_json(text: str) -> Any:
    """The value of a JSON text that somebody else wrote.

    Raises:
        ValueError: it is no JSON, is nested too deep, or holds half a character, which no file can.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value
