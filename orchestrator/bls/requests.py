"""Requests that wait for an answer, and the one rule about them: each is answered exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.member_calls import EVERY_ROW, Errors
from orchestrator.bls.tensors import Columns, blank_sheet, columns_of, response_tensors
from orchestrator.decision import AnsweredRows, Policy
from orchestrator.spec import CascadeSpec

INVALID, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED"
LATE = "deadline passed before any stage had answered"
HOPELESS = "deadline too near: the queue is so long that no stage can answer by then"


@dataclass(slots=True)
class PendingRequest:
    """One request with everything needed to answer it.

    Args:
        token: unique while the model is loaded.
        place: which of the requests it came with.
        request: the server's request.
        tensor, rows: its input, valid until it is answered.
        policy: what it asked for.
        arrived_ns: monotonic clock at entry.
        wanted: output names to send.
        count: number of rows.
        left: rows without an answer.
        sheet: answers so far, made where not all rows are answered at once.
        answered: True once an answer was decided on, whoever sends it.
    """

    token: int
    place: int
    request: Any
    tensor: Any
    rows: Any
    policy: Policy
    arrived_ns: int
    wanted: frozenset[str]
    count: int
    left: int
    sheet: Columns | None = None
    answered: bool = False

    @property
    def deadline_ns(self) -> int | None:
        """When its best answer is due, on the monotonic clock."""
        wait_us = self.policy.deadline_us
        return None if wait_us is None else self.arrived_ns + wait_us * 1000


@dataclass(slots=True)
class Reply:
    """An answer ready to be sent: columns, or an error."""

    pending: PendingRequest
    columns: Columns | None
    message: str = ""
    code: str = ""


def reason_of(spec: CascadeSpec, index: int, row: int, errors: Errors) -> str:
    """Why a row has no answer.

    Args:
        spec: the cascade.
        index: the member that failed, in plan order; -1 where none had spoken by the deadline.
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


def response_from_reply(pb_utils: Any, reply: Reply) -> Any:
    """The server's response object of a reply."""
    if reply.columns is None:
        return error_response(pb_utils, reply.message, reply.code)
    return pb_utils.InferenceResponse(
        output_tensors=response_tensors(pb_utils, reply.columns, reply.pending.wanted)
    )


def safe_response(pb_utils: Any, reply: Reply) -> Any:
    """The same, or an error where it cannot be built: the client must hear something."""
    try:
        return response_from_reply(pb_utils, reply)
    except Exception as error:  # whatever the server's classes raise
        return error_response(pb_utils, f"answer could not be built: {error}", INTERNAL)


def error_response(pb_utils: Any, message: str, code: str) -> Any:
    """A response that carries an error code (by its name in TritonError)."""
    number = getattr(pb_utils.TritonError, code, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, number))


def send(pb_utils: Any, reply: Reply) -> None:
    """Sends a late answer; its request counts as answered already.

    Never raises for a client that went away: there is nobody left to tell.
    """
    pending = reply.pending
    response = safe_response(pb_utils, reply)
    try:
        # The server makes the sender with the request, so asking for it here costs nothing before it is needed.
        sender = pending.request.get_response_sender()
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:  # a broken sender is the server's to clean up
        pb_utils.Logger.log_warn(f"committee: an answer could not be sent: {error}")
    # Views of the server's memory go as soon as the answer is out.
    pending.request = pending.tensor = pending.rows = pending.sheet = None


def spread(answers: AnsweredRows, known: dict[int, PendingRequest]) -> list[tuple[PendingRequest, Columns]]:
    """Deals answers out to their requests; returns the requests that are complete, with their outputs.

    A request all of whose rows are among them, the usual one, gets slices; only of the others answers are kept in
    a sheet until the last has come. Loops over requests, never over rows.

    Args:
        answers: of any requests, in any order.
        known: requests that wait, by token.
    """
    if not len(answers):
        return []
    tokens, position, columns = _in_order(answers)
    starts = [0, *(1 + (tokens[1:] != tokens[:-1]).nonzero()[0]).tolist()]
    complete = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        pending = known.get(int(tokens[start]))
        if pending is None:
            continue
        part = {name: column[start:end] for name, column in columns.items()}
        if end - start < pending.count:
            if pending.sheet is None:
                pending.sheet = blank_sheet(pending.count, columns)
            for name, column in pending.sheet.items():
                column[position[start:end]] = part[name]
            part = pending.sheet
        pending.left -= end - start
        if pending.left == 0:
            complete.append((pending, part))
    return complete


def _in_order(answers: AnsweredRows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Columns]:
    """Tokens, positions and outputs of answers, those of a request together and in its own order."""
    if len(answers) == 1:
        return answers.request, answers.position, columns_of(answers)
    order = np.lexsort((answers.position, answers.request))
    columns = {name: column[order] for name, column in columns_of(answers).items()}
    return answers.request[order], answers.position[order], columns
