"""Text and JSON that people and other programs write: the one place that reads them, whatever they hold."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError, first_few, repeated
from orchestrator.files import irregular_kind

# Far beyond a cascade with a million class names; a larger file is another file under that name.
MOST_TEXT_BYTES = 1 << 28
# Descriptions have six levels. Python's own functions fail at some hundred.
MOST_LEVELS = 64
# Letters of the longest number: a float64 written out has 309 digits.
MOST_DIGITS = 400
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def text_of_file(path: Path, subject: str) -> str:
    """The text of a file; SpecError, by that subject, where `text_from_path` refuses it."""
    try:
        return text_from_path(path)
    except ValueError as error:
        raise SpecError(subject, {"file": f"{path} {error}"}) from error


def text_from_path(path: Path, *, newline: str | None = None) -> str:
    """The text of a file, UTF-8, without the byte order mark that some editors put first.

    Every kind of line end becomes a line feed; with `newline` empty all stay as they are.

    Raises:
        ValueError: the file, of which the text is the predicate, is missing, cannot be read, is no regular file,
            far too large or not UTF-8.
    """
    try:
        kind = irregular_kind(path)
        size = path.stat().st_size
        if kind is None and size <= MOST_TEXT_BYTES:
            with path.open(encoding="utf-8-sig", newline=newline) as file:
                return file.read()
        fault = f"is {kind}" if kind else f"has {size} bytes, expected at most {MOST_TEXT_BYTES}"
    except FileNotFoundError:
        fault = "does not exist"
    except UnicodeDecodeError:
        fault = "is not UTF-8 text"
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except ValueError:
        # Python refuses the name itself before it asks the system.
        fault = "cannot be a file: its name holds a null character"
    raise ValueError(fault)


def json_from_text(text: str, subject: str) -> Any:
    """The JSON value of a text; SpecError, by that subject, where `value_from_json` refuses it."""
    try:
        return value_from_json(text)
    except ValueError as error:
        raise SpecError(subject, {"document": str(error)}) from error


def value_from_json(text: str) -> Any:
    """The value of a JSON text that somebody else wrote: one that can be written again, and be worked with.

    Raises:
        ValueError: in one line, what is wrong: truncated or malformed text, a key twice in an object, NaN and
            infinities, which Python alone accepts, numbers no float64 holds, half characters, too many levels.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_int=_whole, parse_float=_real, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        got = f"JSON that ends or breaks at line {error.lineno} column {error.colno} ({error.msg})"
        raise ValueError(f"got {got}, expected one complete JSON document") from error
    except RecursionError as error:
        raise ValueError("got JSON nested too deep to read, expected a few levels") from error
    _check(value)
    return value


def _refuse(word: str) -> object:
    raise ValueError(f"got {word}, expected a finite number, or null for never")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"got a number of {len(digits)} digits, expected at most {MOST_DIGITS}")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), -float("inf")):
        raise ValueError(f"got the number {digits[:20]}, expected one that float64 can hold")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = repeated(names)
        raise ValueError(f"got {first_few(twice)!a} twice in one object, expected every key once")
    return value


def _check(value: object) -> None:
    """Refuses too many levels and half characters, level by level: recursion is what deep values break."""
    level = [value]
    for _ in range(MOST_LEVELS):
        texts = [part for part in level if isinstance(part, str)]
        texts += [name for part in level if isinstance(part, Mapping) for name in part]
        half = next((part for part in texts if not part.isascii() and _HALF_CHARACTER.search(part)), None)
        if half is not None:
            raise ValueError(f"got half a character in {half[:40]!a}, expected whole ones")
        inner = [
            part.values() if isinstance(part, Mapping) else part
            for part in level
            if isinstance(part, list | Mapping)
        ]
        level = list(itertools.chain.from_iterable(inner))
        if not level:
            return
    raise ValueError(f"got JSON nested too deep to use, expected at most {MOST_LEVELS} levels")


def text_from_json(value: object) -> str:
    """The text of a file that people read, too; equal values give equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
