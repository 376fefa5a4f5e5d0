"""Combining the members asked so far into one distribution per row.

The running sums are kept, not the members' outputs, so a deferred row carries n classes of float32 whatever
the number of members. Sums run in plan order whatever order answers arrive in, elementwise and without BLAS:
the same row then gets the same bits in any batch, which is what makes replay equal serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.spec import CascadeSpec, Member

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

# log(1e-30) is about -69: far below anything a float32 softmax can tell from zero, and finite.
PROBABILITY_FLOOR = np.float32(1e-30)
# A logit of -inf is a legal "never this class", but two members with different ones would sum to a row of
# -inf and then NaN. Clipping keeps every sum finite and changes no softmax value above 1e-45.
LOGIT_BOUND = np.float32(1e30)
# Batches of so many rows share one column of weights.
MAX_WEIGHTS_KEPT = 256


@dataclass(slots=True)
class Accumulator:
    """Sums over the members asked so far, one line per row.

    Args:
        total: float32 (n, k), weighted sum of logits, probabilities or votes, by mode.
        weight: float32 (n,), weight behind `total`; 0 where nothing has come yet.
        ties: float32 (n, k), weighted sum of probabilities that breaks ties of votes; only for "vote".
        tops: int32 (n, m), each member's own top-1, -1 where it was not asked; only for the agreement score.
    """

    total: F32
    weight: F32
    ties: F32 | None
    tops: I32 | None

    def take(self, index: npt.NDArray[np.intp]) -> Accumulator:
        """The given lines, copied."""
        return Accumulator(
            self.total[index],
            self.weight[index],
            None if self.ties is None else self.ties[index],
            None if self.tops is None else self.tops[index],
        )

    def put(self, index: npt.NDArray[np.intp], lines: Accumulator) -> None:
        """Overwrites the given lines."""
        self.total[index] = lines.total
        self.weight[index] = lines.weight
        if self.ties is not None and lines.ties is not None:
            self.ties[index] = lines.ties
        if self.tops is not None and lines.tops is not None:
            self.tops[index] = lines.tops


def softmax(z: F32, peak: F32 | None = None) -> F32:
    """Softmax over the last axis.

    Args:
        z: float32 (n, k), finite.
        peak: float32 (n,), the row maxima if already known.

    Returns:
        float32 (n, k).
    """
    top = np.maximum.reduce(z, axis=1) if peak is None else peak
    p = np.exp(z - top[:, None])
    p /= np.add.reduce(p, axis=1)[:, None]
    return p


def usual_logits(member: Member, raw: npt.NDArray[np.generic]) -> tuple[F32, F32] | None:
    """What `scaled_logits` gives where nothing needs to be done: finite logits as they are, with their row maxima.

    Args:
        member: whose output it is.
        raw: (n, k) as the model gave it.

    Returns:
        float32 (n, k) and float32 (n,); None where there is something to be done.
    """
    if member.output_kind != "logits" or member.temperature != 1.0:
        return None
    z = np.ascontiguousarray(raw, dtype=np.float32)
    peak = np.maximum.reduce(z, axis=1)
    high = peak[0] if len(peak) == 1 else np.maximum.reduce(peak)
    # NaN and infinity fail these comparisons.
    if np.minimum.reduce(z, axis=None) >= -LOGIT_BOUND and high <= LOGIT_BOUND:
        return z, peak
    return None


def scaled_logits(member: Member, raw: npt.NDArray[np.generic]) -> tuple[F32, Bools | None]:
    """A member's output as logits over its temperature, and which rows are not numbers.

    A row with NaN, +inf or nothing but -inf is a failure of the member for that row: one maximum shows all
    three, since NaN wins any maximum.

    Args:
        member: whose output it is.
        raw: (n, k) as the model gave it.

    Returns:
        float32 (n, k) with 0 in bad rows, and bool (n,) of good rows or None where all are good.
    """
    usual = usual_logits(member, raw)
    if usual is not None:
        return usual[0], None
    z = np.ascontiguousarray(raw, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if member.output_kind == "probabilities":
            z = np.log(np.maximum(z, PROBABILITY_FLOOR))
        if member.temperature != 1.0:
            z = z / np.float32(member.temperature)
        peak = np.maximum.reduce(z, axis=1)
        good = np.isfinite(peak)
    if good.all():
        if float(np.minimum.reduce(z, axis=None)) < -LOGIT_BOUND or float(peak.max()) > LOGIT_BOUND:
            z = np.clip(z, -LOGIT_BOUND, LOGIT_BOUND)
        return z, None
    z = np.where(good[:, None], z, np.float32(0))
    return np.clip(z, -LOGIT_BOUND, LOGIT_BOUND), good


class Combiner:
    """Turns members' outputs into a distribution, in one mode fixed by the plan.

    Args:
        spec: the cascade; its combine mode, members, temperatures and weights are used.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self.mode = spec.combine
        self.classes = spec.classes
        self.members = spec.members
        self.weights = np.array([member.weight for member in self.members], np.float32)
        self._tops = spec.score == "agreement"
        # Summed in plan order, as rows sum theirs.
        self.first_weight = np.float32(0)
        for weight in self.weights[: len(spec.stages[0].members)]:
            self.first_weight += weight
        self._weights_kept = np.full(MAX_WEIGHTS_KEPT, self.first_weight, np.float32)
        self._weights_kept.flags.writeable = False
        # One member of weight 1: what it says is the sum.
        self._lone = len(spec.stages[0].members) == 1 and self.first_weight == 1
        starts = np.cumsum([0, *(len(stage.members) for stage in spec.stages)])
        self.stage_members = [range(starts[i], starts[i + 1]) for i in range(len(spec.stages))]

    def empty(self, rows: int) -> Accumulator:
        """A tally of rows nobody has been asked about."""
        vote = self.mode == "vote"
        return Accumulator(
            np.zeros((rows, self.classes), np.float32),
            np.zeros(rows, np.float32),
            np.zeros((rows, self.classes), np.float32) if vote else None,
            np.full((rows, len(self.members)), -1, np.int32) if self._tops else None,
        )

    def begin(
        self, rows: int, outputs: Sequence[npt.NDArray[np.generic] | None]
    ) -> tuple[Accumulator, tuple[I32 | None, Bools | None], F32 | None]:
        """The tally of rows of which stage 0 has just spoken.

        Args:
            rows: n.
            outputs: (n, k) per member of stage 0 in plan order, None for a member that failed altogether.

        Returns:
            the tally, what `add_stage` returns, and float32 (n,) row maxima of its total where they are known.
        """
        if self.mode == "mean_logit" and not self._tops:
            if self._lone and outputs[0] is not None:
                usual = usual_logits(self.members[0], outputs[0])
                if usual is not None:
                    return Accumulator(usual[0], self._weight_of(rows), None, None), (None, None), usual[1]
            said = [
                (None, None) if raw is None else scaled_logits(self.members[index], raw)
                for index, raw in zip(self.stage_members[0], outputs, strict=True)
            ]
            if all(z is not None and good is None for z, good in said):
                return self._summed([z for z, _ in said if z is not None]), (None, None), None
        tally = self.empty(rows)
        return tally, self.add_stage(tally, 0, outputs), None

    def _summed(self, parts: Sequence[F32]) -> Accumulator:
        """The sum of stage 0's logits; the first part may stand for it, since nobody else holds it."""
        own = self.weights[: len(parts)]
        weighted = [part if weight == 1 else part * weight for part, weight in zip(parts, own, strict=True)]
        total = weighted[0]
        for part in weighted[1:]:
            total = total + part
        return Accumulator(total, self._weight_of(len(total)), None, None)

    def _weight_of(self, rows: int) -> F32:
        """The weight behind rows of which all of stage 0 has spoken; to be read only."""
        if rows > len(self._weights_kept):
            return np.full(rows, self.first_weight, np.float32)
        return self._weights_kept[:rows]

    def add_stage(
        self, tally: Accumulator, stage: int, outputs: Sequence[npt.NDArray[np.generic] | None]
    ) -> tuple[I32 | None, Bools | None]:
        """Adds the outputs of one whole stage, in plan order.

        Args:
            tally: changed in place, n rows.
            stage: which stage answered.
            outputs: (n, k) per member of the stage; None for a member that failed altogether.

        Returns:
            int32 (n,), the first member (by plan index) that failed for the row or -1, and bool (n,) of rows
            for which no member of the stage answered; None, None where nothing failed.
        """
        rows = len(tally.weight)
        target = self.empty(rows) if self.mode == "last" else tally
        failed = np.full(rows, -1, np.int32)
        answered = np.zeros(rows, np.bool_)
        clean = True
        for index, raw in zip(self.stage_members[stage], outputs, strict=True):
            if raw is None:
                failed = np.where(failed < 0, np.int32(index), failed)
                clean = False
                continue
            z, good = scaled_logits(self.members[index], raw)
            self._add(target, index, z, good)
            if tally.tops is not None:
                top = np.argmax(z, axis=1)
                tally.tops[:, index] = top if good is None else np.where(good, top, -1)
            if good is None:
                answered[:] = True
                continue
            clean = False
            answered |= good
            failed = np.where((failed < 0) & ~good, np.int32(index), failed)
        if self.mode == "last":
            # A stage that gave nothing for a row leaves the answer of the stage before it standing.
            tally.total[answered] = target.total[answered]
            tally.weight[answered] = target.weight[answered]
        return (None, None) if clean else (failed, ~answered)

    def _add(self, tally: Accumulator, index: int, z: F32, good: Bools | None) -> None:
        weight = self.weights[index]
        if self.mode == "mean_logit":
            part = z if weight == 1 else z * weight
        else:
            p = softmax(z)
            part = p if weight == 1 else p * weight
        if good is not None:
            part = np.where(good[:, None], part, np.float32(0))
        if self.mode == "vote" and tally.ties is not None:
            tally.ties += part
            lines = np.arange(len(z)) if good is None else np.flatnonzero(good)
            tally.total[lines, np.argmax(z[lines], axis=1)] += weight
        else:
            tally.total += part
        tally.weight += weight if good is None else weight * good

    def distribution(
        self, tally: Accumulator, *, alone: bool = False, peak: F32 | None = None
    ) -> tuple[F32, npt.NDArray[np.int64]]:
        """The combined probabilities and label of every row.

        Args:
            tally: n rows, each with at least one member's answer.
            alone: every row's weight is exactly 1, as after a first member that failed nowhere: nothing to divide.
            peak: float32 (n,), row maxima of the total; used with `alone` only.

        Returns:
            float32 (n, k) and int64 (n,); equal probabilities go to the lowest class, votes that tie to the
            class with the larger mean probability.
        """
        if self.mode == "mean_logit" and alone:
            p = softmax(tally.total, peak)
            return p, p.argmax(axis=1)
        # A row without any answer gets the uniform distribution here; whoever asked knows to ignore it.
        p = tally.total / np.maximum(tally.weight, np.float32(1e-30))[:, None]
        if self.mode == "mean_logit":
            p = softmax(p)
        elif self.mode == "vote" and tally.ties is not None:
            most = np.maximum.reduce(tally.total, axis=1)
            tied = np.where(tally.total == most[:, None], tally.ties, np.float32(-1))
            return p, tied.argmax(axis=1)
        return p, p.argmax(axis=1)
