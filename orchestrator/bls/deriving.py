"""Tensors that a model of the server makes from others, once per row, at the first stage that reads them.

A deriving model is asked as a member is: in parts, again in halves where it refuses rows, behind a breaker, within
its stage's time limit. A row whose tensor could not be made is one that the members which read it have failed for.
"""

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from orchestrator.bls.breaker import Breakers
from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import BatchPieces, Gate, Owners, Refusal, StageCall
from orchestrator.bls.rows import AnyRows, Rows, RowTensors, objects, over_last_bucket, unpadded
from orchestrator.spec import CascadeSpec, Derived, RowTensor
from orchestrator.spec.derived import needed, ordered
from orchestrator.spec.rows import c_string_fault

# (model, names of its outputs, the rows, the tensors it reads by its names) -> its outputs
Execute = Callable[[str, Sequence[str], RowTensors, dict[str, str]], list[Rows] | Refusal]


class Deriving:
    """Asks the deriving models of a cascade; used from many threads at once.

    Args:
        spec: the cascade.
        breakers: of all models.
        metrics: counts what fails.
        execute: makes one call.
        lock: guards what becomes of calls.
        c_strings: tensors of text that ONNX Runtime reads.
    """

    def __init__(
        self,
        spec: CascadeSpec,
        *,
        breakers: Breakers,
        metrics: Counters,
        execute: Execute,
        lock: threading.Lock,
        c_strings: Collection[str] = (),
    ) -> None:
        self._spec, self._c_strings = spec, c_strings
        self._breakers, self._metrics, self._execute, self._lock = breakers, metrics, execute, lock
        self._models = ordered(spec.derived, (one.name for one in spec.inputs))[0]
        self._for_stage = [spec.derived_for(stage) for stage in range(len(spec.stages))]
        self._places = {one.name: breakers.derived + at for at, one in enumerate(spec.derived)}
        self._gates = {one.name: Gate() for one in spec.derived}
        self._tensors = spec.tensors

    def knows(self, model: str) -> bool:
        """Whether a model of that name derives."""
        return model in self._places

    def fill(self, call: StageCall, owners: Owners | None) -> None:
        """Gives a call's rows the tensors that its stage needs and they lack; `underived` says where it cannot."""
        for model in self._for_stage[call.stage]:
            assert isinstance(call.rows, RowTensors), "rows of several tensors"
            reads = list(self._spec.tensors_of(model).values())
            lacks = call.rows.missing([one.name for one in model.outputs])
            rows = (lacks & ~call.rows.missing(reads)).nonzero()[0]
            if len(rows):
                self._derive(call, model, rows, owners)
            if call.is_given_up:
                return

    def give_up(self, place: int, rows: AnyRows) -> str:
        """Takes note that a call of a deriving model was given up; returns why it failed."""
        model = self._spec.derived[place - self._breakers.derived]
        gate, self._gates[model.name] = self._gates[model.name], Gate()
        gate.retire()
        return f"{model.name}: {self._breakers.give_up(place, rows)}"

    def filled(self, row: RowTensors, names: Sequence[str]) -> RowTensors | Refusal:
        """A row with these tensors, which are derived where it lacks them."""
        for model in needed(self._models, names):
            if row.missing([one.name for one in model.outputs]).any():
                said = self._ask(model, row, 0, len(row))
                if isinstance(said, Refusal):
                    return said
                row = row.with_columns(self._own(model, said))
        return row

    def fault_of(self, name: str, row: RowTensors) -> str | None:
        """Why a deriving model makes nothing of a row; None where it does."""
        model = next(one for one in self._models if one.name == name)
        found = self.filled(row, list(self._spec.tensors_of(model).values()))
        said = found if isinstance(found, Refusal) else self._ask(model, found, 0, len(found))
        return said.text if isinstance(said, Refusal) else None

    def _derive(self, call: StageCall, model: Derived, rows: Any, owners: Owners | None) -> None:
        assert isinstance(call.rows, RowTensors), "rows of several tensors"
        place, part = self._places[model.name], call.rows[rows]
        made = {one.name: objects([None] * len(call.rows)) for one in model.outputs}
        made |= {name: call.rows.columns[name].copy() for name in made if name in call.rows.columns}
        if shut := self._breakers.refusals(call.stage, [place], part):
            text = shut[place].split(f"{model.name}: ", 1)[-1]
            failed = dict.fromkeys(range(len(rows)), Refusal(text))
        else:
            pieces = self._pieces(call, model, part, None if owners is None else lambda: owners()[rows])
            if pieces is None:
                return
            self._take(model, pieces, made, rows)
            failed = pieces.failed | self._unfit(model, made, rows)
            self._note(place, part, failed, is_certain=not pieces.is_alive)
        if failed:
            self._metrics.underived(model.name, len(failed))
        for at, said in failed.items():
            row = None if said.row is None else int(rows[said.row])
            call.underived[int(rows[at])] = replace(said, row=row).under(model.name)
        call.rows = call.rows.with_columns(made)

    def _pieces(
        self, call: StageCall, model: Derived, rows: RowTensors, owners: Owners | None
    ) -> BatchPieces | None:
        """What a model says of rows; None where its stage's call was given up meanwhile."""
        place, ask = self._places[model.name], partial(self._ask_part, call, model, rows)
        call.deriving = place
        pieces = self._gates[model.name].ask_in_pieces(
            ask,
            len(rows),
            size=model.max_batch_size,
            owners=owners,
            answers_others=partial(self._breakers.answers_another_row, place),
        )
        with self._lock:
            call.deriving = None
            if call.is_given_up:
                self._breakers.returned(place)
                return None
        if pieces.further_calls:
            self._metrics.derived_again(model.name, pieces.further_calls)
        return pieces

    def _take(self, model: Derived, pieces: BatchPieces, made: dict[str, Rows], rows: Any) -> None:
        for start, _, outputs in pieces.answered:
            for name, column in self._own(model, outputs).items():
                for at, row in enumerate(column, start=start):
                    made[name][rows[at]] = row

    def _note(self, place: int, rows: RowTensors, failed: dict[int, Refusal], *, is_certain: bool) -> None:
        output = None
        if len(failed) < len(rows):
            output = np.zeros((len(rows), 1), np.float32)
            output[list(failed)] = np.nan
        failure = next((one.text for one in failed.values()), "")
        self._breakers.note(place, rows, output, failure=failure, is_certain=is_certain)

    def _unfit(self, model: Derived, made: dict[str, Rows], rows: Any) -> dict[int, Refusal]:
        """Why members could not read what was made of rows, by place; they are without it again."""
        found: dict[int, Refusal] = {}
        for tensor in model.outputs:
            for at, row in enumerate(made[tensor.name][rows]):
                if row is not None and (text := self._fault(tensor, row)):
                    found[at] = Refusal(text, is_of_rows=True)
        for name in made if found else ():
            made[name][rows[list(found)]] = None
        return found

    def _fault(self, tensor: RowTensor, row: Rows) -> str | None:
        """What is wrong with a derived tensor of a row: too long for its buckets, or no text for a member."""
        if text := over_last_bucket(tensor, row.shape):
            return f"{tensor.name}: {text}"
        texts = row.ravel().tolist() if tensor.name in self._c_strings else ()
        return next((str(fault) for one in texts if (fault := c_string_fault(tensor.name, one))), None)

    def _ask_part(
        self, call: StageCall, model: Derived, rows: RowTensors, start: int, end: int
    ) -> list[Rows] | Refusal:
        if call.is_given_up:
            return Refusal("given up", is_final=True)
        said = self._ask(model, rows, start, end)
        return said.counted_from(start) if isinstance(said, Refusal) else said

    def _ask(self, model: Derived, rows: RowTensors, start: int, end: int) -> list[Rows] | Refusal:
        names = [one.source or one.name for one in model.outputs]
        try:
            said = self._execute(model.name, names, rows[start:end], self._spec.tensors_of(model))
        except Exception as error:  # whatever the server's classes raise
            return Refusal(f"{type(error).__name__} {error}", is_final=True)
        if isinstance(said, Refusal):
            return said
        for name, tensor, output in zip(names, model.outputs, said, strict=True):
            shape = (end - start, *tensor.dims)
            fits = output.ndim == len(shape) and all(
                size in (got, -1) for got, size in zip(output.shape, shape, strict=True)
            )
            if not fits or output.dtype != tensor.numpy_dtype:
                expected = f"{tensor.numpy_dtype} {list(shape)}"
                text = f"output {name} is {output.dtype} {list(output.shape)}, expected {expected}"
                return Refusal(text)
        return said

    def _own(self, model: Derived, outputs: Sequence[Rows]) -> dict[str, Rows]:
        tensors = [one.name for one in model.outputs]
        return unpadded(dict(zip(tensors, outputs, strict=True)), self._tensors)
