"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel.

Nothing can stop an `exec`. One that takes longer than `limits.member_timeout_ms` is given up: its stage goes on
without that member, and whatever it says later is ignored. Its thread is lost until it returns, and so is one of
the server's own, of which a cascade has 64; therefore `Breakers` counts such calls and leaves the member alone.
"""

import math
import threading
import time
from _thread import LockType
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from orchestrator.bls.breaker import Breakers
from orchestrator.bls.deriving import Deriving
from orchestrator.bls.in_process import InProcess
from orchestrator.bls.input_buffer import Buckets
from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import EVERY_ROW, Gate, Helpers, MemberOutputs, Owners, Refusal, StageCall, Work
from orchestrator.bls.rows import AnyRows, Rows, RowTensors, padded
from orchestrator.errors import SENT, for_clients
from orchestrator.spec import CascadeSpec, FusedPrefix
from orchestrator.spec.triton import ANY_VERSION

# Kinds of numpy dtypes that hold scores.
_NUMBERS = "fiub"
# The server's messages for a model that is not there, or takes no request now. Before 25.04 all have the code
# INTERNAL, as a model's own errors do, so that only the words tell them apart.
_NOT_THERE = ("Request for unknown model", "has no available versions", "Stub process")
_NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired")
LACKS = Refusal("a tensor is missing")


@dataclass(eq=False)
class MemberCalls:
    """Calls members; used from many threads at once."""

    pb: Any  # the server's Python module
    spec: CascadeSpec
    metrics: Counters  # counts calls made to find the rows that break a batch
    # model name -> version to ask by number; for others the server chooses. May change at any time.
    versions: Mapping[str, int]
    may_ask_prefix: Callable[[], bool]  # whether the plan's fused prefix may be asked now
    in_process: InProcess  # members that are run here and not called
    c_strings: Collection[str] = ()  # tensors of text that ONNX Runtime reads

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
        self._gates, self._prefix_gate = [Gate() for _ in self._members], Gate()
        covered = () if self.spec.fused_prefix is None else self.spec.stages[: self.spec.fused_prefix.stages]
        self._prefix_outputs = [member.name for stage in covered for member in stage.members]
        self._lock = threading.Lock()  # guards what becomes of calls
        self._limit_s = self.spec.limits.member_timeout_ms / 1000
        # Stage 0 and the workers of every later stage may fan out at the same time.
        self._helpers = Helpers(1 + 4 * max(len(stage.members) - 1 for stage in self.spec.stages))
        self._breakers = Breakers(self.spec, self.metrics, log=self.pb.Logger.log_warn, ask=self._fault_of)
        # By member, its tensor -> the cascade's.
        self._reads = [self.spec.tensors_of(member) for member in self._members]
        self._tensors, self._buckets = self.spec.tensors, Buckets(self.spec)
        self._derives = [bool(self.spec.derived_for(stage)) for stage in range(len(self.spec.stages))]
        deriving = partial(Deriving, self.spec, execute=self._execute, c_strings=self.c_strings)
        self._deriving = deriving(breakers=self._breakers, metrics=self.metrics, lock=self._lock)

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
        asked = self._places[call.stage]
        if refused := self._breakers.refusals(call.stage, asked, call.rows):
            asked = self._left_of(call, refused)
        # Counted before the members are asked: rows answered at a deadline meanwhile have cost it, too.
        self.metrics.asked(len(call.rows), call.stage, call.cost)
        works = self._works_of(call, asked, tensor, owners)
        by_helpers = works if timeout_s is not None else works[1:]
        if by_helpers or len(asked) > len(works):
            call.ready = threading.Lock()
            call.ready.acquire()
        call.is_asked = True
        for work in by_helpers:
            self._helpers.submit(work)
        if len(by_helpers) < len(works):
            # The calling thread does the first itself: one hand-over fewer.
            self._helpers.do(works[0])
        if call.ready is not None and not call.ready.acquire(timeout=-1 if timeout_s is None else timeout_s):
            outputs = self.give_up(call)
            if outputs is not None:
                return outputs
        with self._lock:
            call.is_finished = not call.is_given_up
        return self._outputs_of(call) if call.is_finished else None

    def _works_of(
        self, call: StageCall, asked: Sequence[int], tensor: Any | None, owners: Owners | None
    ) -> list[Work]:
        """What is to be done to ask these of the stage's members, all of it at once."""
        if self.spec.stages[call.stage].on_failure == "answer":
            owners = None  # there each row gets what it can
        works: list[Work] = [partial(self._ask_for, call, place, tensor, owners) for place in asked]
        if works and self._derives[call.stage]:
            return [partial(self._derive_and_ask, call, works, owners)]
        return works

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
            derives = call.deriving
            said = None if derives is None else self._deriving.give_up(derives, call.rows)
            for place in missing:
                text = self._lose(call, place) if said is None else said
                name = self._members[place].name
                said_for = Refusal(f"stage {call.stage} member {name}: {text}")
                call.said[place] = None, {(place, EVERY_ROW): said_for}
        if call.ready is not None:
            call.ready.release()
        return self._outputs_of(call)

    def _lose(self, call: StageCall, place: int) -> str:
        """Takes note that a member's call is lost; returns why it failed."""
        # Whoever waits at the gate for the lost call would be lost, too.
        gate, self._gates[place] = self._gates[place], Gate()
        gate.retire()
        call.lost.add(place)
        self.in_process.drop(self._members[place].name)
        return self._breakers.give_up(place, call.rows)

    def _derive_and_ask(self, call: StageCall, works: Sequence[Work], owners: Owners | None) -> LockType | None:
        """Derives what a stage's members read and then has them asked."""
        try:
            self._deriving.fill(call, owners)
        except Exception as error:  # a caller waits: whatever broke must become its answer
            text = for_clients(f"{type(error).__name__} {error}")
            call.underived = dict.fromkeys(range(len(call.rows)), Refusal(text))
        for work in works[1:]:
            try:
                self._helpers.submit(work)
            except RuntimeError:  # no thread to be had: one after the other
                self._helpers.do(work)
        return works[0]()

    def _left_of(self, call: StageCall, refused: Mapping[int, str]) -> list[int]:
        """The stage's members but for those that must not be asked, whose answers say why."""
        call.said |= {place: (None, {(place, EVERY_ROW): Refusal(text)}) for place, text in refused.items()}
        asked = [place for place in self._places[call.stage] if place not in refused]
        # What it costs to ask these about a row, and to derive what they read.
        derived = self.spec.stage_costs[call.stage] - self.spec.stages[call.stage].cost
        call.cost = sum(self._members[place].cost for place in asked) + (derived if asked else 0)
        return asked

    def ask_stage0(
        self, rows: AnyRows, tensor: Any | None = None, *, owners: Owners | None = None
    ) -> MemberOutputs:
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
        # What runs here comes back, so that this thread may wait for it.
        timeout_s = None if self.in_process.has_stage_0 else self._limit_s
        outputs = self.ask(StageCall(0, rows), tensor, owners=owners, timeout_s=timeout_s)
        assert outputs is not None, "nobody else gives this call up"
        return outputs

    def _ask_prefix(self, prefix: FusedPrefix, rows: AnyRows, tensor: Any | None) -> list[Rows] | None:
        """The outputs (n, k) of the members that the prefix covers; None where it fails for any row."""

        def call(start: int, end: int) -> list[Rows] | Refusal:
            inputs = self._inputs(prefix.name, rows, self._reads[0], start, end, given=tensor)
            said = self._exec(prefix.name, self._prefix_outputs, inputs)
            # Final, because asking the members finds the rows at fault.
            return Refusal(said.text, is_final=True) if isinstance(said, Refusal) else said

        failure = "its outputs have other shapes than its members'"
        try:
            pieces = self._prefix_gate.ask_in_pieces(call, len(rows), size=prefix.max_batch_size)
            said = None if pieces.failed else pieces.outputs(len(rows))
            failure = next((one.text for one in pieces.failed.values()), failure)
        except Exception as error:  # whatever it was, the members can still be asked
            said, failure = None, f"{type(error).__name__} {error}"
        expected = (len(rows), self.spec.classes)
        if said is not None and any(output.shape != expected for output in said):
            said = None
        place, output = self._breakers.prefix, None if said is None else said[0]
        is_certain = output is None and not self._breakers.answers_another_row(place)
        self._breakers.note(place, rows, output, failure=failure, is_certain=is_certain)
        return said

    def _in_time(self, place: int, rows: AnyRows, ask: Callable[[], list[Rows] | None]) -> list[Rows] | None:
        """What the fused prefix says; None where it says nothing before the time limit."""
        ready, said, given_up = threading.Lock(), list[list[Rows] | None](), list[bool]()
        ready.acquire()

        def run() -> LockType:
            outputs = ask()
            with self._lock:
                if given_up:
                    self._breakers.returned(place)
                said.append(outputs)
            return ready

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

    def ask_about_row(self, model: str, row: AnyRows, *, version: int | None) -> Rows | Refusal:
        """The output of a version of a member, or of the fused prefix, for one row (1, *dims); float (1, k)."""
        outputs, reads, gate = self._prefix_outputs, self._reads[0], self._prefix_gate
        for place, member in enumerate(self._members):
            if member.name == model:
                outputs, reads, gate = [member.output], self._reads[place], self._gates[place]
        if isinstance(row, RowTensors):
            found = self._deriving.filled(row, list(reads.values()))
            if isinstance(found, Refusal):
                return found
            row = found

        def call(start: int, end: int) -> list[Rows] | Refusal:
            return self._exec(model, outputs, self._inputs(model, row, reads, start, end), version=version)

        try:
            said = gate.beside_others(call, 0, len(row))
        except Exception as error:  # whatever the server's classes raise
            return Refusal(self._for_clients(model, f"{type(error).__name__} {error}"))
        return said if isinstance(said, Refusal) else np.concatenate(said, axis=-1)

    def close(self) -> None:
        """Ends the helper threads and the probes."""
        self._breakers.stop()
        self._helpers.close()

    def _ask_for(self, call: StageCall, place: int, tensor: Any | None, owners: Owners | None) -> LockType | None:
        """Asks a member for a call, and keeps what it says where the call still stands.

        Raises nothing, because somebody waits for the call.
        """
        if isinstance(call.rows, RowTensors):
            output, failed, is_certain = self._ask_tensors(call, place, call.rows, owners)
        else:
            output, failed, is_certain = self._ask_member(call, place, call.rows, tensor=tensor, owners=owners)
        # Before who waits has the answer, and may let go of the rows or ask again.
        if is_certain is not None and not call.is_given_up:
            failure = next(iter(failed.values())).text if failed else ""
            try:
                self._breakers.note(place, call.rows, output, failure=failure, is_certain=is_certain)
            except Exception as error:  # for want of memory, say
                self.pb.Logger.log_error(f"committee: breaker: {type(error).__name__}: {error}")
        who = f"stage {call.stage} member {self._members[place].name}" if failed else ""
        errors = {(place, row): refusal.under(who) for row, refusal in failed.items()}
        with self._lock:
            if call.is_given_up:
                if place in call.lost:
                    self._breakers.returned(place)
                return None
            call.said[place] = output, errors
            return call.ready if len(call.said) == len(self._places[call.stage]) else None

    def _outputs_of(self, call: StageCall) -> MemberOutputs:
        errors = {at: why for _, failed in call.said.values() for at, why in failed.items()}
        outputs = [call.said[place][0] for place in self._places[call.stage]]
        rows = call.rows if self._derives[call.stage] else None
        return MemberOutputs(outputs, errors, cost=call.cost, rows=rows)

    def _ask_tensors(
        self, call: StageCall, place: int, rows: RowTensors, owners: Owners | None
    ) -> tuple[Rows | None, dict[int, Refusal], bool | None]:
        """As `_ask_member`, about rows bucket by bucket, and only about those that have what it reads.

        Whether a failure speaks of the member is None where it was not asked.
        """
        reads = list(self._reads[place].values())
        lacks = rows.missing(reads)
        failed = {row: call.underived.get(row, LACKS) for row in lacks.nonzero()[0].tolist()}
        asked = (~lacks).nonzero()[0]
        if not len(asked):
            return None, failed, None
        starts: list[int] = []
        codes = self._buckets.codes(rows[asked], reads)
        if codes is not None:
            order = np.argsort(codes, kind="stable")
            asked = asked[order]
            starts = (1 + np.diff(codes[order]).nonzero()[0]).tolist()
        is_whole = not failed and not starts
        whose = owners if owners is None or is_whole else (lambda: owners()[asked])
        part, found, is_certain = self._ask_member(
            call, place, rows if is_whole else rows[asked], owners=whose, starts=starts
        )
        if is_whole:
            return part, found, is_certain
        failed |= {int(asked[at]) if at != EVERY_ROW else at: refusal for at, refusal in found.items()}
        if part is None:
            return None, failed, is_certain
        whole = np.full((len(rows), *part.shape[1:]), np.nan, part.dtype if part.dtype.kind == "f" else np.float32)
        whole[asked] = part
        return whole, failed, is_certain

    def _ask_member(
        self,
        call: StageCall,
        place: int,
        asked: AnyRows,
        *,
        tensor: Any | None = None,
        owners: Owners | None,
        starts: Sequence[int] = (),
    ) -> tuple[Rows | None, dict[int, Refusal], bool]:
        """Asks a stage's member about rows, parts of which begin with `starts`.

        Returns:
            its output (n, k), NaN in rows it failed for; why, by row; whether that speaks of the member itself.
        """
        gate, rows, size = self._gates[place], len(asked), self._members[place].max_batch_size
        ask = partial(self._ask_part, call, place, asked, tensor)
        try:
            first = None
            if rows <= size and not starts:
                said = gate.beside_others(ask, 0, rows)
                if not isinstance(said, Refusal):
                    return said[0], {}, True
                first = said
            pieces = gate.ask_in_pieces(
                ask,
                rows,
                size=size,
                owners=owners,
                first=first,
                starts=starts,
                answers_others=partial(self._breakers.answers_another_row, place),
            )
            outputs = pieces.outputs(rows)
        except Exception as error:  # a caller waits: whatever broke must become its answer
            text = self._for_clients(self._members[place].name, f"{type(error).__name__} {error}")
            return None, {EVERY_ROW: Refusal(text)}, True
        if pieces.further_calls:
            self.metrics.asked_again(place, pieces.further_calls)
        return None if outputs is None else outputs[0], pieces.failed, not pieces.is_alive

    def _ask_part(
        self, call: StageCall, place: int, rows: AnyRows, tensor: Any | None, start: int, end: int
    ) -> list[Rows] | Refusal:
        """Asks a member about some rows; `tensor` is the server's of all."""
        if call.is_given_up:
            return Refusal("given up", is_final=True)
        member = self._members[place]
        inputs = self._inputs(member.name, rows, self._reads[place], start, end, given=tensor)
        said = self._exec(member.name, [member.output], inputs)
        expected = (end - start, self.spec.classes)
        if isinstance(said, Refusal) or said[0].shape == expected:
            return said
        wrong = f"output {member.output} has shape {list(said[0].shape)}, expected {list(expected)}"
        return Refusal(wrong)

    def _fault_of(self, model: str, row: AnyRows) -> str | None:
        """Why a model of the plan does not answer a row (1, *dims); None where it does."""
        if isinstance(row, RowTensors) and self._deriving.knows(model):
            return self._deriving.fault_of(model, row)
        try:
            said = self.ask_about_row(model, row, version=None)
        except Exception as error:  # a breaker waits: whatever it was, no answer has come
            said = Refusal(f"{type(error).__name__} {error}")
        if isinstance(said, Refusal):
            return said.text
        is_prefix = self.spec.fused_prefix is not None and model == self.spec.fused_prefix.name
        expected = (1, self.spec.classes * (len(self._prefix_outputs) if is_prefix else 1))
        return None if said.shape == expected else f"output of shape {list(said.shape)}, expected {list(expected)}"

    def _inputs(
        self,
        model: str,
        rows: AnyRows,
        reads: Mapping[str, str],
        start: int,
        end: int,
        *,
        given: Any | None = None,
    ) -> list[Any]:
        """The server's tensors of some of the rows, by a model's names; the given one where it has just those."""
        if not isinstance(rows, RowTensors):
            name, own = next(iter(reads.items()))
            is_whole = given is not None and end - start == len(rows) and name == own
            return [given if is_whole else self.pb.Tensor(name, rows[start:end])]
        tensors, values, filling = [], 0, 0
        for name, own in reads.items():
            column, filled = padded(rows.columns[own][start:end], self._tensors[own])
            tensors.append(self.pb.Tensor(name, column))
            if self._tensors[own].length_axis is not None:
                values, filling = values + column.size, filling + filled
        if values:
            self.metrics.padded(model, values, filling)
        return tensors

    def _execute(
        self, model: str, outputs: Sequence[str], rows: RowTensors, reads: dict[str, str]
    ) -> list[Rows] | Refusal:
        """Asks a deriving model, which may give texts."""
        return self._exec(model, outputs, self._inputs(model, rows, reads, 0, len(rows)), kinds=_NUMBERS + "O")

    def _exec(
        self,
        model: str,
        outputs: Sequence[str],
        inputs: list[Any],
        *,
        version: int | None = None,
        kinds: str = _NUMBERS,
    ) -> list[Rows] | Refusal:
        """One call, or a run where no version is named; a refusal is final where the model is not there at all."""
        here = self.in_process.members.get(model) if version is None else None
        if here is not None:
            return here.run(inputs)
        request = self.pb.InferenceRequest(
            model_name=model,
            model_version=self.versions.get(model, ANY_VERSION) if version is None else version,
            requested_output_names=list(outputs),
            inputs=inputs,
            preferred_memory=self._cpu,
        )
        response = request.exec()
        if response.has_error():
            error = response.error()
            text = self._for_clients(model, str(error.message()))
            absent = f"'{model}' is not ready" in text or any(words in text for words in _NOT_THERE)
            later = any(words in text for words in _NOT_NOW) or error.code() in self._final_codes
            # Before 25.04 no model's own code comes through.
            is_of_rows = error.code() == self.pb.TritonError.INVALID_ARG
            return Refusal(text, is_final=absent or later, is_absent=absent, is_of_rows=is_of_rows)
        arrays: list[Rows] = []
        for name in outputs:
            output = self.pb.get_output_tensor_by_name(response, name)
            if output is None:
                return Refusal(f"answered without its output {name}")
            array = output.as_numpy()
            if array.dtype.kind not in kinds:
                got = "text" if array.dtype.kind in "OSU" else array.dtype
                return Refusal(f"output {name} holds {got}, expected numbers")
            # The view dies with the response, which frees its shared memory; the sums outlive it.
            arrays.append(array.copy())
        return arrays

    def _for_clients(self, model: str, said: str) -> str:
        """What clients may read of an error; the log has all of it, once a second and member."""
        text, now_s = for_clients(said), time.monotonic()
        whole = " ".join(said[: 10 * SENT].split())
        if text != whole and now_s - self._logged_s.get(model, -math.inf) >= 1:
            self._logged_s[model] = now_s
            self.pb.Logger.log_warn(f"committee: {model} failed: {whole}")
        return text
