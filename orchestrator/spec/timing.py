"""Timings: measured milliseconds per call of members, by batch, and what the runtime adds: timing.json.

Between two measured batches the time of a call is taken to lie on the line between them. That is exact where a
call costs a constant and a constant per row, the model that Nexus plans batches with (Shen et al., SOSP 2019), and
close where that bends slowly. Nothing is guessed outside the measured batches.
"""

import dataclasses
import itertools
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import SpecError, repeated, shown
from orchestrator.spec.documents import json_from_text, text_from_json, text_of_file
from orchestrator.spec.processor import core_count, processor_name
from orchestrator.spec.validation import (
    MOST_COUNTED,
    MOST_INSTANCES,
    MOST_ROWS,
    Faults,
    array_of,
    built,
    object_of,
)

TIMING_FORMAT = 1
# A call of a day is a wrong unit, and so is one that a processor hardly notices.
LEAST_MS, MOST_MS = 0.001, 86_400_000
# Of what the members of a stage take, this share is left at least where the runtime takes less from inside.
LEAST_SHARE = 0.1
# Fields of a timing with what the runtime adds.
RUNTIME_PARTS = (
    "first_stage", "later_stage", "deferring", "passed_on", "first_in_process", "later_in_process",
)  # fmt: skip
Floats = npt.NDArray[np.float64]
# Of a distribution of pauses, over which is averaged.
_QUANTILES = 1000


@dataclass(frozen=True, kw_only=True)
class CallTime:
    """How long a call of so many rows takes: the median of the rounds, and their quartiles.

    What a part adds to others may be below 0, where it takes less from inside a server than from outside.
    """

    batch: int
    ms: float
    low_ms: float
    high_ms: float

    def __post_init__(self) -> None:
        faults = Faults("time of a call")
        faults.integer("batch", self.batch, low=1, high=MOST_ROWS)
        for name in ("ms", "low_ms", "high_ms"):
            faults.number(name, getattr(self, name), low=-MOST_MS, high=MOST_MS)
        if not faults.found:
            text = f"got {self.ms:g}, expected between low_ms {self.low_ms:g} and high_ms {self.high_ms:g}"
            faults.check("ms", self.low_ms <= self.ms <= self.high_ms, text)
        faults.close()


@dataclass(frozen=True, kw_only=True)
class MemberTiming:
    """A member's calls, batches ascending."""

    name: str
    calls: tuple[CallTime, ...]
    sha256: str | None = None  # of its model file, None where nothing says
    # what opening it and asking its largest batch took; as served its own processes, None where it has none
    memory_bytes: int | None = None
    max_batch_size: int | None = None  # most rows of one call; None for no limit
    instances: int = 1  # calls it runs at once, as served

    def __post_init__(self) -> None:
        faults = Faults(f"timing of {self.name}")
        faults.name("name", self.name)
        _check_calls(faults, "calls", self.calls, fewest=1)
        for call in self.calls:
            text = f"got {call.ms:g} ms for batch {call.batch}, expected at least {LEAST_MS:g}"
            faults.check("calls", call.ms >= LEAST_MS, text)
            text = f"got low_ms {call.low_ms:g} for batch {call.batch}, expected at least 0"
            faults.check("calls", call.low_ms >= 0, text)
        if self.sha256 is not None:
            faults.sha256("sha256", self.sha256)
        if self.memory_bytes is not None:
            faults.integer("memory_bytes", self.memory_bytes, low=0, high=MOST_COUNTED)
        if self.max_batch_size is not None:
            faults.integer("max_batch_size", self.max_batch_size, low=1, high=MOST_ROWS)
        faults.integer("instances", self.instances, low=1, high=MOST_INSTANCES)
        faults.close()

    def ms(self, rows: npt.ArrayLike) -> Floats:
        """Milliseconds that so many rows take, any shape, 0 where there are none; see `largest`.

        More rows than one call may carry go in calls of equal size, as the runtime sends them.
        """
        many = np.asarray(rows, np.float64)
        limit = min(self.max_batch_size or MOST_ROWS, self.calls[-1].batch)
        parts = np.maximum(np.ceil(many / limit - 1e-12), 1.0)
        return np.asarray(parts * ms_of_calls(self.calls, many / parts), np.float64)

    @property
    def largest(self) -> int:
        """The most rows that `ms` knows of: no limit where the member's own largest call was measured."""
        last = self.calls[-1].batch
        return MOST_ROWS if last == self.max_batch_size else last


