"""Calls of a stage, and what its members gave for the rows of one, whole or in pieces.

Rows that break a member's batch are found by asking about a refused call's rows again, in halves.
A backend that runs a batch as one call fails all of it for one row, and Triton's ONNX Runtime backend does so. The
member's own batcher also merges the calls of several workers, so a call can fail for a row that was not in it.
Therefore a refused call is made again while no other worker asks that member: whole, then in halves, and in the
end twice more for rows that are still refused. Other cascades and clients go on meanwhile, so that a bad row of
theirs can still fail one of ours, rarely. One bad row among n costs about 2 log2(n) further calls, any number of
them fewer than 2n, and there is a bound:
- While the member has answered no call it may itself be broken, and every further call is load on it: 31 calls,
  which suffice to find every good row among 16.
- A member that has answered part of a batch is alive: 2n calls, which suffice to find every good row, and some to
  ask again about eight bad ones.
Rows left then fail without being asked about. A member that is not there is asked once and no more.

A request is itself at fault where a member refuses its rows, answers others, and refuses its rows alone. The
others are of the same batch, or else a row that it has answered before, or a plain one. Then the client hears
INVALID_ARGUMENT. It hears UNAVAILABLE, which says to try again, where the member may be at fault.
"""

import queue
import re
import threading
from _thread import LockType
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.bls.rows import AnyRows, Rows

# A row in a text of a deriving model, which counts the rows of its call.
_NUMBERED = re.compile(r"\brow (\d{1,9}): ")
# Gives int64 (n,), the request of each row, where the rows of a request fail together anyway.
Owners = Callable[[], npt.NDArray[np.int64]]
# The row under which an error of a whole batch stands.
EVERY_ROW = -1
CALLS_TO_SILENT = 31
BAD_ROWS_OF_ALIVE = 8
# How often a row that alone is refused is asked about again: another client's row may have been in its batch.
REPEATS = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call gave no outputs, or a model nothing for a row."""

    text: str  # one line
    # whether any other rows would be refused as well, so that asking about fewer is of no use
    is_final: bool = False
    is_absent: bool = False  # whether the server has no such model or version, or it is dead
    is_of_rows: bool = False  # whether the rows are at fault, and will be refused again
    row: int | None = None  # which row the text numbers, as the call knew it, among those of whoever holds this

    def under(self, name: str) -> "Refusal":
        """The same, said of a model."""
        return replace(self, text=f"{name}: {self.text}")

    def counted_from(self, start: int) -> "Refusal":
        """The same, of a call about the rows from `start` on, whose text may number one."""
        numbered = _NUMBERED.search(self.text)
        return self if numbered is None else replace(self, row=start + int(numbered[1]))

    def told(self, positions: Mapping[int, int]) -> str:
        """The text for a client: a row has its number in the request, or none where it is another request's."""
        if self.row is None:
            return self.text
        position = positions.get(self.row)
        return _NUMBERED.sub("" if position is None else f"row {position}: ", self.text, count=1)


# By member's plan index and row of the batch, why the member failed for that row.
Errors = dict[tuple[int, int], Refusal]

# Work that raises nothing. It returns the lock of a thread that waits for it, where it is done with that now.
Work = Callable[[], LockType | None]
# Gives the outputs of the rows from a first one to an end.
Ask = Callable[[int, int], list[Rows] | Refusal]


@dataclass(eq=False, slots=True)
class StageCall:
    """A stage's members being asked about rows, until all have answered or the call is given up."""

    stage: int
    rows: AnyRows  # (n, *dims), with the tensors that were derived for the stage as soon as they are
    # by plan index, what the members that are done have said, and why they have failed
    said: dict[int, tuple[Rows | None, Errors]] = field(default_factory=dict)
    cost: float | None = None  # as in `MemberOutputs`
    is_asked: bool = False
    is_given_up: bool = False
    deriving: int | None = None  # the place of the deriving model that is being asked
    lost: set[int] = field(default_factory=set)  # members, by plan index, whose calls were given up
    underived: dict[int, Refusal] = field(default_factory=dict)  # by row, why a tensor could not be derived
    is_finished: bool = False  # whether all have said something, and the call cannot be given up any more
    # locked until nobody need be waited for any more, where helpers ask members
    ready: LockType | None = None


