"""Answers to requests: rows' answers dealt out to their requests, and the server's response objects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.member_calls import EVERY_ROW, Errors
from orchestrator.bls.requests import ALL_OUTPUTS, INTERNAL, Columns, PendingRequest, PendingRequests
from orchestrator.decision import AnsweredRows, EarlyExit
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

LATE = "deadline passed before any stage had answered"
HOPELESS = "deadline too near: the queue is so long that no stage can answer by then"
# Outputs that every answer of stage 0 has of its own, and those that all have in common unless a status bit was
# earned; the status comes last.
OWN, CONSTANT = tuple(ANSWER_COLUMNS)[:3], tuple(ANSWER_COLUMNS)[3:]
# Sizes of request whose constant outputs are kept.
MAX_KEPT = 64


@dataclass(slots=True)
class Reply:
    """An answer decided on: columns, or an error with the name of the server's code."""

    request: PendingRequest
    columns: Columns | None
    message: str = ""
    code: str = ""


def reason_of(spec: CascadeSpec, index: int, row: int, errors: Errors) -> str:
    """Why a row has no answer.

    Args:
        spec: the cascade.
        index: the member that failed, in plan order; -1 where no member had answered by the deadline.
        row: the row, among those the member was asked for.
        errors: why members failed.
    """
    if index < 0:
        return LATE
    error = errors.get((index, row)) or errors.get((index, EVERY_ROW))
    if error is not None:
        return f"{error}; try again"
    member = spec.members[index]
    stage = next(number for number, part in enumerate(spec.stages) if member in part.members)
    return f"stage {stage} member {member.name}: output holds NaN, infinity or no finite class score"


def completed(answers: AnsweredRows, pending: PendingRequests) -> list[tuple[PendingRequest, Columns]]:
    """Deals rows' answers out; returns the requests that are complete now, with their outputs.

    A request all of whose rows are among the answers, the usual one, gets slices; those of other requests are
    kept in `partial_outputs` until the last row has come. Loops over requests, never over rows.

    Args:
        answers: of any requests, in any order.
        pending: requests that wait; answers of others are dropped.
    """
    if not len(answers):
        return []
    if len(answers) > 1:  # rows of a request together and in its own order, so that most get slices
        answers = answers[np.lexsort((answers.position, answers.request))]
    tokens, columns = answers.request, _columns_of(answers)
    starts = [0, *(1 + (tokens[1:] != tokens[:-1]).nonzero()[0]).tolist()]
    complete = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        request = pending.get(int(tokens[start]))
        if request is None:
            continue
        part = {name: column[start:end] for name, column in columns.items()}
        if end - start < request.count:
            part = _filled_in(request, answers.position[start:end], part)
        request.unanswered -= end - start
        if request.unanswered == 0:
            complete.append((request, part))
    return complete


def _filled_in(request: PendingRequest, position: npt.NDArray[np.int64], part: Columns) -> Columns:
    """A request's outputs so far, with those of some more of its rows."""
    if request.partial_outputs is None:
        request.partial_outputs = {
            name: np.empty((request.count, column.shape[1]), column.dtype) for name, column in part.items()
        }
    for name, column in request.partial_outputs.items():
        column[position] = part[name]
    return request.partial_outputs


def _columns_of(answers: AnsweredRows) -> Columns:
    """Every output of answers, (n, k) or (n, 1)."""
    columns = {}
    for name, (_, dtype, is_vector) in ANSWER_COLUMNS.items():
        values = getattr(answers, name)
        if values.dtype != dtype:
            values = values.astype(dtype)
        columns[name] = values if is_vector else values[:, None]
    return columns


class Responder:
    """Builds the server's response objects, and sends those of late answers.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec) -> None:
        self._pb = pb_utils
        self._cost = np.float32(spec.stages[0].cost)
        self._constant: dict[int, list[Any]] = {}

    def error(self, message: str, code: str) -> Any:
        """A response that carries an error code, by its name in TritonError."""
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
            return self.error(f"answer could not be built: {error}", INTERNAL)

    def early_responses(self, requests: Iterable[tuple[PendingRequest, int]], early: EarlyExit) -> list[Any]:
        """The responses of requests that leave at stage 0 as a whole.

        Most requests of a good cascade do, so columns are made once per batch, answers are slices of them, and
        what is the same in every such answer is built once and sent again and again.

        Args:
            requests: each with where its rows begin in the batch.
            early: of the batch.
        """
        answer = early.answer
        columns: list[npt.NDArray[Any]] = [answer.probabilities, answer.label[:, None], answer.confidence[:, None]]
        own = list(zip(OWN, columns, strict=True))
        status = None if early.status is None else early.status[:, None]
        return [self._early_response(one, start, own=own, status=status) for one, start in requests]

    def _early_response(
        self,
        request: PendingRequest,
        start: int,
        *,
        own: Sequence[tuple[str, npt.NDArray[Any]]],
        status: npt.NDArray[np.int32] | None,
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
            return self.error(f"answer could not be built: {error}", INTERNAL)

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
        request, response = reply.request, self.response(reply)
        try:
            # The server makes the sender with the request, so asking for it here and not earlier costs nothing.
            sender = request.request.get_response_sender()
            sender.send(response, flags=self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # a broken sender is the server's to clean up
            self._pb.Logger.log_warn(f"committee: an answer could not be sent: {error}")
        # Views of the server's memory go as soon as the answer is out.
        request.request = request.tensor = request.rows = request.partial_outputs = None
