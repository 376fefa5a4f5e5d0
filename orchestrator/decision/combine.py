"""Combining the members asked so far into one distribution per row.

Sums run in plan order whatever order answers arrive in, elementwise and without BLAS: the same row then gets the
same bits in any batch, which is what makes replay equal serving.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.spec import CascadeSpec, Member

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Index = npt.NDArray[np.intp]
Columns = TypeVar("Columns", bound="RowColumns")
# A member's output (n, k); None where the member failed for every row.
Output = npt.NDArray[np.generic] | None
# log(1e-30) is about -69: far below anything a float32 softmax can tell from zero, and finite.
PROBABILITY_FLOOR = np.float32(1e-30)
# A logit of -inf is a legal "never this class", but two members with different ones would sum to a row of
# -inf and then NaN. Clipping keeps every sum finite and changes no softmax value above 1e-45.
LOGIT_BOUND = np.float32(1e30)
_FEW_VALUES = 4096
# Of one row, because numpy takes twice as long with a scalar.
_LEAST_WEIGHT, _ONE = np.array([1e-30], np.float32), np.array([1], np.float32)


class RowColumns:
    """n rows as columns, indexed like one array of rows.

    A column is an array of n entries, another `RowColumns`, or None where the plan has no use for it.
    """

    __slots__ = ()
    # One call in C gives all columns: every batch of every stage goes through them.
    _columns: "ClassVar[attrgetter[tuple[Any, ...]]]"

    def __init_subclass__(cls) -> None:
        cls._columns = attrgetter(*cls.__annotations__)

    def __len__(self) -> int:
        return len(self._columns(self)[0])

    def __getitem__(self: Columns, index: Index | slice) -> Columns:
        """The given rows; copied where `index` is an array."""
        return type(self)(*[None if column is None else column[index] for column in self._columns(self)])


@dataclass(slots=True)
class Accumulator(RowColumns):
    """Sums over the members asked so far: a deferred row carries k classes, whatever the number of members."""

    total: F32  # (n, k), weighted sum of logits, probabilities or votes, by combine mode
    weight: F32  # (n,), weight behind `total`; 0 where no member has answered yet
    ties: F32 | None  # (n, k), weighted sum of probabilities that breaks ties of votes; only for "vote"
    tops: I32 | None  # (n, m), each member's own top-1, -1 where it was not asked; only for the agreement score


def softmax(z: F32) -> F32:
    """Softmax over the last axis; float32 (n, k) from finite float32 (n, k)."""
    return softmax_and_top(z)[0]


def softmax_and_top(z: F32) -> tuple[F32, F32]:
    """Softmax of float32 (n, k), and the largest value of each row, (n,)."""
    p: F32 = np.exp(z - np.maximum.reduce(z, 1)[:, None])
    sums = np.add.reduce(p, 1)
    p /= sums[:, None]
    # The largest was exp(0), which is 1; dividing it gives what a search for it among the quotients would.
    return p, _ONE / sums


def is_bounded(z: F32) -> bool:
    """Whether every value of float32 (n, k), contiguous, is a number within `LOGIT_BOUND`."""
    # A sum of squares is finite only where every value is a number, and far within the bound. For a few values its
    # one pass takes a quarter of two reductions; for many, BLAS would start threads.
    if z.size <= _FEW_VALUES:
        flat = z.ravel()
        if math.isfinite(flat.dot(flat)):
            return True
    # NaN and infinity fail these comparisons.
    return bool(np.minimum.reduce(z, axis=None) >= -LOGIT_BOUND and np.maximum.reduce(z, axis=None) <= LOGIT_BOUND)


def scaled_logits(member: Member, raw: npt.NDArray[np.generic]) -> tuple[F32, Bools | None]:
    """A member's output as logits over its temperature, and which rows are not numbers.

    A row with NaN, +inf or nothing but -inf is a failure of the member for that row: its maximum shows all three,
    since NaN wins any maximum.

    Returns:
        float32 (n, k) from `raw` (n, k), 0 in bad rows; and bool (n,) of good rows, None where all are good.
    """
    z = np.ascontiguousarray(raw, dtype=np.float32)
    if member.output_kind == "probabilities" or member.temperature != 1.0:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            z = np.log(np.maximum(z, PROBABILITY_FLOOR)) if member.output_kind == "probabilities" else z
            z = z / np.float32(member.temperature) if member.temperature != 1.0 else z
    if is_bounded(z):
        return z, None
    good = np.isfinite(np.maximum.reduce(z, axis=1))
    if good.all():
        return np.clip(z, -LOGIT_BOUND, LOGIT_BOUND), None
    z = np.where(good[:, None], z, np.float32(0))
    return np.clip(z, -LOGIT_BOUND, LOGIT_BOUND), good


class Combiner:
    """Turns members' outputs into a distribution, in one mode fixed by the plan.

    Attributes:
        weights: float32 (m,), in plan order.
        stage_members: by stage, the plan indices of its members.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self.mode = spec.combine
        self.classes = spec.classes
        self.members = spec.members
        self.weights = np.array([member.weight for member in self.members], np.float32)
        self._weight_of = np.split(self.weights, len(self.weights))
        self._is_unit = (self.weights == 1).tolist()
        self.needs_tops = spec.score == "agreement"
        starts = np.cumsum([0, *(len(stage.members) for stage in spec.stages)])
        self.stage_members = [range(starts[i], starts[i + 1]) for i in range(len(spec.stages))]

    def empty(self, rows: int) -> Accumulator:
        """The accumulator of rows for which no member has been asked."""
        return Accumulator(
            np.zeros((rows, self.classes), np.float32),
            np.zeros(rows, np.float32),
            np.zeros((rows, self.classes), np.float32) if self.mode == "vote" else None,
            np.full((rows, len(self.members)), -1, np.int32) if self.needs_tops else None,
        )

    def add_stage(
        self, accumulator: Accumulator, stage: int, outputs: Sequence[Output]
    ) -> tuple[I32 | None, Bools | None]:
        """Adds the outputs of one whole stage, in plan order, to n rows in place.

        Returns:
            int32 (n,), the first member (by plan index) that failed for the row or -1, and bool (n,) of rows
            for which no member of the stage answered; None, None where nothing failed.
        """
        rows = len(accumulator.weight)
        # Only the newest stage counts in mode "last", so its sum begins anew.
        target = self.empty(rows) if self.mode == "last" else accumulator
        good_of: dict[int, Bools] = {}  # which rows a member answered, of members that failed for some
        for index, raw in zip(self.stage_members[stage], outputs, strict=True):
            if raw is None:
                good_of[index] = np.zeros(rows, np.bool_)
                continue
            z, good = scaled_logits(self.members[index], raw)
            self._add(target, index, z, good)
            if accumulator.tops is not None:
                top = np.argmax(z, axis=1)
                accumulator.tops[:, index] = top if good is None else np.where(good, top, -1)
            if good is not None:
                good_of[index] = good
        if good_of:
            failed, answered = self._failures(stage, rows, good_of)
        if self.mode == "last":
            # A stage that gave nothing for a row leaves the answer of the stage before it standing.
            stands = answered if good_of else slice(None)
            accumulator.total[stands] = target.total[stands]
            accumulator.weight[stands] = target.weight[stands]
        return (failed, ~answered) if good_of else (None, None)

    def _failures(self, stage: int, rows: int, good_of: Mapping[int, Bools]) -> tuple[I32, Bools]:
        """The first member that failed for each row or -1, and whether any answered."""
        failed, answered = np.full(rows, -1, np.int32), np.zeros(rows, np.bool_)
        for index in self.stage_members[stage]:
            good = good_of.get(index)
            if good is None:
                answered[:] = True
            else:
                answered |= good
                failed = np.where((failed < 0) & ~good, np.int32(index), failed)
        return failed, answered

    def _add(self, accumulator: Accumulator, index: int, z: F32, good: Bools | None) -> None:
        weight = self._weight_of[index]
        part = z if self.mode == "mean_logit" else softmax(z)
        if not self._is_unit[index]:  # by far most members have it, and the product is a copy of all scores
            part = part * weight
        if good is not None:
            part = np.where(good[:, None], part, np.float32(0))
        if self.mode == "vote" and accumulator.ties is not None:
            accumulator.ties += part
            rows = np.arange(len(z)) if good is None else np.flatnonzero(good)
            accumulator.total[rows, np.argmax(z[rows], axis=1)] += weight
        else:
            accumulator.total += part
        accumulator.weight += weight if good is None else weight * good

    def distribution(self, accumulator: Accumulator) -> tuple[F32, I64]:
        """The combined probabilities and label of every row, float32 (n, k) and int64 (n,).

        Equal probabilities go to the lowest class, votes that tie to the class with the larger mean probability. A
        row without any member's answer gets the uniform distribution, to be ignored.
        """
        p, label, _ = self.distribution_and_top(accumulator)
        return p, label

    def distribution_and_top(self, accumulator: Accumulator) -> tuple[F32, I64, F32 | None]:
        """The same, and the largest probability of every row, (n,), where it is known without another look."""
        p = accumulator.total / np.maximum(accumulator.weight, _LEAST_WEIGHT)[:, None]
        if self.mode == "mean_logit":
            p, top = softmax_and_top(p)
            return p, p.argmax(1), top
        if self.mode == "vote" and accumulator.ties is not None:
            most = np.maximum.reduce(accumulator.total, axis=1)
            tied = np.where(accumulator.total == most[:, None], accumulator.ties, np.float32(-1))
            return p, tied.argmax(axis=1), None
        return p, p.argmax(1), None
