"""Shortcuts for stage 0, where most rows of a good cascade leave, and for requests without parameters.

Everything here gives the bits that the general path gives (`Evaluator`, `ExitRule`, `arrivals_from_policies`) in
fewer passes over the arrays; property tests hold the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.decision.combine import (
    F32,
    I32,
    I64,
    Accumulator,
    Bools,
    Output,
    is_bounded,
    scaled_logits,
    softmax_and_top,
)
from orchestrator.decision.evaluate import (
    NO_DEADLINE_NS,
    NO_MAX_STAGE,
    Arrivals,
    CombinedAnswer,
    Evaluator,
    StageResult,
)
from orchestrator.decision.scores import OF_PROBABILITIES
from orchestrator.spec.answer import ABSTAINED, GEARED

# Batches of up to so many rows share columns that are the same in all.
_MAX_SHARED = 256


@dataclass(slots=True)
class EarlyExit:
    """What rows get at stage 0 if their requests carry no parameters of ours."""

    exits: Bools  # (n,), which rows leave there
    answer: CombinedAnswer  # of all n rows, to be read where they exit
    status: I32 | None  # (n,), None where it is 0 for all


def plain_arrivals(
    tokens: Sequence[int], counts: Sequence[int], *, now_ns: Sequence[int], default_deadline_us: int, gear: int = 0
) -> Arrivals:
    """`arrivals_from_policies` for requests without parameters, which most are."""
    rows = sum(counts)
    request = np.array(tokens, np.int64)
    due = np.array(now_ns, np.int64) + default_deadline_us * 1000
    position = np.zeros(rows, np.int64)
    if set(counts) != {1}:
        each = np.array(counts)
        request, due = request.repeat(each), due.repeat(each)
        position = np.arange(rows) - (each.cumsum() - each).repeat(each)
    # Views of one array each cost half of arrays of their own.
    zeros, last, shift, never = _SHARED if rows <= _MAX_SHARED else _wishes_of_nobody(rows)
    gears = np.full(rows, gear, np.int32) if gear else zeros[:rows]
    return Arrivals(request, position, zeros[:rows], last[:rows], shift[:rows], gears, never[:rows], due)


def _wishes_of_nobody(rows: int) -> tuple[I32, I32, F32, I64]:
    """The earliest and latest stage, the shift and the deadline of rows that have none, to be read only."""
    made = (
        np.zeros(rows, np.int32),
        np.full(rows, NO_MAX_STAGE, np.int32),
        np.zeros(rows, np.float32),
        np.full(rows, NO_DEADLINE_NS, np.int64),
    )
    for column in made:
        column.flags.writeable = False
    return made


_SHARED = _wishes_of_nobody(_MAX_SHARED)


class FastPath:
    """Stage 0 of one plan; what no shortcut covers is left to the evaluator."""

    def __init__(self, evaluator: Evaluator) -> None:
        spec, combiner, rule = evaluator.spec, evaluator.combiner, evaluator.rule
        self._evaluator = evaluator
        self._members = spec.stages[0].members
        self._weights = combiner.weights[: len(self._members)]
        # Added up in plan order, as the accumulator does it.
        self._weight = sum(self._weights, np.float32(0))
        self._shared_weights = np.broadcast_to(self._weight, _MAX_SHARED)
        self._adds_logits = spec.combine == "mean_logit"
        only = self._members[0]
        is_raw = only.output_kind == "logits" and only.temperature == 1.0
        # Agreement and votes need columns of their own.
        is_plain = spec.combine != "vote" and not combiner.needs_tops
        self._is_lone = is_plain and len(self._members) == 1 and self._weight == 1 and is_raw
        self._is_sum = is_plain and self._adds_logits
        self._scores_top = spec.score == "max_prob"
        self._score = OF_PROBABILITIES.get(spec.score)
        self._is_last = rule.last == 0
        # By gear, arrays of one value, because numpy takes twice as long with a scalar.
        self._thresholds = [] if self._is_last else np.split(rule.thresholds[:, 0], len(rule.thresholds))
        self._low = rule.lows[0]

    def stage0(self, rows: int, outputs: Sequence[Output]) -> StageResult:
        """What stage 0 gave for n rows.

        Args:
            rows: n.
            outputs: (n, k) per member of stage 0 in plan order, None for a member that failed.
        """
        result = None
        if self._is_lone:
            result = self._from_lone(outputs[0])
        elif self._is_sum:
            result = self._from_sum(outputs)
        if result is None:
            result = self._evaluator.add_stage(self._evaluator.combiner.empty(rows), 0, outputs)
        return result

    def early_exit(self, result: StageResult, gear: int = 0) -> EarlyExit:
        """What rows get by a gear's thresholds; where a member failed, none of them leaves this way."""
        answer, score = result.answer, result.answer.confidence
        if result.failures is not None:
            return EarlyExit(np.zeros(len(score), np.bool_), answer, None)
        if self._is_last:
            return EarlyExit(np.ones(len(score), np.bool_), answer, None)
        exits: Bools = score >= self._thresholds[gear]
        if not gear and self._low is None:
            return EarlyExit(exits, answer, None)
        own: Bools = score >= self._thresholds[0]
        status = np.zeros(len(score), np.int32)
        status[exits & ~own] = GEARED
        if self._low is not None:
            doubtful = (score <= self._low) & ~own
            status[doubtful] = ABSTAINED
            exits = exits | doubtful
        return EarlyExit(exits, answer, status)

    def _from_lone(self, raw: Output) -> StageResult | None:
        """The result of one member of weight 1; None where its logits need more than a softmax."""
        if raw is None:
            return None
        z: F32 = np.ascontiguousarray(raw, dtype=np.float32)
        if not is_bounded(z):
            return None
        p, top = softmax_and_top(z)
        return self._result(z if self._adds_logits else p, p, top)

    def _from_sum(self, outputs: Sequence[Output]) -> StageResult | None:
        """The result of logits that are added up; None where a member failed for a row."""
        total: F32 | None = None
        for member, weight, raw in zip(self._members, self._weights, outputs, strict=True):
            z, good = (None, None) if raw is None else scaled_logits(member, raw)
            if z is None or good is not None:
                return None
            part = z if weight == 1 else z * weight
            # The first part stands for the sum: no array of zeros to begin with, and no pass to add to it.
            total = part if total is None else total + part
        assert total is not None, "a stage has members"
        return self._result(total, *softmax_and_top(total if self._weight == 1 else total / self._weight))

    def _result(self, total: F32, p: F32, top: F32) -> StageResult:
        label, rows = p.argmax(1), len(total)
        is_small = rows <= _MAX_SHARED
        weight: F32 = self._shared_weights[:rows] if is_small else np.full(rows, self._weight, np.float32)
        assert self._score is not None, "agreement takes the general path"
        score = top if self._scores_top else self._score(p)
        return StageResult(Accumulator(total, weight, None, None), CombinedAnswer(p, label, score), None)
