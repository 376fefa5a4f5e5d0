"""What a stage's outputs mean for each row: exit, go on, or fail. Knows nothing of the table of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.decision.combine import F32, I32, I64, Accumulator, Bools, Combiner, Index, Output, RowColumns
from orchestrator.decision.exit_rule import ExitRule
from orchestrator.decision.policy import Policy
from orchestrator.decision.scores import confidence_score
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEGRADED

NO_DEADLINE_NS = int(np.iinfo(np.int64).max)
NO_MAX_STAGE = int(np.iinfo(np.int32).max)


@dataclass(slots=True)
class Arrivals(RowColumns):
    """Rows that come in together, with what their requests ask for."""

    request: I64  # (n,), token of the row's request
    position: I64  # (n,), the row's place in its request
    min_stage: I32  # (n,)
    max_stage: I32  # (n,)
    shift: F32  # (n,)
    gear: I32  # (n,), whose thresholds decide about the row; 0 for the plan's own
    deadline_ns: I64  # (n,) on the caller's monotonic clock, NO_DEADLINE_NS for none
    due_ns: I64  # (n,), what later stages are ordered by


# Of the columns above.
ARRIVAL_DTYPES = {
    "request": "i8", "position": "i8", "min_stage": "i4", "max_stage": "i4", "shift": "f4", "gear": "i4",
    "deadline_ns": "i8", "due_ns": "i8",
}  # fmt: skip
_ARRIVAL = np.dtype(list(ARRIVAL_DTYPES.items()))


def arrivals_from_policies(
    tokens: Sequence[int],
    counts: Sequence[int],
    *,
    policies: Sequence[Policy],
    now_ns: Sequence[int],
    default_deadline_us: int,
    gear: int = 0,
) -> Arrivals:
    """Arrivals of requests with these tokens, counts of rows, policies and times of arrival, in order.

    The default deadline orders rows of requests that named none; the gear decides about rows that named no gear.
    """
    found = []
    for token, policy, at_ns in zip(tokens, policies, now_ns, strict=True):
        # The due time only orders rows; without it a request without a deadline never gets its turn under load.
        due_ns = at_ns + 1000 * (default_deadline_us if policy.deadline_us is None else policy.deadline_us)
        deadline_ns = NO_DEADLINE_NS if policy.deadline_us is None else due_ns
        last = NO_MAX_STAGE if policy.max_stage is None else policy.max_stage
        own = gear if policy.gear is None else policy.gear
        found.append((token, 0, policy.min_stage, last, policy.threshold_shift, own, deadline_ns, due_ns))
    # At once, because an array of its own for each column takes twice as long.
    rows = np.array(found, _ARRIVAL)
    if set(counts) != {1}:
        each = np.array(counts)
        rows = rows.repeat(each)
        rows["position"] = np.arange(len(rows)) - (each.cumsum() - each).repeat(each)
    return Arrivals(*[rows[name] for name in ARRIVAL_DTYPES])


@dataclass(slots=True)
class CombinedAnswer(RowColumns):
    """The answer every row would get now, whether it is given or not."""

    probabilities: F32  # (n, k)
    label: I64  # (n,)
    confidence: F32  # (n,), the plan's score


@dataclass(frozen=True, slots=True)
class StageFailures:
    """Failures of a stage's members."""

    member: I32  # (n,), plan index of the first member that failed for the row, -1 where none did
    no_answer: Bools  # (n,), rows for which no member of the stage answered
    counts: I64  # (m,), rows each member failed on; a row counts for the first member that failed for it

    def __getitem__(self, index: Index) -> "StageFailures":
        """Those of the given rows, intp; the counts stay those of all."""
        return StageFailures(self.member[index], self.no_answer[index], self.counts)


@dataclass(slots=True)
class StageResult(RowColumns):
    """What a stage gave for n rows, whatever their requests ask for."""

    accumulator: Accumulator  # the outputs of all members so far
    answer: CombinedAnswer  # what each row would get now
    failures: StageFailures | None  # of the stage's members, None where none failed


class Evaluator:
    """Combine mode, score and exit rule of one plan, applied together."""

    def __init__(self, spec: CascadeSpec) -> None:
        self.spec = spec
        self.combiner = Combiner(spec)
        self.rule = ExitRule(spec)
        self._scores_top = spec.score == "max_prob"

    def answer(self, accumulator: Accumulator) -> CombinedAnswer:
        """The combined answer of every row so far."""
        p, label, top = self.combiner.distribution_and_top(accumulator)
        if top is None or not self._scores_top:
            top = confidence_score(self.spec.score, p, label, accumulator.tops, self.combiner.weights)
        return CombinedAnswer(p, label, top)

    def add_stage(self, accumulator: Accumulator, stage: int, outputs: Sequence[Output]) -> StageResult:
        """Adds a stage's outputs to the accumulator of n rows, in place.

        Args:
            accumulator: of the rows; an empty one for stage 0.
            stage: the stage that was asked.
            outputs: (n, k) per member of the stage in plan order, None for a member that failed.
        """
        member, no_answer = self.combiner.add_stage(accumulator, stage, outputs)
        if member is None or no_answer is None:
            return StageResult(accumulator, self.answer(accumulator), None)
        counts = np.bincount(member[member >= 0], minlength=len(self.combiner.members)).astype(np.int64)
        for index, output in zip(self.combiner.stage_members[stage], outputs, strict=True):
            # A member that failed altogether failed for every row, also where another member failed first.
            if output is None:
                counts[index] = len(member)
        return StageResult(accumulator, self.answer(accumulator), StageFailures(member, no_answer, counts))

    def decide(self, asked: Arrivals, stage: int, result: StageResult) -> tuple[Bools, Bools, I32]:
        """Decides what becomes of each row at a stage.

        With on_failure "error" a member's failure is the end of the row. With "answer", a stage with some members'
        answers decides as usual; where no member answered, the stages before it answer, and a row that has no
        answer yet goes on to the next stage if it may.

        Args:
            asked: what the requests of the n rows ask for.
            stage: the stage that was asked.
            result: what it gave.

        Returns:
            bool (n,) of rows that are answered now, bool (n,) of others that have failed, and int32 (n,), status
            bits earned here.
        """
        exits, status = self.rule.decide(
            stage,
            result.answer.confidence,
            min_stage=asked.min_stage,
            max_stage=asked.max_stage,
            shift=asked.shift,
            # A plan without gears, the usual one, pays nothing for them.
            gear=None if self.spec.gears is None else asked.gear,
        )
        failures = result.failures
        if failures is None:
            return exits, np.zeros(len(exits), np.bool_), status
        dead, no_answer = failures.member >= 0, failures.no_answer
        # A stage without any answer decides nothing: neither its threshold nor the cap gave the row its answer.
        status = np.where(no_answer, np.int32(0), status)
        unanswered = result.accumulator.weight <= 0
        if self.spec.stages[stage].on_failure == "answer":
            status = status | np.int32(DEGRADED) * dead
            dead = unanswered & ((asked.max_stage <= stage) | (stage == self.rule.last))
        return np.where(no_answer, ~unanswered, exits) & ~dead, dead, status
