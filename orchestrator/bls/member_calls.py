"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel.

Nothing can stop an `exec`. One that takes longer than `limits.member_timeout_ms` is given up: its stage goes on
without that member, and whatever it says later is ignored. Its thread is lost until it returns, and so is one of
the server's own, of which a cascade has 64; therefore `Breakers` counts such calls and leaves the member alone.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.breaker import Breakers
from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import (
    BAD_ROWS_OF_ALIVE,
    CALLS_TO_SILENT,
    EVERY_ROW,
    REPEATS,
    Ask,
    BatchPieces,
    Errors,
    MemberOutputs,
    Owners,
    Refusal,
    StageCall,
    isolate,
)
from orchestrator.errors import for_clients
from orchestrator.spec import CascadeSpec, FusedPrefix
from orchestrator.spec.triton import ANY_VERSION

Rows = npt.NDArray[Any]
# Kinds of numpy dtypes that hold scores.
_NUMBERS = "fiub"
# The server's messages for a model that is not there, or takes no request now. Before 25.04 all have the code
# INTERNAL, as a model's own errors do, so that only the words tell them apart.
_NOT_THERE = ("Request for unknown model", "has no available versions", "Stub process")
_NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired")


class Gate:
    """Lets the calls of one member run side by side, or one caller alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._is_shut = False
        self._is_retired = False

    def retire(self) -> None:
        """Keeps nobody out or waiting any more, because a call inside may never return."""
        with self._lock:
            self._is_retired = True
            self._changed.notify_all()

    def beside_others(self, ask: Ask, start: int, end: int) -> list[Rows] | Refusal:
        """One call, made as soon as nobody calls alone."""
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
                isolate(ask, refused, pieces, owners)
        return pieces


class Helpers:
    """Threads that make calls for other threads; one is started where none is idle, and some stay when idle."""

    def __init__(self, most_idle: int) -> None:
        self._most_idle = most_idle
        self._idle = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Has work done that raises nothing."""
        with self._lock:
            is_idle = self._idle > 0
            self._idle -= is_idle
        if not is_idle:
            threading.Thread(target=self._loop, name="committee-member", daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        """Ends idle threads now, and busy ones when their work is done."""
        with self._lock:
            self._most_idle, idle, self._idle = 0, self._idle, 0
        for _ in range(idle):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                if self._idle >= self._most_idle:
                    return
                self._idle += 1


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
        self._lock = threading.Lock()  # guards what becomes of calls
        self._limit_s = self.spec.limits.member_timeout_ms / 1000
        # Stage 0 and the workers of every later stage may fan out at the same time.
        self._helpers = Helpers(1 + 4 * max(len(stage.members) - 1 for stage in self.spec.stages))
        self._breakers = Breakers(self.spec, self.metrics, log=self.pb.Logger.log_warn, ask=self._fault_of)

    def ask(
        self,
        call: StageCall,
        tensor: Any | None = None,
        *,
        owners: Owners | None = None,
        timeout_s: float | None = None,
    ) -> MemberOutputs | None:
        """Asks the members of a stage whose breakers let it; what a member refuses is asked again in halves.

        Args:
            call: the stage and the rows.
            tensor: the server's tensor behind the rows, forwarded without a copy where name and size allow.
            owners: whose request each row belongs to; one that fails fails with all its rows.
            timeout_s: gives the call up then; None where the caller's thread may be lost in it.

        Returns:
            what they gave; None where the call was given up meanwhile, and somebody else has that.
        """
        if self.spec.stages[call.stage].on_failure == "answer":
            owners = None  # there each row gets what it can
        places = self._places[call.stage]
        refused = self._breakers.refusals(call.stage, places, call.rows)
        call.said |= {place: (None, {(place, EVERY_ROW): text}) for place, text in refused.items()}
        asked = [place for place in places if place not in refused]
        call.cost = sum(self._members[place].cost for place in asked) if refused else None
        # Counted before the members are asked: rows answered at a deadline meanwhile have cost it, too.
        self.metrics.asked(len(call.rows), call.stage, call.cost)
        by_helpers = asked if timeout_s is not None else asked[1:]
        if by_helpers:
            call.ready = threading.Lock()
            call.ready.acquire()
        call.is_asked = True
        ask = partial(self._ask_for, call, tensor=tensor, owners=owners)
        for place in by_helpers:
            self._helpers.submit(partial(ask, place))
        if len(by_helpers) < len(asked):
            # The calling thread asks the first member itself: one hand-over fewer.
            ask(asked[0])
        if call.ready is not None and not call.ready.acquire(timeout=-1 if timeout_s is None else timeout_s):
            outputs = self.give_up(call)
            if outputs is not None:
                return outputs
        with self._lock:
            call.is_finished = not call.is_given_up
        return self._outputs_of(call) if call.is_finished else None

    def give_up(self, call: StageCall) -> MemberOutputs | None:
        """Ends a call that has taken too long: members without an answer have failed.

        Returns:
            what the others gave; None where all have answered just now, which who asked takes note of.
        """
        with self._lock:
            missing = [place for place in self._places[call.stage] if place not in call.said]
            if call.is_finished or not call.is_asked or not missing:
                return None
            call.is_given_up = True
            for place in missing:
                # Whoever waits at the gate for the lost call would be lost, too.
                gate, self._gates[place] = self._gates[place], Gate()
                gate.retire()
                text = self._breakers.give_up(place, call.rows)
                name = self._members[place].name
                call.said[place] = None, {(place, EVERY_ROW): f"stage {call.stage} member {name}: {text}"}
        if call.ready is not None:
            call.ready.release()
        return self._outputs_of(call)

    def ask_stage0(self, rows: Rows, tensor: Any | None = None, *, owners: Owners | None = None) -> MemberOutputs:
        """As `ask`, by the fused prefix where the plan has one; where that fails, the members are asked.

        The caller is the server's one thread for requests, and must come back: a call that hangs in the thread
        itself would stop the cascade for good. So helpers make the calls for it, for two wake-ups of a thread.
        """
        prefix = self.spec.fused_prefix
        if prefix is not None and self.may_ask_prefix() and self._breakers.is_closed(self._breakers.prefix):
            ask = partial(self._ask_prefix, prefix, rows, tensor)
            said = self._in_time(self._breakers.prefix, rows, ask)
            if said is not None:
                self.metrics.asked(len(rows), 0)
                first, *later = [[said[place] for place in places] for places in self._places[: prefix.stages]]
                return MemberOutputs(list(first), {}, later)
        outputs = self.ask(StageCall(0, rows), tensor, owners=owners, timeout_s=self._limit_s)
        assert outputs is not None, "nobody else gives this call up"
        return outputs

    def _ask_prefix(self, prefix: FusedPrefix, rows: Rows, tensor: Any | None) -> list[Rows] | None:
        """The outputs (n, k) of the members that the prefix covers; None where it fails for any row."""

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
        output = None if said is None else said[0]
        self._breakers.note(self._breakers.prefix, rows, output, failure=failure, is_certain=said is not None)
        return said

    def _in_time(self, place: int, rows: Rows, ask: Callable[[], list[Rows] | None]) -> list[Rows] | None:
        """What the fused prefix says; None where it says nothing before the time limit."""
        ready, said, given_up = threading.Lock(), list[list[Rows] | None](), list[bool]()
        ready.acquire()

        def run() -> None:
            outputs = ask()
            with self._lock:
                if given_up:
                    self._breakers.returned(place)
                said.append(outputs)
            ready.release()

        self._helpers.submit(run)
        ready.acquire(timeout=self._limit_s)
        with self._lock:
            if said:
                return said[0]
            given_up.append(True)
            self._prefix_gate.retire()
            self._prefix_gate = Gate()
            self._breakers.give_up(place, rows)
            return None

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
        self._helpers.close()

    def _ask_for(self, call: StageCall, place: int, *, tensor: Any | None, owners: Owners | None) -> None:
        """Asks a member for a call, and keeps what it says where the call still stands."""
        output, failed, is_certain = self._ask_member(call, place, tensor=tensor, owners=owners)
        failure = next(iter(failed.values()), "")
        note = partial(self._breakers.note, place, call.rows, output, failure=failure, is_certain=is_certain)
        # A failure is noted before its rows are answered, so that who asks again finds the breaker as it is then.
        if output is None and not call.is_given_up:
            note()
        who = f"stage {call.stage} member {self._members[place].name}" if failed else ""
        errors = {(place, row): f"{who}: {text}" for row, text in failed.items()}
        with self._lock:
            if call.is_given_up:
                self._breakers.returned(place)
                return
            call.said[place] = output, errors
            if call.ready is not None and len(call.said) == len(self._places[call.stage]):
                call.ready.release()
        if output is not None:  # while the thread that waits wakes up
            note()

    def _outputs_of(self, call: StageCall) -> MemberOutputs:
        said = [call.said[place] for place in self._places[call.stage]]
        errors: Errors = {}
        for _, failed in said:
            errors |= failed
        return MemberOutputs([output for output, _ in said], errors, cost=call.cost)

    def _ask_member(
        self, call: StageCall, place: int, *, tensor: Any | None, owners: Owners | None
    ) -> tuple[Rows | None, dict[int, str], bool]:
        """Asks a stage's member.

        Returns:
            its output (n, k), NaN in rows it failed for; why, by row; whether that speaks of the member itself.
        """
        gate, rows, size = self._gates[place], len(call.rows), self._members[place].max_batch_size
        ask = partial(self._ask_part, call, place, tensor)
        try:
            first = None
            if rows <= size:
                said = gate.beside_others(ask, 0, rows)
                if not isinstance(said, Refusal):
                    return said[0], {}, True
                first = said
            pieces = gate.ask_in_pieces(ask, rows, size=size, owners=owners, first=first)
            outputs = pieces.outputs(rows)
        except Exception as error:  # a caller waits: whatever broke must become its answer
            text = self._for_clients(self._members[place].name, f"{type(error).__name__} {error}")
            return None, {EVERY_ROW: text}, True
        if pieces.further_calls:
            self.metrics.asked_again(place, pieces.further_calls)
        return None if outputs is None else outputs[0], pieces.failed, pieces.is_over

    def _ask_part(
        self, call: StageCall, place: int, tensor: Any | None, start: int, end: int
    ) -> list[Rows] | Refusal:
        """Asks a member about some of a call's rows; `tensor` is the server's of all."""
        if call.is_given_up:
            return Refusal("given up", is_final=True)
        member = self._members[place]
        name = member.input or self.spec.input.name
        given = tensor if name == self.spec.input.name else None
        said = self._exec(
            member.name, [member.output], self._tensor(call.rows, start, end, given=given, name=name)
        )
        expected = (end - start, self.spec.classes)
        if isinstance(said, Refusal) or said[0].shape == expected:
            return said
        wrong = f"output {member.output} has shape {list(said[0].shape)}, expected {list(expected)}"
        return Refusal(wrong, is_final=True)

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
