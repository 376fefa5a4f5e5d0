"""What is said of a plan's promise: the facts of a certificate, or what it falls short of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from orchestrator.planner.certify import Certificate
from orchestrator.planner.goal import Goal


@dataclass(frozen=True, kw_only=True)
class Shortfall:
    """Why no plan does what was asked.

    Args:
        got: what was asked or seen.
        expected: what would do.
        fix: what to do next.
        more_rows: how many more rows, of both parts together, would certify the best plan; None for no number.
    """

    got: str
    expected: str
    fix: str | None = None
    more_rows: int | None = None

    @property
    def text(self) -> str:
        """In one line."""
        said = f"got {self.got}, expected {self.expected}"
        return said if self.fix is None else f"{said}; {self.fix}"


def facts_of(goal: Goal, *, method: str, bound: float, rows: int, losses: int, gains: int) -> dict[str, Any]:
    """A certificate as JSON values."""
    return {
        "statement": f"{goal.sure} {goal.promise}",
        "delta": goal.delta,
        "epsilon": goal.allowed,
        "rows": rows,
        "losses": losses,
        "gains": gains,
        "counted": goal.counted,
        "method": method,
        "bound": bound,
    }


def tested_facts(said: Certificate) -> dict[str, Any]:
    """How the certify rows were used, as JSON values."""
    return {"candidates": said.candidates, "tested": said.tested}


def uncertified(said: Certificate, goal: Goal, *, certify_share: float) -> Shortfall:
    """What a plan that could not be certified falls short of.

    Args:
        said: of the plan.
        goal: what was asked.
        certify_share: part of all rows that certify.
    """
    tally = said.tally
    seen = f"{tally.losses} of {tally.rows} certify rows {goal.counted}"
    if goal.is_relative:
        seen += f" and {tally.gains} won"
    more = None
    fix = "no number of rows would do at this rate: ask for less"
    if said.rows_needed is not None:
        more = math.ceil((said.rows_needed - tally.rows) / certify_share)
        fix = f"about {more} more rows would do if they are like these"
    return Shortfall(
        got=f"{seen} by the {'best' if goal.has_budget else 'safest'} plan, so a bound of {said.bound:.4g}",
        expected=f"at most {goal.allowed:.4g} with probability {1 - goal.delta:g}",
        fix=fix,
        more_rows=more,
    )
