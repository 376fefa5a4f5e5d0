"""Requests: read and checked, each alone, kept until they are answered, each exactly once; and their responses."""

import itertools
import json
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.pieces import EVERY_ROW, Errors
from orchestrator.bls.rows import (
    AnyRows,
    OneTensor,
    Rows,
    RowTensors,
    checked_rows,
    merged,
    non_finite_fault,
    objects,
)
from orchestrator.decision import (
    DEFAULT,
    AnsweredRows,
    EarlyExit,
    ForwardedHeaders,
    Policy,
    policy_from_parameters,
)
from orchestrator.errors import InputError, for_clients, sent
from orchestrator.probe import LATE_WORDS
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.held_requests import number_of_held_requests
from orchestrator.spec.rows import check_c_strings

Columns = dict[str, Rows]
INVALID, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED"
# Nearly every request wants all outputs, and one set for them is cheaper than one each.
ALL_OUTPUTS = frozenset(ANSWER_COLUMNS)
LATE = f"{LATE_WORDS[0]} before any stage had answered"
HOPELESS = f"{LATE_WORDS[1]}: the queue is so long that no stage can answer by then"
# Outputs that all answers of stage 0 have in common, unless a status bit was earned.
CONSTANT = ("exit_stage", "cost", "status")
# Sizes of request whose constant outputs are kept.
MAX_KEPT = 64
NO_ROWS: Rows = np.zeros(0)
# What bytes that are no UTF-8 become.
_REPLACED = "\ufffd"


@dataclass(slots=True)
class PendingRequest:
    """One request with everything needed to answer it."""

    token: int  # unique while the model is loaded
    place: int  # its index in the list `execute` got
    request: Any  # the server's request
    tensor: Any  # its input, valid until it is answered; None where it has several, or a length that varies
    rows: Any  # its input, valid until it is answered
    policy: Policy  # what it asked for
    is_plain: bool  # whether its rows are decided as the plan has it
    arrived_ns: int  # on the monotonic clock
    deadline_ns: int | None  # when its best answer so far is due, on that clock; None for no deadline
    wanted: frozenset[str]  # output names to send
    count: int  # number of rows
    unanswered: int  # rows without an answer
    partial_outputs: Columns | None = None  # answers so far, made where not all rows are answered at once
    popped_by: int | None = None  # the thread that has to answer it

    def time_left_ns(self, now_ns: int) -> int | None:
        """Time until the point in Unix time that it named as its deadline; None where it named none."""
        left_us = self.policy.left_us
        return None if left_us is None else self.arrived_ns + left_us * 1000 - now_ns

    def add_part(self, position: npt.NDArray[np.int64], part: Columns) -> Columns:
        """Its outputs so far, with those of some more of its rows."""
        if self.partial_outputs is None:
            shapes = {name: (self.count, column.shape[1]) for name, column in part.items()}
            self.partial_outputs = {name: np.empty(shape, part[name].dtype) for name, shape in shapes.items()}
        for name, column in self.partial_outputs.items():
            column[position] = part[name]
        return self.partial_outputs


class PendingRequests:
    """Requests that are not answered yet. Whoever pops one answers it, so each is answered exactly once.

    Every step is a single operation of a dict, which threads see as a whole, and needs no lock. The clock's
    thread walks through the deadlines that are watched: a watched request is popped under the scheduler's lock.
    """

    def __init__(self) -> None:
        self._by_token: dict[int, PendingRequest] = {}  # those that nobody has popped
        self._held: dict[int, PendingRequest] = {}  # those whose answer is not out yet
        self._number = number_of_held_requests()
        self._deadlines_ns: dict[int, int] = {}  # by token

    def __contains__(self, request: PendingRequest) -> bool:
        return request.token in self._by_token

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def held(self) -> int:
        """How many are not answered, those included whose answer is on its way."""
        return len(self._held)

    def get(self, token: int) -> PendingRequest | None:
        """The request, if it still waits."""
        return self._by_token.get(token)

    def all(self) -> list[PendingRequest]:
        """Every request that waits."""
        return list(self._by_token.values())

    def add(self, requests: Iterable[PendingRequest]) -> None:
        """Keeps requests until they are popped."""
        by_token = {one.token: one for one in requests}
        self._held.update(by_token)
        self._count()
        self._by_token.update(by_token)

    def pop(self, request: PendingRequest) -> bool:
        """Takes a request out, which is then the caller's to answer; False where somebody else has done so."""
        if request.deadline_ns is not None:
            self._deadlines_ns.pop(request.token, None)
        if self._by_token.pop(request.token, None) is None:
            return False
        request.popped_by = threading.get_ident()
        return True

    def answered(self, tokens: Iterable[int]) -> None:
        """The answers of requests that were popped are out."""
        for token in tokens:
            self._held.pop(token, None)
        self._count()

    def lost(self) -> list[PendingRequest]:
        """What this thread has popped and not answered, because of an error in between."""
        own = threading.get_ident()
        return [one for one in list(self._held.values()) if one.popped_by == own]

    def _count(self) -> None:
        # Threads may store in another order than they counted in, so each one counts again after it has stored.
        while self._number[0] != (number := len(self._held)):
            self._number[0] = number

    def watch_deadlines(self, requests: Iterable[PendingRequest]) -> None:
        """From now on `late` names these when their time has come."""
        for request in requests:
            if request in self and request.deadline_ns is not None:
                self._deadlines_ns[request.token] = request.deadline_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """The earliest deadline watched, on the monotonic clock."""
        return min(self._deadlines_ns.values(), default=None)

    def late(self, now_ns: int) -> list[PendingRequest]:
        """Requests whose deadline has come; each is named once, and still waits."""
        tokens = [token for token, deadline_ns in self._deadlines_ns.items() if deadline_ns <= now_ns]
        for token in tokens:
            del self._deadlines_ns[token]
        return [self._by_token[token] for token in tokens if token in self._by_token]


