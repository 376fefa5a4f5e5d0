"""What a stage's outputs mean for each row: exit, go on, or fail. Knows nothing of the table of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.decision.combine import Combiner, Output
from orchestrator.decision.exit_rule import ExitRule
from orchestrator.decision.rows import I32, I64, Accumulator, Bools, CombinedAnswer, RowColumns, RowState
from orchestrator.decision.scores import OF_PROBABILITIES, confidence_score
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEGRADED


@dataclass(frozen=True, slots=True)
class StageFailures:
    """Failures of a stage's members.

    Args:
        member: int32 (n,), plan index of the first member that failed for the row, -1 where none did.
        no_answer: bool (n,), rows for which no member of the stage answered.
        counts: int64 (m,), rows each member failed on; a row counts for the first member that failed for it.
    """

    member: I32
    no_answer: Bools
    counts: I64


@dataclass(slots=True)
class Stage0Result(RowColumns):
    """What stage 0 gave for n rows, before anything about the rows themselves is known.

    Args:
        accumulator: the members' outputs.
        answer: what each row would get now.
        failures: None where no member failed; only then can rows be picked.
    """

    accumulator: Accumulator
    answer: CombinedAnswer
    failures: StageFailures | None


@dataclass(slots=True)
class StageDecision:
    """What becomes of n rows at a stage.

    Args:
        exits: bool (n,), answered now.
        dead: bool (n,), failed; never also in `exits`.
        status: int32 (n,), status bits earned here.
        answer: what each row would get now.
        failures: None where no member failed.
    """

    exits: Bools
    dead: Bools
    status: I32
    answer: CombinedAnswer
    failures: StageFailures | None


class Evaluator:
    """Combine mode, score and exit rule of one plan, applied together.

    Args:
        spec: the cascade.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self.spec = spec
        self.combiner = Combiner(spec)
        self.rule = ExitRule(spec)
        # Looked up once, because every batch of every stage is scored.
        self._score = OF_PROBABILITIES.get(spec.score)

    def answer(self, accumulator: Accumulator) -> CombinedAnswer:
        """The combined answer of every row so far."""
        p, label = self.combiner.distribution(accumulator)
        if self._score is not None:
            return CombinedAnswer(p, label, self._score(p))
        return CombinedAnswer(
            p, label, confidence_score(self.spec.score, p, label, accumulator.tops, self.combiner.weights)
        )

    def stage0(self, rows: int, outputs: Sequence[Output]) -> Stage0Result:
        """What stage 0 gave for n rows.

        Args:
            rows: n.
            outputs: (n, k) per member of stage 0 in plan order, None for a member that failed.
        """
        accumulator = self.combiner.empty(rows)
        failures = self._add(accumulator, 0, outputs)
        return Stage0Result(accumulator, self.answer(accumulator), failures)

    def add_stage(self, state: RowState, stage: int, outputs: Sequence[Output]) -> StageDecision:
        """Adds a later stage's outputs to rows and decides about each.

        Args:
            state: n rows; their accumulator is changed in place.
            stage: the stage that was asked.
            outputs: (n, k) per member of the stage in plan order, None for a member that failed.
        """
        failures = self._add(state.accumulator, stage, outputs)
        return self.decide(state, stage, answer=self.answer(state.accumulator), failures=failures)

    def decide(
        self, state: RowState, stage: int, *, answer: CombinedAnswer, failures: StageFailures | None
    ) -> StageDecision:
        """Decides what becomes of each row at a stage.

        With on_failure "error" a member's failure is the end of the row. With "answer", a stage with some members'
        answers decides as usual; where no member answered, the stages before it answer, and a row that has no
        answer yet goes on to the next stage if it may.

        Args:
            state: n rows, the stage's outputs already in their accumulator.
            stage: the stage that was asked.
            answer: what each row would get now.
            failures: of the stage's members.
        """
        asked = state.arrival
        exits, status = self.rule.decide(
            stage,
            answer.confidence,
            min_stage=asked.min_stage,
            max_stage=asked.max_stage,
            shift=asked.shift,
            # A plan without gears, the usual one, pays nothing for them.
            gear=None if self.spec.gears is None else asked.gear,
        )
        if failures is None:
            return StageDecision(exits, np.zeros(len(exits), np.bool_), status, answer, None)
        has_failed, no_answer = failures.member >= 0, failures.no_answer
        # A stage without any answer decides nothing: neither its threshold nor the cap gave the row its answer.
        status = np.where(no_answer, np.int32(0), status)
        unanswered = state.accumulator.weight <= 0
        dead = has_failed
        if self.spec.stages[stage].on_failure == "answer":
            dead = unanswered & ((asked.max_stage <= stage) | (stage == self.rule.last))
            status = status | np.int32(DEGRADED) * has_failed
        exits = np.where(no_answer, ~unanswered, exits) & ~dead
        return StageDecision(exits, dead, status, answer, failures)

    def _add(self, accumulator: Accumulator, stage: int, outputs: Sequence[Output]) -> StageFailures | None:
        member, no_answer = self.combiner.add_stage(accumulator, stage, outputs)
        if member is None or no_answer is None:
            return None
        counts = np.bincount(member[member >= 0], minlength=len(self.combiner.members)).astype(np.int64)
        for index, output in zip(self.combiner.stage_members[stage], outputs, strict=True):
            # A member that failed altogether failed for every row, also where another member failed first.
            if output is None:
                counts[index] = len(member)
        return StageFailures(member, no_answer, counts)
