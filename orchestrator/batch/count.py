"""How far a job has come, and what its answers cost."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from orchestrator.predictor.asking import BlockOutcome


@dataclass
class BatchCount:
    """Rows of a job.

    Args:
        total: rows that are stored.
        answered: rows with an answer.
        refused: rows without one.
        first_reason: why the first refused row has no answer.
        exits: stage -> rows that exited there; 0 where the model has no stages.
        cost: of all answers, in the plan's unit.
        resumed: rows that an earlier run of the job was done with.
        alone: name of the plan's last member, None where no plan is known here.
        alone_cost: what that member costs for a row, in the plan's unit.
        unit: of costs.
        notes: what the user should know about how rows and scores were read.
        shares: of several servers, how many requests each has answered.
    """

    total: int = 0
    answered: int = 0
    refused: int = 0
    first_reason: str = ""
    exits: Counter[int] = field(default_factory=Counter)
    cost: float = 0.0
    resumed: int = 0
    alone: str | None = None
    alone_cost: float | None = None
    unit: str = ""
    notes: tuple[str, ...] = ()
    shares: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rows with an answer or without one."""
        return self.answered + self.refused

    @property
    def mean_cost(self) -> float:
        """Per answered row."""
        return self.cost / max(1, self.answered)

    def cost_summary(self) -> dict[str, Any]:
        """Shares of exits and costs as JSON values, null where the model or the plan does not say."""
        shares = {f"{stage}": self.exits[stage] / max(1, self.answered) for stage in sorted(self.exits)}
        return {
            "exit_share": shares if self.cost else None,
            "mean_cost": self.mean_cost if self.cost else None,
            "cost_unit": self.unit or None,
            "last_member": self.alone,
            "last_member_cost": self.alone_cost,
        }

    def add(self, outcome: BlockOutcome) -> None:
        """Adds the rows of a block."""
        for part in outcome.answered:
            self.add_columns(part.answers["exit_stage"], part.answers["cost"])
        self.add_refused(len(outcome.refused), outcome.refused[0].reason if outcome.refused else "")

    def add_columns(self, exit_stage: npt.NDArray[Any], cost: npt.NDArray[Any]) -> None:
        """Adds answered rows by two of their columns (n,)."""
        self.answered += len(exit_stage)
        self.exits.update(exit_stage.tolist())
        self.cost += float(cost.sum(dtype="float64"))

    def add_refused(self, rows: int, first_reason: str) -> None:
        """Adds refused rows."""
        self.refused += rows
        self.first_reason = self.first_reason or first_reason

    def join(self, other: "BatchCount") -> None:
        """Adds the rows of another count."""
        self.answered += other.answered
        self.exits.update(other.exits)
        self.cost += other.cost
        self.add_refused(other.refused, other.first_reason)