class RequestReader:
    """Checks and reads requests.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        c_strings: inputs of text that ONNX Runtime reads.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec, c_strings: Collection[str] = ()) -> None:
        self._pb, self._c_strings = pb_utils, c_strings
        self._inputs = spec.inputs
        self._name = spec.inputs[0].name
        self._one = OneTensor(pb_utils, spec.input) if spec.has_one_tensor else None
        self._stages = len(spec.stages)
        self._gears = 1 if spec.gears is None else 1 + len(spec.gears.cheaper)
        self._headers = ForwardedHeaders(spec.header_pattern)
        self._tokens = itertools.count()

    def read_all(
        self, requests: Sequence[Any]
    ) -> tuple[list[PendingRequest], AnyRows, dict[int, tuple[str, str]]]:
        """Reads requests each by itself: a bad one never harms its neighbours.

        Returns:
            the valid requests, all their rows (n, *dims), and by place the message and code of each of the others.
        """
        now_ns = time.monotonic_ns()
        batch: list[PendingRequest] = []
        refused: dict[int, tuple[str, str]] = {}
        for place, request in enumerate(requests):
            try:
                batch.append(self._read(request, place, now_ns=now_ns))
            except InputError as error:
                refused[place] = str(error), INVALID
            except UnicodeDecodeError:
                refused[place] = str(InputError("request", got="bytes that are not UTF-8")), INVALID
            except Exception as error:  # raising would fail the whole batch, and the server would keep it
                refused[place] = f"cascade failed: {type(error).__name__}: {error}", INTERNAL
        if self._one is None:
            return batch, merged([one.rows for one in batch]) if batch else NO_ROWS, refused
        return self._without_non_finite(batch, refused, self._one)

    def _without_non_finite(
        self, batch: list[PendingRequest], refused: dict[int, tuple[str, str]], one_tensor: OneTensor
    ) -> tuple[list[PendingRequest], AnyRows, dict[int, tuple[str, str]]]:
        rows = merged([one.rows for one in batch]) if batch else NO_ROWS
        # One look at all rows; which of them are bad is only asked where one is.
        if not batch or one_tensor.is_finite(rows):
            return batch, rows, refused
        bad = [one for one in batch if not one_tensor.is_finite(one.rows)]
        refused |= {one.place: (str(non_finite_fault(self._name, one.rows)), INVALID) for one in bad}
        batch = [one for one in batch if one.place not in refused]
        return batch, merged([one.rows for one in batch]) if batch else NO_ROWS, refused

    def count_rows(self, request: Any) -> int:
        """Rows of a request, whatever is wrong with it; 0 where that cannot be told."""
        try:
            tensor = self._pb.get_input_tensor_by_name(request, self._name)
            shape = () if tensor is None else tensor.as_numpy().shape
        except Exception:  # a tensor of text, say, that is no UTF-8
            return 0
        return int(shape[0]) if shape else 0

    def policy_of(self, request: Any) -> Policy:
        """What a request asks for, whatever headers came with it.

        Raises:
            InputError: an unknown parameter, or a value of the wrong type or out of range.
            UnicodeDecodeError: a parameter that is no header is not UTF-8.
        """
        try:
            text = request.parameters()
            if not text or text == "{}":
                # By far the usual case, and the same object for all: the fast path asks for it by `is`.
                return DEFAULT
            parameters = json.loads(text)
        except UnicodeDecodeError as error:
            parameters = self._without_garbled_headers(error)
        now_us = time.time_ns() // 1000
        return policy_from_parameters(parameters, self._stages, self._gears, now_us=now_us, headers=self._headers)

    def _read(self, request: Any, place: int, *, now_ns: int) -> PendingRequest:
        policy = self.policy_of(request)
        tensor, rows = (None, self._rows_of(request)) if self._one is None else self._one.read(request)
        names = request.requested_output_names()
        wanted = ALL_OUTPUTS if len(names) in (0, len(ALL_OUTPUTS)) else frozenset(names)
        is_plain = policy is DEFAULT or policy.is_plain
        deadline_ns = None if policy.deadline_us is None else now_ns + policy.deadline_us * 1000
        token, count = next(self._tokens), len(rows)
        # By place, because names take a microsecond longer, and every request pays it.
        return PendingRequest(
            token, place, request, tensor, rows, policy, is_plain, now_ns, deadline_ns, wanted, count, count
        )

    def _rows_of(self, request: Any) -> RowTensors:
        """The rows of a request of several tensors, views of the server's memory but for text."""
        columns: dict[str, Rows] = {}
        for spec in self._inputs:
            tensor = self._pb.get_input_tensor_by_name(request, spec.name)
            rows = checked_rows(tensor, spec)
            if spec.non_finite == "reject" and rows.dtype.kind == "f" and not np.isfinite(rows).all():
                raise non_finite_fault(spec.name, rows)
            if spec.name in self._c_strings:
                check_c_strings(f"input {spec.name}", rows)
            columns[spec.name] = rows if spec.length_axis is None else objects(list(rows))
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) > 1:
            got = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError("request", got=f"rows {got}", expected="as many in every tensor")
        if unknown := [tensor.name() for tensor in request.inputs() if tensor.name() not in columns]:
            raise InputError("request", got=f"tensors {', '.join(unknown)}", expected=", ".join(columns))
        return RowTensors(columns)

    def _without_garbled_headers(self, error: UnicodeDecodeError) -> dict[str, object]:
        """The parameters but for headers, which may hold any bytes; the server's error has the whole text."""
        try:
            parameters = json.loads(error.object.decode("utf-8", "replace"))
        except ValueError:
            raise error from None
        own = self._headers.without(parameters)
        if any(_REPLACED in f"{name}{value}" for name, value in own.items()):
            raise error
        return own


