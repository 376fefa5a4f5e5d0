"""Requests that stage 0 is sure of as a whole: answered in their batch's own list, without entering the table.

Most requests of a good cascade go this way, so it is kept short: columns are made once per batch, answers are
slices of them, and what is the same in every such answer is built once and sent again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.requests import INTERNAL, PendingRequest, error_response
from orchestrator.decision import EarlyExit
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

# Sizes of request whose constant outputs are kept.
MAX_KEPT = 64
# Outputs that are the same in all of them, unless a status bit was earned; that one comes last.
CONSTANT = ("exit_stage", "cost", "status")
Own = list[tuple[str, npt.NDArray[Any]]]


def starts_of(batch: Sequence[PendingRequest]) -> list[int]:
    """Where the rows of each request begin in the merged batch."""
    if len(batch) == 1:
        return [0]
    return [0, *accumulate(one.count for one in batch)][:-1]


def owners_of(batch: Sequence[PendingRequest]) -> npt.NDArray[np.int64]:
    """The token of every row's request in the merged batch, int64 (n,)."""
    return np.repeat(np.array([one.token for one in batch]), [one.count for one in batch])


def decided(batch: Sequence[PendingRequest], exits: npt.NDArray[np.bool_], starts: Sequence[int]) -> list[bool]:
    """Of each request, whether stage 0 answers all of its rows and it asked for nothing that could change that.

    Args:
        batch: m requests, n rows in all.
        exits: bool (n,), which rows exit.
        starts: of the requests' rows.
    """
    whole = exits if len(exits) == len(batch) else np.logical_and.reduceat(exits, starts)
    return [sure and one.policy.is_plain for one, sure in zip(batch, whole.tolist(), strict=True)]


class DirectAnswers:
    """Builds the server's responses from what stage 0 said.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec) -> None:
        self._pb = pb_utils
        self._cost = np.float32(spec.stages[0].cost)
        self._kept: dict[int, list[Any]] = {}

    def responses(self, sure: EarlyExit, requests: Sequence[tuple[PendingRequest, int]]) -> list[Any]:
        """A response for each request.

        Args:
            sure: the batch.
            requests: those it answers, each with where its rows begin.
        """
        own: Own = [
            ("probabilities", sure.probabilities),
            ("label", sure.label[:, None]),
            ("confidence", sure.confidence[:, None]),
        ]
        status = None if sure.status is None else sure.status[:, None]
        return [self._response(one, start, own=own, status=status) for one, start in requests]

    def _response(self, one: PendingRequest, start: int, *, own: Own, status: npt.NDArray[np.int32] | None) -> Any:
        pb, end = self._pb, start + one.count
        try:
            constant = self._constant(one.count)
            if status is not None:
                constant = [*constant[:-1], pb.Tensor("status", status[start:end])]
            if len(one.wanted) == len(ANSWER_COLUMNS):
                tensors = [pb.Tensor(name, column[start:end]) for name, column in own]
                return pb.InferenceResponse(output_tensors=tensors + constant)
            tensors = [pb.Tensor(name, column[start:end]) for name, column in own if name in one.wanted]
            tensors += [said for name, said in zip(CONSTANT, constant, strict=True) if name in one.wanted]
            return pb.InferenceResponse(output_tensors=tensors)
        except Exception as error:  # whatever the server's classes raise: the client must hear something
            return error_response(pb, f"answer could not be built: {error}", INTERNAL)

    def _constant(self, count: int) -> list[Any]:
        """The outputs that say the same in every such answer of so many rows, to be read only."""
        kept = self._kept.get(count)
        if kept is None:
            zeros = np.zeros((count, 1), np.int32)
            columns = (zeros, np.full((count, 1), self._cost), zeros.copy())
            kept = [self._pb.Tensor(name, column) for name, column in zip(CONSTANT, columns, strict=True)]
            if count <= MAX_KEPT:
                self._kept[count] = kept
        return kept
