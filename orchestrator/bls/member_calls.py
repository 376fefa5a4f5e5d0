"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel.

Rows that break a member's batch are found by asking about a refused call's rows again, in halves. A backend that
runs a batch as one call fails all of it for one row, and Triton's ONNX Runtime backend does so. The member's own
batcher also merges the calls of several workers, so a call can fail for a row that was not in it. Therefore a
refused call is made again while no other worker asks that member: whole, then in halves, and in the end twice more
for rows that are still refused. Other cascades and clients go on meanwhile, so that a bad row of theirs can still
fail one of ours, rarely. One bad row among n costs about 2 log2(n) further calls, and there is a bound:
- While the member has answered no call it may itself be broken, and every further call is load on it: 31 calls,
  which suffice to find every good row among 16.
- A member that has answered part of a batch is alive: calls for eight bad rows.
Rows left then fail without being asked about. A member that is not there is asked once and no more.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.breaker import Breakers
from orchestrator.bls.metrics import Counters
from orchestrator.errors import for_clients
from orchestrator.spec import CascadeSpec
from orchestrator.spec.triton import ANY_VERSION

Rows = npt.NDArray[Any]
# By member's plan index and row of the batch, why the member failed for that row.
Errors = dict[tuple[int, int], str]
# Gives int64 (n,), the request of each row, where the rows of a request fail together anyway.
Owners = Callable[[], npt.NDArray[np.int64]]
CALLS_TO_SILENT = 31
BAD_ROWS_OF_ALIVE = 8
# How often a row that alone is refused is asked about again: another client's row may have been in its batch.
REPEATS = 2
# Kinds of numpy dtypes that hold scores.
_NUMBERS = "fiub"
# The row under which an error of a whole batch stands.
EVERY_ROW = -1
# The server's messages for a model that is not there, or takes no request now. Before 25.04 all have the code
# INTERNAL, as a model's own errors do, so that only the words tell them apart.
_NOT_THERE = ("Request for unknown model", "has no available versions", "Stub process")
_NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call gave no outputs."""

    text: str  # one line
    # whether any other rows would be refused as well, so that asking about fewer is of no use
    is_final: bool = False
    is_absent: bool = False  # whether the server has no such model or version, or it is dead


# Gives the outputs of the rows from a first one to an end.
Ask = Callable[[int, int], list[Rows] | Refusal]


@dataclass(slots=True)
class BatchPieces:
    """The rows of a batch, answered or failed piece by piece."""

    room: int  # further calls that a member which has answered some call may get
    # first row, end and outputs of each piece that was answered
    answered: list[tuple[int, int, list[Rows]]] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)  # by row, why it has no answer
    further_calls: int = 0  # calls beyond one per part
    is_over: bool = False  # whether a refusal was final

    def note(self, start: int, end: int, said: list[Rows] | Refusal) -> bool:
        """Keeps the outputs of rows, or why there are none; returns whether they were answered."""
        if isinstance(said, Refusal):
            self.failed.update(dict.fromkeys(range(start, end), said.text))
            self.is_over |= said.is_final
            return False
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
        return not self.is_over and self.further_calls < (self.room if self.answered else CALLS_TO_SILENT)

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


class Gate:
    """Lets the calls of one member run side by side, or one caller alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._is_shut = False

    def beside_others(self, ask: Ask, start: int, end: int) -> list[Rows] | Refusal:
        """One call, made as soon as nobody calls alone."""
        with self._lock:
            while self._is_shut:
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
            while self._is_shut:
                self._changed.wait()
            self._is_shut = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._lock:
                self._is_shut = False
                self._changed.notify_all()

    def ask_in_pieces(
        self, ask: Ask, rows: int, *, size: int, owners: Owners | None = None, first: Refusal | None = None
    ) -> BatchPieces:
        """Asks about rows in parts of a given size, and again in halves about parts that are refused.

        Args:
            ask: calls the member.
            rows: how many there are.
            size: largest part.
            owners: called only when a part was refused.
            first: the refusal of the first part, where that was asked about already.
        """
        depth = (min(size, rows) - 1).bit_length()
        # A bad row costs both halves at every level, and itself again at the end.
        pieces = BatchPieces(room=max(CALLS_TO_SILENT, BAD_ROWS_OF_ALIVE * (2 * depth + REPEATS)))
        refused = []
        for start in range(0, rows, size):
            end = min(start + size, rows)
            said: list[Rows] | Refusal = first if first and not start else self.beside_others(ask, start, end)
            if not pieces.note(start, end, said):
                refused.append((start, end))
            if pieces.is_over:
                pieces.failed.update(dict.fromkeys(range(end, rows), pieces.failed[start]))
                return pieces
        if refused:
            with self.alone():
                _isolate(ask, refused, pieces, owners)
        return pieces


