"""What a stage's outputs mean for each row: exit, go on, or fail. Changes lines, knows nothing of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.decision.combine import F32, I32, Accumulator, Bools, Combiner
from orchestrator.decision.exit_rule import ExitRule
from orchestrator.decision.rows import I64, AnsweredRows, EarlyExit, Index, RowState
from orchestrator.decision.scores import confidence_score
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import DEGRADED

Output = npt.NDArray[np.generic] | None


@dataclass(slots=True)
class CombinedAnswer:
    """The combined answer of every line, whether it is given now or not.

    Args:
        p: float32 (n, k).
        label: int64 (n,).
        score: float32 (n,).
    """

    p: F32
    label: I64
    score: F32


@dataclass(slots=True)
class Stage0Result:
    """What stage 0 said of rows, before anything about the rows themselves is known.

    Args:
        tally: n rows.
        failed, silent: as `Combiner.add_stage` returns them.
        verdict: the combined answers.
        member_failures: int64 (m,), rows each member failed on; None where none did.
    """

    tally: Accumulator
    failed: I32 | None
    silent: Bools | None
    verdict: CombinedAnswer
    member_failures: I64 | None

    def __len__(self) -> int:
        return len(self.verdict.score)

    def take(self, index: Index) -> Stage0Result:
        """The given rows, copied; only of rows nobody failed on."""
        assert self.failed is None
        verdict = self.verdict
        part = CombinedAnswer(verdict.p[index], verdict.label[index], verdict.score[index])
        return Stage0Result(self.tally.take(index), None, None, part, None)


@dataclass(slots=True)
class StageDecision:
    """What became of lines at a stage.

    Args:
        exits: bool (n,), answered now.
        dead: bool (n,), failed; never also in `exits`.
        failed: int32 (n,), plan index of the first member that failed for the row or -1; None if none did.
        verdict: the combined answers.
        member_failures: as in `Stage0Result`.
    """

    exits: Bools
    dead: Bools
    failed: I32 | None
    verdict: CombinedAnswer
    member_failures: I64 | None


class Evaluator:
    """Combine mode, score and exit rule of one plan, applied together.

    Args:
        spec: the cascade.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self.combiner = Combiner(spec)
        self.rule = ExitRule(spec)
        self._score = spec.score
        self._geared = spec.gears is not None
        self._members = len(spec.members)
        self._answer_on_failure = [stage.on_failure == "answer" for stage in spec.stages]

    def verdict(self, lines: RowState) -> CombinedAnswer:
        """The combined answer of every line so far."""
        return self._verdict(lines.tally)

    def _look(
        self,
        tally: Accumulator,
        stage: int,
        *,
        outputs: Sequence[Output],
        hurt: tuple[I32 | None, Bools | None],
        peak: F32 | None = None,
    ) -> Stage0Result:
        failed, silent = hurt
        counts = None if failed is None else self._count_failures(outputs, stage, failed)
        alone = stage == 0 and failed is None and self.combiner.first_weight == 1
        return Stage0Result(tally, failed, silent, self._verdict(tally, alone=alone, peak=peak), counts)

    def _verdict(self, tally: Accumulator, *, alone: bool = False, peak: F32 | None = None) -> CombinedAnswer:
        p, label = self.combiner.distribution(tally, alone=alone, peak=peak)
        score = confidence_score(self._score, p, label, tally.tops, self.combiner.weights)
        return CombinedAnswer(p, label, score)

    def look(self, rows: int, outputs: Sequence[Output]) -> Stage0Result:
        """What stage 0 said of n rows.

        Args:
            rows: n.
            outputs: (n, k) per member of stage 0 in plan order, None for a member that failed.
        """
        tally, hurt, peak = self.combiner.begin(rows, outputs)
        return self._look(tally, 0, outputs=outputs, hurt=hurt, peak=peak)

    def sure(self, look: Stage0Result, gear: int = 0) -> EarlyExit:
        """The answers rows get at stage 0 if they come without wishes of their own.

        The same rule as `settle`, without a column per wish.

        Args:
            look: of n rows; where a member failed, none is sure.
            gear: whose thresholds.
        """
        said = look.verdict
        if look.failed is not None:
            return EarlyExit(np.zeros(len(look), np.bool_), said.p, said.label, said.score, None)
        exits, status = self.rule.decide_plain(said.score, gear)
        return EarlyExit(exits, said.p, said.label, said.score, status)

    def settle(self, lines: RowState, stage: int, outputs: Sequence[Output]) -> StageDecision:
        """Adds a stage's outputs to the lines and decides for each.

        Args:
            lines: n rows, changed in place (tally, answered, status).
            stage: the stage that was asked, not the first.
            outputs: (n, k) per member of the stage in plan order, None for a member that failed.
        """
        hurt = self.combiner.add_stage(lines.tally, stage, outputs)
        return self.decide(lines, stage, self._look(lines.tally, stage, outputs=outputs, hurt=hurt))

    def decide(self, lines: RowState, stage: int, look: Stage0Result) -> StageDecision:
        """Decides for each line what becomes of it.

        With on_failure "error" a member's failure is the end of the row. With "answer", a stage of which some
        members spoke decides as usual; where all were silent the stages before it answer, and a row that has
        nothing yet goes on to the next stage if it may.

        Args:
            lines: n rows, changed in place (answered, status).
            stage: the stage that was asked.
            look: what it said, the lines' own tally in it.
        """
        failed, silent, verdict = look.failed, look.silent, look.verdict
        who = lines.who
        exits, status = self.rule.decide(
            stage,
            verdict.score,
            min_stage=who.min_stage,
            max_stage=who.max_stage,
            shift=who.shift,
            # A plan without gears, the usual one, pays nothing for them.
            gear=who.gear if self._geared else None,
        )
        if failed is None or silent is None:
            lines.answered[:] = stage
            lines.status |= status
            return StageDecision(exits, np.zeros(len(lines), np.bool_), None, verdict, None)
        hurt = failed >= 0
        empty = lines.tally.weight <= 0
        if self._answer_on_failure[stage]:
            at_end = (who.max_stage <= stage) | (stage == self.rule.last)
            dead = empty & at_end
            lines.status |= np.int32(DEGRADED) * hurt.astype(np.int32)
        else:
            dead = hurt
        lines.answered[~silent] = stage
        # A silent stage has no say: neither its threshold nor the cap gave the answer.
        lines.status |= np.where(silent, np.int32(0), status)
        exits = np.where(silent, ~empty, exits) & ~dead
        return StageDecision(exits, dead, failed, verdict, look.member_failures)

    def answers(self, lines: RowState, done: Index, *, row: Index, verdict: CombinedAnswer) -> AnsweredRows:
        """The answers of the lines `done`; `row` (n,) names all lines to the caller."""
        pick: Index | slice = slice(None) if len(done) == len(lines) else done
        return AnsweredRows(
            row[pick],
            lines.who.request[pick],
            lines.who.position[pick],
            verdict.p[pick],
            verdict.label[pick],
            verdict.score[pick],
            lines.answered[pick],
            lines.cost[pick],
            lines.status[pick],
        )

    def _count_failures(self, outputs: Sequence[Output], stage: int, failed: I32) -> I64:
        counts = np.bincount(failed[failed >= 0], minlength=self._members).astype(np.int64)
        for index, output in zip(self.combiner.stage_members[stage], outputs, strict=True):
            if output is None:
                counts[index] = len(failed)
        return counts
