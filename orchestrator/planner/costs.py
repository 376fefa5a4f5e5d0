"""Costs that somebody measured, instead of counted multiply-accumulates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError

_EXAMPLE = '{"cost": {"member": 1.5}, "unit": "ms"}'


@dataclass(frozen=True, kw_only=True)
class CostProfile:
    """Cost per row of members.

    Args:
        cost: member name -> cost per row.
        unit: of the costs.
    """

    cost: dict[str, float]
    unit: str

    def of(self, members: Sequence[str], subject: str) -> dict[str, float]:
        """The costs of the given members.

        Raises:
            DataError: some are missing.
        """
        missing = [name for name in members if name not in self.cost]
        if missing:
            raise DataError(subject, got=f"no cost of {', '.join(missing)}", expected="one for every member")
        return {name: self.cost[name] for name in members}


def cost_profile_from_path(path: Path) -> CostProfile:
    """The costs a JSON file holds, such as {"cost": {"member": 1.5}, "unit": "ms"}.

    Raises:
        DataError: the file is missing or holds something else.
    """
    subject = f"cost profile {path}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(subject, got="no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(subject, got=f"a file that is no JSON ({error})", expected=_EXAMPLE) from error
    cost = value.get("cost") if isinstance(value, dict) else None
    unit = value.get("unit") if isinstance(value, dict) else None
    if not isinstance(cost, dict) or not cost or not isinstance(unit, str) or not unit:
        raise DataError(subject, got="other JSON", expected=_EXAMPLE)
    bad = [name for name, number in cost.items() if not _is_cost(number)]
    if bad:
        got = ", ".join(f"{cost[name]!r} for {name}" for name in bad)
        raise DataError(subject, got=got, expected="finite numbers of at least 0")
    return CostProfile(cost={name: float(number) for name, number in cost.items()}, unit=unit)


def _is_cost(number: object) -> bool:
    return (
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number >= 0
    )