@dataclass(slots=True)
class MemberOutputs:
    """What a stage's members gave for n rows."""

    # (n, k) per member in plan order, NaN in rows it failed for; None for a member that failed for all
    outputs: list[Rows | None]
    errors: Errors  # why members failed
    # the fused prefix's outputs of the stages after it, (n, k) per member, NaN for rows it did not ask
    later: Sequence[list[Rows]] = ()
    cost: float | None = None  # of the members asked, per row; None where that was the whole stage
    rows: AnyRows | None = None  # the rows with what was derived for them; None where nothing was


@dataclass(slots=True)
class BatchPieces:
    """The rows of a batch, answered or failed piece by piece."""

    room: int  # further calls that a member which has answered some call may get
    # first row, end and outputs of each piece that was answered
    answered: list[tuple[int, int, list[Rows]]] = field(default_factory=list)
    failed: dict[int, Refusal] = field(default_factory=dict)  # by row, why it has no answer
    further_calls: int = 0  # calls beyond one per part
    is_over: bool = False  # whether a refusal was final
    is_alive: bool = False  # whether the member has answered a row since, of the batch or another
    alone: list[tuple[int, int]] = field(default_factory=list)  # parts refused that cannot be halved
    confirmed: set[int] = field(default_factory=set)  # their rows that an alive member has refused again

    def note(self, start: int, end: int, said: list[Rows] | Refusal) -> bool:
        """Keeps the outputs of rows, or why there are none; returns whether they were answered."""
        if isinstance(said, Refusal):
            self.failed.update(dict.fromkeys(range(start, end), said))
            self.is_over |= said.is_final
            return False
        self.is_alive = True
        self.answered.append((start, end, said))
        for row in range(start, end) if self.failed else ():
            self.failed.pop(row, None)
        return True

    def ask_again(self, ask: Ask, start: int, end: int) -> bool:
        """Makes a further call, as `note` does."""
        self.further_calls += 1
        return self.note(start, end, ask(start, end))

    @property
    def has_room(self) -> bool:
        """Whether a further call may be made."""
        return not self.is_over and self.further_calls < (self.room if self.is_alive else CALLS_TO_SILENT)

    def refused_alone(self, start: int, end: int) -> None:
        """Takes note of a part that cannot be halved."""
        self.alone.append((start, end))
        self._confirm(start, end)

    def _confirm(self, start: int, end: int) -> None:
        if self.is_alive:
            self.confirmed.update(range(start, end))

    def confirm(self, ask: Ask, start: int, end: int) -> None:
        """Makes a further call about a part that was refused alone, if there is room."""
        if start in self.failed and self.has_room and not self.ask_again(ask, start, end):
            self._confirm(start, end)

    def blame(self) -> None:
        """Tells refusals that speak of the rows from others."""
        alone = {row for start, end in self.alone for row in range(start, end)}
        for row, said in self.failed.items():
            is_of_rows = row in self.confirmed or (said.is_of_rows and row in alone)
            self.failed[row] = replace(said, is_of_rows=is_of_rows and not said.is_final)

    def outputs(self, rows: int) -> list[Rows] | None:
        """Every output for all n rows, NaN where a row has no answer; None where no row has one."""
        if not self.answered:
            return None
        if len(self.answered) == 1 and not self.failed:
            return self.answered[0][2]
        whole = []
        for index, first in enumerate(self.answered[0][2]):
            # NaN marks rows that failed, and whole numbers have none.
            dtype = np.float32 if self.failed and not np.issubdtype(first.dtype, np.floating) else first.dtype
            output = np.empty((rows, *first.shape[1:]), dtype)
            if self.failed:
                output.fill(np.nan)
            for start, end, outputs in self.answered:
                output[start:end] = outputs[index]
            whole.append(output)
        return whole


