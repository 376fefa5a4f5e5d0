"""Combining the members asked so far into one distribution per row.

Sums run in plan order whatever order answers arrive in, elementwise and without BLAS: the same row then gets the
same bits in any batch, which is what makes replay equal serving.
"""

from collections.abc import Sequence
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


class RowColumns:
    """n rows as columns, indexed like one array of rows.

    A column is an array of n entries, another `RowColumns`, or None where the plan has no use for it.
    """

    __slots__ = ()
    # One call in C gives all columns, or those within columns too: every batch of every stage goes through them.
    _columns: "ClassVar[attrgetter[tuple[Any, ...]]]"
    _arrays: "ClassVar[attrgetter[tuple[Any, ...]]]"
    _names: ClassVar[list[str]]

    def __init_subclass__(cls) -> None:
        within = {kind: kind._names for kind in RowColumns.__subclasses__() if kind is not cls}
        cls._names = []
        for name, kind in cls.__annotations__.items():
            cls._names += [f"{name}.{inner}" for inner in within[kind]] if kind in within else [name]
        cls._columns, cls._arrays = attrgetter(*cls.__annotations__), attrgetter(*cls._names)

    def __len__(self) -> int:
        return len(self._columns(self)[0])

    def __getitem__(self: Columns, index: Index | slice) -> Columns:
        """The given rows; copied where `index` is an array."""
        return type(self)(*[None if column is None else column[index] for column in self._columns(self)])

    def __setitem__(self: Columns, index: Index | slice, rows: Columns) -> None:
        for mine, given in zip(self._arrays(self), self._arrays(rows), strict=True):
            if mine is not None:
                mine[index] = given


@dataclass(slots=True)
class Accumulator(RowColumns):
    """Sums over the members asked so far: a deferred row carries k classes, whatever the number of members."""

    total: F32  # (n, k), weighted sum of logits, probabilities or votes, by combine mode
    weight: F32  # (n,), weight behind `total`; 0 where no member has answered yet
    ties: F32 | None  # (n, k), weighted sum of probabilities that breaks ties of votes; only for "vote"
    tops: I32 | None  # (n, m), each member's own top-1, -1 where it was not asked; only for the agreement score


def softmax(z: F32) -> F32:
    """Softmax over the last axis; float32 (n, k) from finite float32 (n, k)."""
    p: F32 = np.exp(z - np.maximum.reduce(z, axis=1)[:, None])
    p /= np.add.reduce(p, axis=1)[:, None]
    return p


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
    peak = np.maximum.reduce(z, axis=1)
    # Two comparisons settle the usual case, since NaN and infinity fail them.
    if np.minimum.reduce(z, axis=None) >= -LOGIT_BOUND and np.maximum.reduce(peak) <= LOGIT_BOUND:
        return z, None
    good = np.isfinite(peak)
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
        rows, clean = len(accumulator), True
        # Only the newest stage counts in mode "last", so its sum begins anew.
        target = self.empty(rows) if self.mode == "last" else accumulator
        failed, answered = np.full(rows, -1, np.int32), np.zeros(rows, np.bool_)
        for index, raw in zip(self.stage_members[stage], outputs, strict=True):
            if raw is None:
                good: Bools | None = np.zeros(rows, np.bool_)
            else:
                z, good = scaled_logits(self.members[index], raw)
                self._add(target, index, z, good)
                if accumulator.tops is not None:
                    top = np.argmax(z, axis=1)
                    accumulator.tops[:, index] = top if good is None else np.where(good, top, -1)
            if good is None:
                answered[:] = True
            else:
                clean = False
                answered |= good
                failed = np.where((failed < 0) & ~good, np.int32(index), failed)
        if self.mode == "last":
            # A stage that gave nothing for a row leaves the answer of the stage before it standing.
            accumulator.total[answered] = target.total[answered]
            accumulator.weight[answered] = target.weight[answered]
        return (None, None) if clean else (failed, ~answered)

    def _add(self, accumulator: Accumulator, index: int, z: F32, good: Bools | None) -> None:
        weight = self.weights[index]
        part = z if self.mode == "mean_logit" else softmax(z)
        if weight != 1:  # by far most members have it, and the product is a copy of all scores
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
        p = accumulator.total / np.maximum(accumulator.weight, np.float32(1e-30))[:, None]
        if self.mode == "mean_logit":
            p = softmax(p)
        elif self.mode == "vote" and accumulator.ties is not None:
            most = np.maximum.reduce(accumulator.total, axis=1)
            tied = np.where(accumulator.total == most[:, None], accumulator.ties, np.float32(-1))
            return p, tied.argmax(axis=1)
        return p, p.argmax(axis=1)
