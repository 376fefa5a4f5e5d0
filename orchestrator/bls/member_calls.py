"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from orchestrator.bls.isolation import Ask, BatchPieces, Owners, Refusal, Rows, ask_in_pieces
from orchestrator.bls.metrics import Counters
from orchestrator.spec import CascadeSpec, FusedPrefix, Member
from orchestrator.spec.triton import ANY_VERSION

# By member's plan index and row of the batch, why the member failed for that row.
Errors = dict[tuple[int, int], str]
# The server's messages for a model that is not there, or takes no request now. Before 25.04 all have the code
# INTERNAL, as a model's own errors do, so that only the words tell them apart.
_NOT_THERE = ("Request for unknown model", "has no available versions", "Stub process")
_NOT_NOW = ("Exceeds maximum queue size", "Request timeout expired")
# The row under which an error of a whole batch stands.
EVERY_ROW = -1


@dataclass(slots=True)
class MemberOutputs:
    """What a stage's members gave for n rows.

    Args:
        outputs: (n, k) per member in plan order, NaN in rows it failed for; None for a member that failed for all.
        errors: why members failed.
        later: the fused prefix's outputs of the stages after it, (n, k) per member, NaN for rows it did not ask.
    """

    outputs: list[Rows | None]
    errors: Errors
    later: tuple[list[Rows], ...] = ()


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

    def ask_in_pieces(
        self, ask: Ask, rows: int, *, size: int, owners: Owners | None = None, first: Refusal | None = None
    ) -> BatchPieces:
        """`isolation.ask_in_pieces` for this member."""
        through = partial(self.beside_others, ask)
        return ask_in_pieces(through, rows, size=size, alone=partial(self.alone, ask), owners=owners, first=first)

    @contextmanager
    def alone(self, ask: Ask) -> Iterator[Ask]:
        """Waits until everybody has left, and keeps them out meanwhile; gives `ask` back."""
        with self._lock:
            while self._is_shut:
                self._changed.wait()
            self._is_shut = True
            while self._inside:
                self._changed.wait()
        try:
            yield ask
        finally:
            with self._lock:
                self._is_shut = False
                self._changed.notify_all()