@dataclass(frozen=True, kw_only=True)
class PausedRequest:
    """What a request of one row takes longer after a pause without any, than where one follows the other.

    Processors that sleep have to be woken at every step from one process to the next. Where only the later stage
    paused, while the first answered requests, its processes have to be woken and caches hold the first's.
    """

    pause_ms: float
    first_ms: float  # one that the first stage answers
    later_ms: float  # what each further stage adds to that
    rare_ms: float = 0.0  # what a later stage adds where it alone had nothing to do for so long

    def __post_init__(self) -> None:
        faults = Faults("request after a pause")
        faults.number("pause_ms", self.pause_ms, low=0, high=MOST_MS)
        for name in ("first_ms", "later_ms", "rare_ms"):
            faults.number(name, getattr(self, name), low=-MOST_MS, high=MOST_MS)
        faults.close()


@dataclass(frozen=True, kw_only=True)
class TimedMachine:
    """The machine that was measured: its processor and what it may use of it."""

    cpu: str
    cores: int
    platform: str

    def __post_init__(self) -> None:
        faults = Faults("machine")
        for name in ("cpu", "platform"):
            faults.text(name, getattr(self, name))
        faults.integer("cores", self.cores, low=1, high=MOST_ROWS)
        faults.close()

    @property
    def words(self) -> str:
        """In a few words."""
        return f"{self.cpu}, {self.cores} cores"