def _parts(rows: int, size: int, starts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Parts of rows, none larger than a size, that end before each of the starts."""
    for first, last in pairwise([0, *starts, rows]):
        for start in range(first, last, size):
            yield start, min(start + size, last)


class Gate:
    """Lets the calls of one member run side by side, or one caller alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._is_shut = False
        self._is_retired = False
        self._alone: int | None = None  # the thread that calls alone

    def retire(self) -> None:
        """Keeps nobody out or waiting any more, because a call inside may never return."""
        with self._lock:
            self._is_retired = True
            self._changed.notify_all()

    def beside_others(self, ask: Ask, start: int, end: int) -> list[Rows] | Refusal:
        """One call, made as soon as nobody calls alone but the thread itself."""
        if self._alone is not None and self._alone == threading.get_ident():
            return ask(start, end)
        with self._lock:
            while self._is_shut and not self._is_retired:
                self._changed.wait()
            self._inside += 1
        try:
            return ask(start, end)
        finally:
            with self._lock:
                self._inside -= 1
                if self._is_shut:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until everybody has left, and keeps them out meanwhile."""
        with self._lock:
            while self._is_shut and not self._is_retired:
                self._changed.wait()
            self._is_shut = True
            while self._inside and not self._is_retired:
                self._changed.wait()
            self._alone = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._is_shut, self._alone = False, None
                self._changed.notify_all()

    def ask_in_pieces(
        self,
        ask: Ask,
        rows: int,
        *,
        size: int,
        owners: Owners | None = None,
        first: Refusal | None = None,
        starts: Sequence[int] = (),
        answers_others: Callable[[], bool] | None = None,
    ) -> BatchPieces:
        """Asks about rows in parts of a given size, and again in halves about parts that are refused.

        Args:
            ask: calls the member.
            rows: how many there are.
            size: largest part.
            owners: called only when a part was refused.
            first: the refusal of the first part, where that was asked about already.
            starts: further rows that a part begins with.
            answers_others: whether the member answers a row that is none of these.
        """
        # Each row by itself, and every part that it was in.
        pieces = BatchPieces(room=max(CALLS_TO_SILENT, 2 * rows + BAD_ROWS_OF_ALIVE * REPEATS))
        refused = []
        for start, end in _parts(rows, size, starts):
            said: list[Rows] | Refusal = first if first and not start else self.beside_others(ask, start, end)
            if not pieces.note(start, end, said):
                refused.append((start, end))
            if pieces.is_over:
                pieces.failed.update(dict.fromkeys(range(end, rows), pieces.failed[start]))
                break
        if refused and not pieces.is_over:
            with self.alone():
                if not pieces.is_alive and answers_others is not None:
                    pieces.is_alive = answers_others()
                isolate(ask, refused, pieces, owners)
        pieces.blame()
        return pieces


class Helpers:
    """Threads that do work for other threads; one is started where none is idle, and some stay when idle."""

    def __init__(self, most_idle: int) -> None:
        self._most_idle = most_idle
        self._idle = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()

    def submit(self, work: Work) -> None:
        """Has work done."""
        with self._lock:
            is_idle = self._idle > 0
            self._idle -= is_idle
        if not is_idle:
            threading.Thread(target=self._loop, name="committee-member", daemon=True).start()
        self._work.put(work)

    @staticmethod
    def do(work: Work) -> None:
        """Does work in the calling thread."""
        if (waits := work()) is not None:
            waits.release()

    def close(self) -> None:
        """Ends idle threads now, and busy ones when their work is done."""
        with self._lock:
            self._most_idle, idle, self._idle = 0, self._idle, 0
        for _ in range(idle):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            waits = work()
            with self._lock:
                stays = self._idle < self._most_idle
                self._idle += stays
            # Last, because the interpreter is free for who is woken only when this thread waits again.
            if waits is not None:
                waits.release()
            if not stays:
                return
            del work, waits  # rows, for as long as there is nothing to do


def isolate(ask: Ask, refused: list[tuple[int, int]], pieces: BatchPieces, owners: Owners | None) -> None:
    """Asks about refused parts again, and about halves of them, as long as there is room."""
    whose = None if owners is None else owners()
    # Each part whole first, because a row of another client may have been at fault; the next part is the last.
    waiting = refused[::-1]
    while waiting and pieces.has_room:
        start, end = waiting.pop()
        if pieces.ask_again(ask, start, end):
            continue
        # Half of the rows may be answered, unless they all fail with one request.
        if end - start > 1 and (whose is None or (whose[start:end] != whose[start]).any()):
            middle = (start + end) // 2
            waiting += [(middle, end), (start, middle)]
        else:
            pieces.refused_alone(start, end)
    for start, end in pieces.alone * REPEATS:
        pieces.confirm(ask, start, end)