def _isolate(ask: Ask, refused: list[tuple[int, int]], pieces: BatchPieces, owners: Owners | None) -> None:
    """Asks about refused parts again, and about halves of them, as long as there is room."""
    whose = None if owners is None else owners()
    bad = []
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
            bad.append((start, end))
    for start, end in bad * REPEATS:
        if start in pieces.failed and pieces.has_room:
            pieces.ask_again(ask, start, end)


@dataclass(slots=True)
class MemberOutputs:
    """What a stage's members gave for n rows."""

    # (n, k) per member in plan order, NaN in rows it failed for; None for a member that failed for all
    outputs: list[Rows | None]
    errors: Errors  # why members failed
    # the fused prefix's outputs of the stages after it, (n, k) per member, NaN for rows it did not ask
    later: Sequence[list[Rows]] = ()
    cost: float | None = None  # of the members asked, per row; None where that was the whole stage


@dataclass(eq=False)
class MemberCalls:
    """Calls members; used from many threads at once."""

    pb: Any  # the server's Python module
    spec: CascadeSpec
    metrics: Counters  # counts calls made to find the rows that break a batch
    # model name -> version to ask by number; for others the server chooses. May change at any time.
    versions: Mapping[str, int]
    may_ask_prefix: Callable[[], bool]  # whether the plan's fused prefix may be asked now

    def __post_init__(self) -> None:
        self._cpu = self.pb.PreferredMemory(self.pb.TRITONSERVER_MEMORY_CPU, 0)
        # A server without one of these names never sends it.
        names = ("UNAVAILABLE", "NOT_FOUND", "UNSUPPORTED", "CANCELLED")
        self._final_codes = {getattr(self.pb.TritonError, name, None) for name in names}
        self._members = self.spec.members
        places = iter(range(len(self._members)))
        # By stage, the plan indices of its members.
        self._places = [[next(places) for _ in stage.members] for stage in self.spec.stages]
        self._logged_s: dict[str, float] = {}  # model name -> when its last error was logged
        self._gates = [Gate() for _ in self._members]
        self._prefix_gate = Gate()
        covered = () if self.spec.fused_prefix is None else self.spec.stages[: self.spec.fused_prefix.stages]
        self._prefix_outputs = [member.name for stage in covered for member in stage.members]
        # Stage 0 and the workers of every later stage may fan out at the same time.
        extra = max(len(stage.members) - 1 for stage in self.spec.stages)
        self._pool = ThreadPoolExecutor(extra * 4 or 1, "committee-member")
        self._breakers = Breakers(self.spec, self.metrics, log=self.pb.Logger.log_warn, ask=self._fault_of)

    def ask(
        self, stage: int, rows: Rows, tensor: Any | None = None, *, owners: Owners | None = None
    ) -> MemberOutputs:
        """Asks the members of a stage whose breakers let it; what a member refuses is asked again in halves.

        Args:
            stage: which one.
            rows: (n, *dims).
            tensor: the server's tensor behind `rows`, forwarded without a copy where name and size allow.
            owners: whose request each row belongs to; one that fails fails with all its rows.
        """
        if self.spec.stages[stage].on_failure == "answer":
            owners = None  # there each row gets what it can
        places = self._places[stage]
        refused = self._breakers.refusals(stage, places, rows)
        errors = {(place, EVERY_ROW): text for place, text in refused.items()}
        outputs: dict[int, Rows | None] = dict.fromkeys(places)
        asked = [place for place in places if place not in refused]
        cost = sum(self._members[place].cost for place in asked) if refused else None
        # Counted before the members are asked: rows answered at a deadline meanwhile have cost it, too.
        self.metrics.asked(len(rows), stage, cost)
        if not asked:
            return MemberOutputs([*outputs.values()], errors, cost=cost)
        first, *others = asked
        ask = partial(self._ask_member, stage, rows=rows, tensor=tensor, owners=owners)
        futures = {place: self._pool.submit(ask, place) for place in others}
        # The calling thread asks the first member itself: one hand-over fewer.
        said = {first: ask(first), **{place: future.result() for place, future in futures.items()}}
        for place, (output, failed) in said.items():
            outputs[place] = output
            errors |= failed
        return MemberOutputs([*outputs.values()], errors, cost=cost)

    def ask_stage0(self, rows: Rows, tensor: Any | None = None, *, owners: Owners | None = None) -> MemberOutputs:
        """As `ask`, by the fused prefix where the plan has one; where that fails, the members are asked."""
        prefix = self.spec.fused_prefix
        if prefix is None or not self.may_ask_prefix() or not self._breakers.is_closed(self._breakers.prefix):
            return self.ask(0, rows, tensor, owners=owners)

        def call(start: int, end: int) -> list[Rows] | Refusal:
            said = self._exec(prefix.name, self._prefix_outputs, self._tensor(rows, start, end, given=tensor))
            # Final, because asking the members finds the rows at fault.
            return Refusal(said.text, is_final=True) if isinstance(said, Refusal) else said

        failure = "its outputs have other shapes than its members'"
        try:
            pieces = self._prefix_gate.ask_in_pieces(call, len(rows), size=prefix.max_batch_size)
            said = None if pieces.failed else pieces.outputs(len(rows))
            failure = next(iter(pieces.failed.values()), failure)
        except Exception as error:  # whatever it was, the members can still be asked
            said, failure = None, f"{type(error).__name__} {error}"
        expected = (len(rows), self.spec.classes)
        if said is not None and any(output.shape != expected for output in said):
            said = None
        note = partial(self._breakers.note, self._breakers.prefix, rows)
        if said is None:
            note(None, failure=failure, is_certain=False)
            return self.ask(0, rows, tensor, owners=owners)
        note(said[0], is_certain=True)
        self.metrics.asked(len(rows), 0)
        first, *later = [[said[place] for place in places] for places in self._places[: prefix.stages]]
        return MemberOutputs(list(first), {}, later)

    def ask_about_row(self, model: str, row: Rows, *, version: int | None) -> Rows | Refusal:
        """The output of a version of a member, or of the fused prefix, for one row (1, *dims); float (1, k)."""
        outputs, source, gate = self._prefix_outputs, None, self._prefix_gate
        for member, own in zip(self._members, self._gates, strict=True):
            if member.name == model:
                outputs, source, gate = [member.output], member.input, own

        def call(start: int, end: int) -> list[Rows] | Refusal:
            return self._exec(model, outputs, self._tensor(row, start, end, name=source), version=version)

        try:
            said = gate.beside_others(call, 0, len(row))
        except Exception as error:  # whatever the server's classes raise
            return Refusal(self._for_clients(model, f"{type(error).__name__} {error}"))
        return said if isinstance(said, Refusal) else np.concatenate(said, axis=-1)

    def close(self) -> None:
        """Ends the helper threads and the probes."""
        self._breakers.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_member(
        self, stage: int, place: int, rows: Rows, *, tensor: Any | None, owners: Owners | None
    ) -> tuple[Rows | None, Errors]:
        """The output (n, k) of a stage's member, NaN in rows it failed for, and why it failed for them."""
        member, gate = self._members[place], self._gates[place]
        name, size = member.input or self.spec.input.name, member.max_batch_size
        given = tensor if name == self.spec.input.name else None

        def call(start: int, end: int) -> list[Rows] | Refusal:
            said = self._exec(member.name, [member.output], self._tensor(rows, start, end, given=given, name=name))
            expected = (end - start, self.spec.classes)
            if isinstance(said, Refusal) or said[0].shape == expected:
                return said
            wrong = f"output {member.output} has shape {list(said[0].shape)}, expected {list(expected)}"
            return Refusal(wrong, is_final=True)

        try:
            first = None
            if len(rows) <= size:
                said = gate.beside_others(call, 0, len(rows))
                if not isinstance(said, Refusal):
                    self._breakers.note(place, rows, said[0], is_certain=True)
                    return said[0], {}
                first = said
            pieces = gate.ask_in_pieces(call, len(rows), size=size, owners=owners, first=first)
            outputs = pieces.outputs(len(rows))
        except Exception as error:  # a caller waits: whatever broke must become its answer
            text = self._for_clients(member.name, f"{type(error).__name__} {error}")
            failed, outputs, is_certain = {EVERY_ROW: text}, None, True
        else:
            failed, is_certain = pieces.failed, pieces.is_over
            if pieces.further_calls:
                self.metrics.asked_again(place, pieces.further_calls)
        output = None if outputs is None else outputs[0]
        self._breakers.note(place, rows, output, failure=next(iter(failed.values()), ""), is_certain=is_certain)
        errors = {(place, row): f"stage {stage} member {member.name}: {text}" for row, text in failed.items()}
        return output, errors

    def _fault_of(self, model: str, row: Rows) -> str | None:
        """Why a member or the fused prefix does not answer a row (1, *dims); None where it does."""
        try:
            said = self.ask_about_row(model, row, version=None)
        except Exception as error:  # a breaker waits: whatever it was, no answer has come
            said = Refusal(f"{type(error).__name__} {error}")
        if isinstance(said, Refusal):
            return said.text
        is_prefix = self.spec.fused_prefix is not None and model == self.spec.fused_prefix.name
        expected = (1, self.spec.classes * (len(self._prefix_outputs) if is_prefix else 1))
        return None if said.shape == expected else f"output of shape {list(said.shape)}, expected {list(expected)}"

    def _tensor(
        self, rows: Rows, start: int, end: int, *, given: Any | None = None, name: str | None = None
    ) -> Any:
        """The server's tensor of some of the rows; the given one where it has just those."""
        if given is not None and end - start == len(rows):
            return given
        return self.pb.Tensor(name or self.spec.input.name, rows[start:end])

    def _exec(
        self, model: str, outputs: Sequence[str], tensor: Any, *, version: int | None = None
    ) -> list[Rows] | Refusal:
        """One call; a refusal is final where it speaks of the model and not of what it was asked."""
        request = self.pb.InferenceRequest(
            model_name=model,
            model_version=self.versions.get(model, ANY_VERSION) if version is None else version,
            requested_output_names=list(outputs),
            inputs=[tensor],
            preferred_memory=self._cpu,
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            text = self._for_clients(model, str(error.message()))
            absent = f"'{model}' is not ready" in text or any(words in text for words in _NOT_THERE)
            later = any(words in text for words in _NOT_NOW) or error.code() in self._final_codes
            return Refusal(text, is_final=absent or later, is_absent=absent)
        arrays: list[Rows] = []
        for name in outputs:
            output = self.pb.get_output_tensor_by_name(response, name)
            if output is None:
                return Refusal(f"answered without its output {name}", is_final=True)
            array = output.as_numpy()
            if array.dtype.kind not in _NUMBERS:
                got = "text" if array.dtype.kind in "OSU" else array.dtype
                return Refusal(f"output {name} holds {got}, expected numbers", is_final=True)
            # The view dies with the response, which frees its shared memory; the sums outlive it.
            arrays.append(array.copy())
        return arrays

    def _for_clients(self, model: str, said: str) -> str:
        """What clients may read of an error; the log has all of it, once a second and member."""
        text, now_s = for_clients(said), time.monotonic()
        whole = " ".join(said.split())
        if text != whole and now_s - self._logged_s.get(model, -math.inf) >= 1:
            self._logged_s[model] = now_s
            self.pb.Logger.log_warn(f"committee: {model} failed: {whole}")
        return text
