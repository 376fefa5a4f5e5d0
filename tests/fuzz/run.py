"""Draws documents until the time is over, and keeps the shortest of every kind of finding."""

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.readers import CORPUS, READERS, Reader

ROOT = Path(__file__).resolve().parents[2]
# Examples that hypothesis draws before the clock is looked at; then it begins anew.
_ROUND = 100
_REPORT_S = 30.0


@dataclass
class Tally:
    """What a run has done so far."""

    reader: Reader
    began_s: float = field(default_factory=time.monotonic)
    said_s: float = 0.0
    executions: int = 0
    taken: int = 0
    found: dict[str, tuple[bytes, str]] = field(default_factory=dict)  # kind -> shortest document, traceback

    def look(self, data: bytes) -> None:
        """Reads one document; an exception becomes a finding."""
        self.executions += 1
        try:
            self.taken += self.reader.look(data)
        except Exception as error:
            kind = kind_of(error)
            if kind not in self.found:
                print(f"found {kind}", flush=True)  # noqa: T201
            if kind not in self.found or len(data) < len(self.found[kind][0]):
                self.found[kind] = data, traceback.format_exc()
        if time.monotonic() - self.said_s > _REPORT_S:
            self.said_s = time.monotonic()
            print(self.line(), flush=True)  # noqa: T201

    def line(self) -> str:
        """The run in a line."""
        seconds = time.monotonic() - self.began_s
        counts = f"{self.executions} documents in {seconds:.0f} s, {self.taken} of them taken"
        return f"{self.reader.name}: {counts}, {len(self.found)} findings {self.reader.notes()}".rstrip()

    def close(self) -> int:
        """Writes the findings down; the exit code."""
        for kind, (data, text) in self.found.items():
            path = CORPUS / self.reader.name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"\n{kind}\n{path.relative_to(ROOT)}: {data[:300]!a}\n{text}")  # noqa: T201
        print(self.line(), flush=True)  # noqa: T201
        return int(bool(self.found))


def kind_of(error: BaseException) -> str:
    """Findings of one kind come from one place of our code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    inner = own[-1] if own else frames[-1]
    place = os.path.relpath(inner.filename, ROOT)
    return f"{type(error).__name__} at {place}:{inner.lineno}"


def fuzz(name: str, *, seconds: float, atheris: Any = None) -> int:
    """Runs one reader; the exit code."""
    if name in READERS:
        return _fuzz(READERS[name], seconds, atheris)
    # Starts a server, and needs what the others do not.
    from tests.fuzz.served import served_reader

    with served_reader(name) as reader:
        return _fuzz(reader, seconds, None)


def _fuzz(reader: Reader, seconds: float, atheris: Any) -> int:
    tally = Tally(reader)
    for data in reader.corpus:
        tally.look(data)
    quiet = settings(
        max_examples=_ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    def is_over() -> bool:
        return time.monotonic() - tally.began_s >= seconds

    @quiet
    @given(reader.documents(reader.corpus))
    def look(data: bytes) -> None:
        if not is_over():
            tally.look(data)

    if atheris is not None:
        _steered(look.hypothesis.fuzz_one_input, tally, is_over=is_over, atheris=atheris)
    while not is_over():
        look()
    return tally.close()


def _steered(
    one_input: Callable[[bytes], Any], tally: Tally, *, is_over: Callable[[], bool], atheris: Any
) -> None:
    """Lets atheris choose the bytes that hypothesis draws from; ends the process, since atheris never returns."""

    def look(data: bytes) -> None:
        one_input(data)
        if is_over():
            code = tally.close()
            sys.stdout.flush()
            os._exit(code)

    atheris.Setup([sys.argv[0], "-max_len=4096", "-len_control=0", "-print_final_stats=0", "-verbosity=0"], look)
    atheris.Fuzz()