class MemberCalls:
    """Calls members; used from many threads at once.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        metrics: counts calls made to find the rows that break a batch.
        versions: model name -> version to ask by number; for others the server chooses. May change at any time.
        may_ask_prefix: whether the plan's fused prefix may be asked now.
    """

    def __init__(
        self,
        pb_utils: Any,
        spec: CascadeSpec,
        metrics: Counters,
        *,
        versions: Mapping[str, int],
        may_ask_prefix: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pb = pb_utils
        self._spec = spec
        self._metrics = metrics
        self._versions = versions
        self._may_ask_prefix = may_ask_prefix
        self._cpu = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        error = pb_utils.TritonError
        # A server without one of these names never sends it.
        names = ("UNAVAILABLE", "NOT_FOUND", "UNSUPPORTED", "CANCELLED")
        self._final_codes = {getattr(error, name) for name in names if hasattr(error, name)}
        self._first = np.cumsum([0, *(len(stage.members) for stage in spec.stages)]).tolist()
        self._gates = [Gate() for _ in spec.members]
        self._prefix_gate = Gate()
        extra = max(len(stage.members) - 1 for stage in spec.stages)
        # Stage 0 and the workers of every later stage may fan out at the same time.
        self._pool = ThreadPoolExecutor(extra * 4, "committee-member") if extra else None

    def ask(
        self, stage: int, rows: Rows, tensor: Any | None = None, *, owners: Owners | None = None
    ) -> MemberOutputs:
        """Asks every member of a stage; what a member refuses is asked again in halves.

        Args:
            stage: which one.
            rows: (n, *dims).
            tensor: the server's tensor behind `rows`, forwarded without a copy where name and size allow.
            owners: int64 (n,), whose request each row belongs to; one that fails fails with all its rows.
        """
        part = self._spec.stages[stage]
        if part.on_failure == "answer":
            owners = None  # there each row gets what it can
        if len(part.members) == 1:
            output, errors = self._ask_member(stage, 0, rows, tensor=tensor, owners=owners)
            return MemberOutputs([output], errors)
        assert self._pool is not None, "made where a stage has several members"
        # The calling thread asks the first member itself: one hand-over fewer.
        others = [
            self._pool.submit(self._ask_member, stage, index, rows, tensor=tensor, owners=owners)
            for index in range(1, len(part.members))
        ]
        first = self._ask_member(stage, 0, rows, tensor=tensor, owners=owners)
        said = [first, *(future.result() for future in others)]
        errors = {key: text for _, failed in said for key, text in failed.items()}
        return MemberOutputs([output for output, _ in said], errors)

    def ask_stage0(self, rows: Rows, tensor: Any | None = None, *, owners: Owners | None = None) -> MemberOutputs:
        """Asks stage 0, by the fused prefix where the plan has one; where that fails, its members are asked.

        Args:
            rows: (n, *dims).
            tensor: as for `ask`.
            owners: as for `ask`.
        """
        prefix = self._spec.fused_prefix
        if prefix is None or not self._may_ask_prefix():
            return self.ask(0, rows, tensor, owners=owners)
        covered = self._spec.stages[: prefix.stages]
        names = _covered_members(self._spec, prefix)

        def call(start: int, end: int) -> list[Rows] | Refusal:
            said = self._exec(prefix.name, names, self._tensor(rows, start, end, given=tensor))
            # Final, because asking the members finds the rows at fault.
            return Refusal(said.text, is_final=True) if isinstance(said, Refusal) else said

        try:
            pieces = self._prefix_gate.ask_in_pieces(call, len(rows), size=prefix.max_batch_size)
            said = None if pieces.failed else pieces.outputs(len(rows))
        except Exception:  # whatever it was, the members can still be asked
            said = None
        expected = (len(rows), self._spec.classes)
        if said is None or any(output.shape != expected for output in said):
            return self.ask(0, rows, tensor, owners=owners)
        each = iter(said)
        first, *later = [[next(each) for _ in stage.members] for stage in covered]
        return MemberOutputs(list(first), {}, tuple(later))

    def ask_about_row(self, model: str, row: Rows, *, version: int | None) -> Rows | Refusal:
        """The output of a version of a member, or of the fused prefix, for one row (1, *dims); float (1, k)."""
        spec, prefix = self._spec, self._spec.fused_prefix
        if prefix is not None and model == prefix.name:
            outputs, source, gate = _covered_members(spec, prefix), None, self._prefix_gate
        else:
            place = [member.name for member in spec.members].index(model)
            member = spec.members[place]
            outputs, source, gate = [member.output], member.input, self._gates[place]

        def call(start: int, end: int) -> list[Rows] | Refusal:
            return self._exec(model, outputs, self._tensor(row, start, end, name=source), version=version)

        try:
            said = gate.beside_others(call, 0, len(row))
        except Exception as error:  # whatever the server's classes raise
            return Refusal(f"{type(error).__name__} {error}")
        return said if isinstance(said, Refusal) else np.concatenate(said, axis=-1)

    def close(self) -> None:
        """Ends the helper threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_member(
        self, stage: int, index: int, rows: Rows, *, tensor: Any | None, owners: Owners | None
    ) -> tuple[Rows | None, Errors]:
        """The output (n, k) of a stage's member, NaN in rows it failed for, and why it failed for them."""
        member = self._spec.stages[stage].members[index]
        place = self._first[stage] + index
        name = member.input or self._spec.input.name
        given = tensor if name == self._spec.input.name else None
        gate = self._gates[place]

        def call(start: int, end: int) -> list[Rows] | Refusal:
            said = self._exec(member.name, [member.output], self._tensor(rows, start, end, given=given, name=name))
            return said if isinstance(said, Refusal) else self._checked(member, said, end - start)

        try:
            first = None
            if len(rows) <= member.max_batch_size:
                said = gate.beside_others(call, 0, len(rows))
                if not isinstance(said, Refusal):
                    return said[0], {}
                first = said
            size = member.max_batch_size
            pieces = gate.ask_in_pieces(call, len(rows), size=size, owners=owners, first=first)
            outputs = pieces.outputs(len(rows))
        except Exception as error:  # a caller waits: whatever broke must become its answer
            text = f"stage {stage} member {member.name}: {type(error).__name__} {error}"
            return None, {(place, EVERY_ROW): text}
        if pieces.further_calls:
            self._metrics.asked_again(place, pieces.further_calls)
        errors = {
            (place, row): f"stage {stage} member {member.name}: {text}" for row, text in pieces.failed.items()
        }
        return None if outputs is None else outputs[0], errors

    def _checked(self, member: Member, said: list[Rows], rows: int) -> list[Rows] | Refusal:
        """A member's output, if it has a row of class scores for every row."""
        expected = (rows, self._spec.classes)
        if said[0].shape == expected:
            return said
        wrong = f"output {member.output} has shape {list(said[0].shape)}, expected {list(expected)}"
        return Refusal(wrong, is_final=True)

    def _tensor(
        self, rows: Rows, start: int, end: int, *, given: Any | None = None, name: str | None = None
    ) -> Any:
        """The server's tensor of some of the rows; the given one where it has just those."""
        if given is not None and end - start == len(rows):
            return given
        return self._pb.Tensor(name or self._spec.input.name, rows[start:end])

    def _exec(
        self, model: str, outputs: Sequence[str], tensor: Any, *, version: int | None = None
    ) -> list[Rows] | Refusal:
        request = self._pb.InferenceRequest(
            model_name=model,
            model_version=self._versions.get(model, ANY_VERSION) if version is None else version,
            requested_output_names=list(outputs),
            inputs=[tensor],
            preferred_memory=self._cpu,
        )
        response = request.exec()
        if response.has_error():
            return self._refusal(model, response.error())
        arrays: list[Rows] = []
        for name in outputs:
            output = self._pb.get_output_tensor_by_name(response, name)
            if output is None:
                return Refusal(f"answered without its output {name}", is_final=True)
            # The view dies with the response, which frees its shared memory; the sums outlive it.
            arrays.append(output.as_numpy().copy())
        return arrays

    def _refusal(self, model: str, error: Any) -> Refusal:
        """An error of a call; final where it speaks of the model and not of what it was asked."""
        text = " ".join(str(error.message()).split())
        absent = f"'{model}' is not ready" in text or any(words in text for words in _NOT_THERE)
        later = any(words in text for words in _NOT_NOW) or error.code() in self._final_codes
        return Refusal(text, is_final=absent or later, is_absent=absent)


def _covered_members(spec: CascadeSpec, prefix: FusedPrefix) -> list[str]:
    return [member.name for stage in spec.stages[: prefix.stages] for member in stage.members]