@dataclass(slots=True)
class Reply:
    """An answer decided on: columns, or an error with the name of the server's code."""

    request: PendingRequest
    columns: Columns | None
    message: str = ""
    code: str = ""


def reason_of(
    spec: CascadeSpec, index: int, row: int, *, errors: Errors, positions: Mapping[int, int]
) -> tuple[str, str]:
    """Why a row, among those a member was asked for, has no answer; and the error's code.

    The member is the one of that index in plan order; -1 says that none had answered by the deadline. `positions`
    are those that rows without an answer have in the request.
    """
    if index < 0:
        return LATE, UNAVAILABLE
    if error := errors.get((index, row)) or errors.get((index, EVERY_ROW)):
        text = error.told(positions)
        return (text, INVALID) if error.is_of_rows else (f"{text}; try again", UNAVAILABLE)
    member = spec.members[index]
    stage = next(number for number, part in enumerate(spec.stages) if member in part.members)
    return f"stage {stage} member {member.name}: output holds NaN, infinity or no finite class score", UNAVAILABLE


def completed(answers: AnsweredRows, pending: PendingRequests) -> list[tuple[PendingRequest, Columns]]:
    """Deals rows' answers out; returns the requests that are complete now, with their outputs.

    A request all of whose rows are among the answers, the usual one, gets slices; parts of others are kept until
    the last row has come, and answers of requests that do not wait any more are dropped.
    """
    if not len(answers):
        return []
    if len(answers) > 1:  # rows of a request together and in its own order, so that most get slices
        answers = answers[np.lexsort((answers.position, answers.request))]
    columns = {name: getattr(answers, name).reshape(len(answers), -1) for name in ANSWER_COLUMNS}
    tokens = answers.request
    starts = [0, *(1 + (tokens[1:] != tokens[:-1]).nonzero()[0]).tolist()]
    complete = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        request = pending.get(int(tokens[start]))
        if request is None:
            continue
        part = {name: column[start:end] for name, column in columns.items()}
        if end - start < request.count:
            part = request.add_part(answers.position[start:end], part)
        request.unanswered -= end - start
        if request.unanswered == 0:
            complete.append((request, part))
    return complete


