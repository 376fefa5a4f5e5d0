"""Every error Committee raises, as one tree.

A leaf exists where a caller can do something different about it. Messages follow one form on one line:
subject, got, expected, next step.
"""

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

E = TypeVar("E", bound="CommitteeError")

# Values that an error lists before "..." stands for the rest.
LISTED = 5
# Letters of a value that an error shows.
SHOWN = 200
# Letters of an error that a client gets: gRPC ends a connection whose error has more than 16 KiB.
SENT = 2000
# Control characters, which a terminal would obey, and halves of characters, which no stream takes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

# Triton's Python backend puts the frames behind the error, Python before it.
_TRITON_TRACEBACK, _PYTHON_TRACEBACK = "\nAt:\n", "Traceback (most recent call last):"
# Absolute paths of two names or more, up to the last one; only quoted ones may have spaces.
_QUOTED_PATH = re.compile(r"""(["'])(?:file://)?/[^"'\n]*/([^"'/\n]*)\1""")
_NAME = r"""[^\s/"'<>|:;,()\[\]]"""
_PATH = re.compile(rf"(?:file://|(?<![\w/.~-])~?)/(?:{_NAME}+/)+({_NAME}*)")


def first_few(values: Any) -> str:
    """The first few values of a sequence or an array, for an error."""
    shown = ", ".join(str(value) for value in values[:LISTED])
    return f"{shown}, ..." if len(values) > LISTED else shown


def repeated(names: Iterable[str]) -> list[str]:
    """Names that are there more than once, sorted; in linear time, since somebody else may have made the list."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def first_line(error: BaseException, *, most: int = 300) -> str:
    """The first line of what an exception of another package says, or its class name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def for_clients(text: str) -> str:
    """An error of a server's code in one line, without its traceback and the folders of that machine.

    Of a traceback the last line stays, which says what went wrong; of a path the file's name; of a long text its
    beginning.
    """
    if len(text) > 20 * SENT:  # an error may quote the whole input
        text = f"{text[: 10 * SENT]} ... {text[-10 * SENT :]}"
    head, found, trace = text.split(_TRITON_TRACEBACK, 1)[0].partition(_PYTHON_TRACEBACK)
    last = trace.strip().splitlines()[-1:] if found else []
    line = " ".join(" ".join([head, *last]).split())
    return sent(_PATH.sub(r"\1", _QUOTED_PATH.sub(r"\1\2\1", line)))


def sent(text: str) -> str:
    """A text as an error carries it to a client, cut off where it is long."""
    return text if len(text) <= SENT else f"{text[:SENT]}..."


def shown(value: object, *, most: int = SHOWN) -> str:
    """A value as an error shows it, cut off where it is long; any value can be shown."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python refuses to write out whole numbers of thousands of digits.
        return f"{type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}..."


def _one_line(text: object) -> str:
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], " ".join(str(text).split()))


class CommitteeError(Exception):
    """Base of all errors meant for a user's eyes.

    Args:
        what: subject of the error, naming the file, stage, model or tensor.
        got: what was found.
        expected: what would have been right.
        fix: what to do next.
    """

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        parts = {"got": got, "expected": expected}
        told = ", ".join(f"{name} {_one_line(part)}" for name, part in parts.items() if part is not None)
        text = f"{_one_line(what)}: {told}" if told else _one_line(what)
        super().__init__(text if fix is None else f"{text}; {_one_line(fix)}")

    def reworded(self: E, change: Callable[[str], str]) -> E:
        """The same error with other texts: a command line calls `arguments`, in backticks, by its options."""
        again = self._copied()
        texts = {"got": self.got, "expected": self.expected, "fix": self.fix}
        changed: Any = {key: None if text is None else change(str(text)) for key, text in texts.items()}
        CommitteeError.__init__(again, change(self.what), **changed)
        return again

    def _copied(self: E) -> E:
        again = type(self).__new__(type(self))
        again.__dict__.update(self.__dict__)
        return again


class SpecError(CommitteeError):
    """Everything wrong with one description, keyed by field, so that one edit can mend all of it.

    Args:
        what: the description.
        faults: field -> what is wrong with it.
        fix: what to do next.
        of_arguments: whether fields are a function's arguments, which a command line calls by its options.
    """

    def __init__(
        self, what: str, faults: Mapping[str, str], *, fix: str | None = None, of_arguments: bool = False
    ) -> None:
        self.subject = what
        self.faults = dict(faults)
        self.of_arguments = of_arguments
        listed = "; ".join(f"{field}: {_one_line(text)}" for field, text in self.faults.items())
        super().__init__(f"{what}: {listed}", fix=fix)

    def reworded(self, change: Callable[[str], str]) -> "SpecError":
        """The same error with other texts, and with other names of fields where these are arguments."""
        again = self._copied()
        fields = {name: change(f"`{name}`").strip("`") if self.of_arguments else name for name in self.faults}
        faults = {fields[name]: change(text) for name, text in self.faults.items()}
        fix = None if self.fix is None else change(self.fix)
        SpecError.__init__(again, change(self.subject), faults, fix=fix, of_arguments=self.of_arguments)
        return again


class RepositoryError(CommitteeError):
    """A model repository cannot be used as it lies on disk."""


class InputError(CommitteeError):
    """The caller's rows or parameters are wrong; sending them again will not help."""


class MemberError(CommitteeError):
    """A member model failed; asking again may help."""


class DataError(CommitteeError):
    """A data source or a records file cannot be used."""


class NoRowsError(DataError):
    """A data source is whole and has no rows, as a partition of a larger one may."""


class DiskError(CommitteeError):
    """A disk is full, read-only or broken, or a folder on it is gone; the same call works once that is mended."""

    exit_code = 1


class InfeasibleError(CommitteeError):
    """No plan satisfies the constraints; raised only at the command line, search returns a value."""

    exit_code = 3


class ExportError(CommitteeError):
    """A model cannot become a member."""


class ServingError(CommitteeError):
    """The embedded server cannot start, or stopped by itself."""

    exit_code = 4


class PlatformError(ServingError):
    """This machine cannot run the embedded server at all."""


class PortInUseError(ServingError):
    """Another process listens where the server should."""


class ClientError(CommitteeError):
    """A request to a server failed."""

    exit_code = 5


class UnavailableError(ClientError):
    """Nobody answered, or the server asked to try again later."""


class TlsError(ClientError):
    """Client and server do not agree on TLS; trying again will not help."""


class TimeLimitError(ClientError):
    """The client's own time limit passed before the answer came."""


class RefusedError(ClientError):
    """The server refused the request as wrong."""


class UnknownModelError(RefusedError):
    """The server does not have that model."""


class ChangedModelError(ClientError):
    """Under the model's name something else is served than when the work began."""


class ServerFaultError(ClientError):
    """The server failed in a way that trying again may not mend."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        text: to show, one line.
        number: of the signal that asked.
    """

    def __init__(self, text: str = "interrupted", *, number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.text = text
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as in shells."""
        return 128 + self.number


def interrupted_from(stop: KeyboardInterrupt, text: str) -> Interrupted:
    """The same interruption with another text."""
    return Interrupted(text, number=stop.number if isinstance(stop, Interrupted) else signal.SIGINT)