def machine_here() -> TimedMachine:
    """The machine this runs on."""
    return TimedMachine(cpu=processor_name(), cores=core_count(), platform=platform.platform())


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Everything that was measured, on one machine.

    Raises:
        SpecError: with every fault at once.
    """

    asked: str  # ONNX Runtime with its version, or the server's address
    machine: TimedMachine
    members: tuple[MemberTiming, ...]
    rounds: int
    threads: int | None = None  # of each member, in this process; None where a server decides
    # what the runtime adds to the members: per request, for its first stage, and per call of a further stage
    first_stage: tuple[CallTime, ...] = field(default=())
    later_stage: tuple[CallTime, ...] = field(default=())
    # the part of a later stage that each batch of the stage before takes that defers anything; empty for a server
    deferring: tuple[CallTime, ...] = field(default=())
    # the part of a first stage that is the way to another process of the server and back; for people
    passed_on: tuple[CallTime, ...] = field(default=())
    # instead of a first and of a later stage where their members run in the cascade's own process, as served
    first_in_process: tuple[CallTime, ...] = field(default=())
    later_in_process: tuple[CallTime, ...] = field(default=())
    # pauses ascending; empty where no server was asked
    pauses: tuple[PausedRequest, ...] = field(default=())

    def __post_init__(self) -> None:
        faults = Faults("timing")
        faults.text("asked", self.asked)
        faults.check("members", len(self.members) > 0, "got none, expected at least one")
        if twice := repeated([member.name for member in self.members]):
            faults.add("members", f"got {', '.join(twice)} more than once, expected each member once")
        faults.integer("rounds", self.rounds, low=1, high=MOST_ROWS)
        if self.threads is not None:
            faults.integer("threads", self.threads, low=1, high=MOST_INSTANCES)
        for name in RUNTIME_PARTS:
            _check_calls(faults, name, getattr(self, name), fewest=0)
        pauses = [one.pause_ms for one in self.pauses]
        good = all(one < other for one, other in itertools.pairwise(pauses))
        faults.check("pauses", good, f"got {shown(pauses)} ms, expected each once, ascending")
        faults.close()

    @property
    def by_name(self) -> dict[str, MemberTiming]:
        """The members by their names."""
        return {member.name: member for member in self.members}

    def woken_ms(self, per_ms: float) -> tuple[float, float]:
        """What a row takes longer on average that finds nothing to do, by a first stage and by each later one.

        Rows come at random times, so many per millisecond: pauses are exponential. Between measured pauses, and
        from none to the shortest, the time is taken to lie on the line; longer than the longest it stays.
        """
        if not self.pauses:
            return 0.0, 0.0
        shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        pauses = -np.log1p(-shares) / per_ms
        first, later = (self._longer_ms(name, pauses) for name in ("first_ms", "later_ms"))
        return float(first.mean()), float(later.mean())

    def rare_ms(self, pauses: Floats) -> Floats:
        """What a later stage takes longer after such pauses of its own, milliseconds of any shape."""
        return self._longer_ms("rare_ms", pauses) if self.pauses else np.zeros(pauses.shape)

    def _longer_ms(self, name: str, pauses: Floats) -> Floats:
        known = [0.0, *(one.pause_ms for one in self.pauses)]
        times = [0.0, *(getattr(one, name) for one in self.pauses)]
        return np.asarray(np.interp(pauses, known, times), np.float64)

    def slowest(self, names: Iterable[str]) -> str:
        """Which of these members takes the most time per row, in the largest batch known of all of them."""
        timed = [self.by_name[name] for name in names]
        batch = min(max(one.calls[-1].batch for one in timed), *(one.largest for one in timed))
        return max(timed, key=lambda one: float(one.ms(batch))).name

    def added_by_runtime(self, place: int, *, in_process: bool = False) -> tuple[CallTime, ...]:
        """What the runtime adds to a stage, by its place; less where the stage's members run in its own process.

        Where members in process were not timed they count as others do.
        """
        here, called = (
            (self.later_in_process, self.later_stage) if place else (self.first_in_process, self.first_stage)
        )
        return here if in_process and here else called

    @property
    def is_served(self) -> bool:
        """Whether a server was asked; else members ran in the measuring process."""
        return self.threads is None


def _check_calls(faults: Faults, field_name: str, calls: Sequence[CallTime], *, fewest: int) -> None:
    batches = [call.batch for call in calls]
    good = len(batches) >= fewest and all(one < other for one, other in itertools.pairwise(batches))
    expected = f"{'at least one, ' if fewest else ''}each batch once, ascending"
    faults.check(field_name, good, f"got batches {shown(batches)}, expected {expected}")


def ms_of_calls(calls: Sequence[CallTime], rows: npt.ArrayLike) -> Floats:
    """Milliseconds of a call of so many rows, any shape, fractions too: on the line between measured batches.

    Below the smallest batch it takes what that takes, above the largest what the largest does, and 0 where there
    are no rows.
    """
    many = np.asarray(rows, np.float64)
    if not calls:
        return np.zeros(many.shape)
    known = np.interp(many, [call.batch for call in calls], [call.ms for call in calls])
    return np.where(many > 0, known, 0.0)


def added_ms(own: npt.ArrayLike, added: npt.ArrayLike) -> Floats:
    """What the runtime adds to what members take, milliseconds of any shape; of these a tenth is left at least.

    It may be below 0, but no stage takes nothing: see `parts_eaten_up`.
    """
    return np.maximum(added, (LEAST_SHARE - 1) * np.asarray(own, np.float64))


def parts_eaten_up(timing: Timing, members: Iterable[str]) -> list[str]:
    """What the runtime adds that is so far below 0 that it counts as less, see `added_ms`, one text per part.

    It is held against the quickest member as a first stage, and against the next one as a later stage.
    """
    timed, found = [timing.by_name[name] for name in members], []
    for name, place in (("first_stage", 0), ("later_stage", 1), ("first_in_process", 0), ("later_in_process", 1)):
        for call in getattr(timing, name):
            ms = {one.name: float(one.ms(call.batch)) for one in timed}
            own = sorted(ms, key=lambda key: ms[key])[:2][-1 if place else 0]
            if float(added_ms(ms[own], call.ms)) > call.ms:
                found.append(f"{name} of {call.ms:g} ms at batches of {call.batch}, where {own} takes {ms[own]:g}")
                break
    return found


def interpolation_error(calls: Sequence[CallTime]) -> float | None:
    """How far off the line is at worst where a batch between two others is held out, as a share of its time.

    None where there are fewer than three batches, or times of 0.
    """
    errors = [
        abs(float(ms_of_calls([*calls[:place], *calls[place + 1 :]], calls[place].batch)) / calls[place].ms - 1)
        for place in range(1, len(calls) - 1)
        if calls[place].ms > 0
    ]
    return max(errors, default=None)


def timing_from_path(path: Path) -> Timing:
    """The timing a file holds.

    Raises:
        SpecError: the file is missing, holds something else, or something wrong, keyed by field.
    """
    subject = f"timing {path}"
    value = json_from_text(text_of_file(path, subject), subject)
    if not isinstance(value, dict) or value.pop("format", None) != TIMING_FORMAT:
        is_profile = isinstance(value, dict) and "cost" in value
        got = "a cost profile, which `cost` takes" if is_profile else "another document"
        text = f"got {got}, expected an object with format {TIMING_FORMAT}"
        raise SpecError(subject, {"format": text}, fix="measure one with `committee time`")
    calls = array_of(object_of(CallTime))
    members, pauses = array_of(object_of(MemberTiming, calls=calls)), array_of(object_of(PausedRequest))
    convert = {"machine": object_of(TimedMachine), "members": members, "pauses": pauses}
    return built(Timing, value, subject, convert | dict.fromkeys(RUNTIME_PARTS, calls))


def json_from_timing(timing: Timing) -> str:
    """The text of timing.json; equal timings give equal bytes."""
    document: dict[str, Any] = {"format": TIMING_FORMAT, **dataclasses.asdict(timing)}
    return text_from_json(document)