class Responder:
    """Builds the server's response objects, and sends those of late answers."""

    def __init__(self, pb_utils: Any, spec: CascadeSpec, pending: PendingRequests) -> None:
        self._pb = pb_utils
        self._pending = pending
        self._looking = threading.Lock()
        self._looked_at: PendingRequest | None = None
        self._cost = np.float32(spec.stage_costs[0])
        self._constant: dict[int, list[Any]] = {}
        # For when no other can be built.
        self._spare = self._error("cascade failed: its error cannot be told; the server's log has it", INTERNAL)

    def error(self, message: str, code: str) -> Any:
        """A response that carries an error code, by its name in TritonError; the log has faults of ours whole."""
        message = for_clients(message) if code == INTERNAL else sent(message)
        try:
            return self._error(message, code)
        except Exception as error:  # for want of memory, say: the client must hear something
            self._pb.Logger.log_error(f"committee: error response: {type(error).__name__}: {error}")
            return self._spare

    def _error(self, message: str, code: str) -> Any:
        number = getattr(self._pb.TritonError, code, self._pb.TritonError.INTERNAL)
        return self._pb.InferenceResponse(output_tensors=[], error=self._pb.TritonError(message, number))

    def response(self, reply: Reply) -> Any:
        """The response of a reply."""
        columns, wanted = reply.columns, reply.request.wanted
        if columns is None:
            return self.error(reply.message, reply.code)
        try:
            tensors = [self._pb.Tensor(name, column) for name, column in columns.items() if name in wanted]
            return self._pb.InferenceResponse(output_tensors=tensors)
        except Exception as error:  # whatever the server's classes raise: the client must hear something
            return self._unbuilt(error)

    def _unbuilt(self, error: Exception) -> Any:
        text = f"answer could not be built: {error}"
        self._pb.Logger.log_error(f"committee: {text}")
        return self.error(text, INTERNAL)

    def early_responses(self, requests: Iterable[tuple[PendingRequest, int]], early: EarlyExit) -> list[Any]:
        """The responses of requests, each given with where its rows begin, that leave at stage 0 as a whole.

        Most requests of a good cascade do, so columns are made once per batch, answers are slices of them, and
        what is the same in every such answer is built once and sent again and again.
        """
        answer = early.answer
        own: list[tuple[str, Rows]] = [("probabilities", answer.probabilities)]
        own += [("label", answer.label[:, None]), ("confidence", answer.confidence[:, None])]
        status = None if early.status is None else early.status[:, None]
        return [self._early_response(one, start, own=own, status=status) for one, start in requests]

    def _early_response(
        self, request: PendingRequest, start: int, *, own: Sequence[tuple[str, Rows]], status: Rows | None
    ) -> Any:
        pb, wanted, end = self._pb, request.wanted, start + request.count
        try:
            constant = self._constant_tensors(request.count)
            if status is not None:
                constant = [*constant[:-1], pb.Tensor("status", status[start:end])]
            if wanted is ALL_OUTPUTS:
                tensors = [pb.Tensor(name, column[start:end]) for name, column in own] + constant
            else:
                tensors = [pb.Tensor(name, column[start:end]) for name, column in own if name in wanted]
                tensors += [one for name, one in zip(CONSTANT, constant, strict=True) if name in wanted]
            return pb.InferenceResponse(output_tensors=tensors)
        except Exception as error:  # whatever the server's classes raise: the client must hear something
            return self._unbuilt(error)

    def _constant_tensors(self, count: int) -> list[Any]:
        """The outputs that say the same in every early answer of so many rows, to be read only."""
        kept = self._constant.get(count)
        if kept is None:
            zeros = np.zeros((count, 1), np.int32)
            columns = (zeros, np.full((count, 1), self._cost), zeros.copy())
            kept = [self._pb.Tensor(name, column) for name, column in zip(CONSTANT, columns, strict=True)]
            if count <= MAX_KEPT:
                self._constant[count] = kept
        return kept

    def send(self, reply: Reply) -> None:
        """Sends an answer by the request's sender; a client that went away is no error, as nobody can be told."""
        request = reply.request
        try:
            response = self.response(reply)
        except Exception as error:  # it was popped, so nobody else answers it
            response = self.error(f"cascade failed: {type(error).__name__}: {error}", INTERNAL)
        if self._looked_at is request:
            with self._looking:  # until the server has said whether it was cancelled
                pass
        try:
            # The server makes the sender with the request, so asking for it here and not earlier costs nothing.
            sender = request.request.get_response_sender()
            sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # a broken sender is the server's to clean up
            self._pb.Logger.log_warn(f"committee: an answer could not be sent: {error}")
        # Views of the server's memory go as soon as the answer is out.
        request.request = request.tensor = request.rows = request.partial_outputs = None

    def is_cancelled(self, request: PendingRequest) -> bool:
        """Whether the client of a request whose rows are deferred went away; False once it is answered.

        The server frees what it is asked about here as soon as the answer is sent. Whoever answers pops the
        request first and looks for this mark then; it is set before it is seen whether the request was popped.
        """
        with self._looking:
            self._looked_at = request
            try:
                return request in self._pending and bool(request.request.is_cancelled())
            finally:
                self._looked_at = None
