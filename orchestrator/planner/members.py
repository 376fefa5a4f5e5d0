"""Facts about members beside their scores: costs per row, and whether scores are logits or probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.spec.output_kind import BELOW_0, ScoreEvidence
from orchestrator.spec.validation import is_finite, value_from_json

# Far beyond any unit; the core and the served `cost` are float32, and so are their sums.
LEAST, MOST = 1e-30, 1e30
COSTS = f"0, or numbers from {LEAST:g} to {MOST:g}"
# Letters of a wrong cost that an error shows.
WRONG_COST_LETTERS = 40
# Rows looked at to tell probabilities from logits.
LOOKED_AT = 256
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
        """The costs of the given members; `subject` is named in an error.

        Raises:
            DataError: some are missing.
        """
        missing = [name for name in members if name not in self.cost]
        if missing:
            fix = f'add "{missing[0]}": NUMBER to its "cost"'
            raise DataError(
                subject, got=f"no cost of {', '.join(missing)}", expected="one for every member", fix=fix
            )
        return {name: self.cost[name] for name in members}


def cost_profile_from_path(path: Path) -> CostProfile:
    """The costs a JSON file holds, such as {"cost": {"member": 1.5}, "unit": "ms"}.

    Raises:
        DataError: the file is missing or holds something else.
    """
    subject = f"cost profile {path}"
    try:
        value = value_from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(subject, got="no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(subject, got=f"a file that is no JSON ({error})", expected=_EXAMPLE) from error
    cost = value.get("cost") if isinstance(value, dict) else None
    unit = value.get("unit") if isinstance(value, dict) else None
    if not isinstance(cost, dict) or not cost or not isinstance(unit, str) or not unit:
        raise DataError(subject, got="other JSON", expected=_EXAMPLE)
    bad = [name for name, number in cost.items() if not is_cost(number)]
    if bad:
        got = ", ".join(f"{repr(cost[name])[:WRONG_COST_LETTERS]} for {name}" for name in bad)
        raise DataError(subject, got=got, expected=COSTS)
    return CostProfile(cost={name: float(number) for name, number in cost.items()}, unit=unit)


def is_cost(number: object) -> bool:
    """Whether a number may be what a row costs; see COSTS."""
    return is_finite(number) and (number == 0 or LEAST <= number <= MOST)


def kind_seen(scores: npt.NDArray[np.float32]) -> str:
    """Whether scores, float32 (n, k), look like "logits" or "probabilities" by their first rows."""
    return ScoreEvidence().with_scores(scores[:LOOKED_AT]).kind


def check_probabilities(name: str, scores: npt.NDArray[np.float32], ids: npt.NDArray[Any]) -> None:
    """Refuses scores that cannot be probabilities.

    Args:
        name: of the member.
        scores: float32 (n, k).
        ids: (n,), to name rows with.

    Raises:
        DataError: a row has a number below 0, or nothing above it.
    """
    bad = np.flatnonzero((scores.min(axis=1) < -BELOW_0) | (scores.max(axis=1) <= 0))
    if len(bad):
        raise DataError(
            f"records, outputs of {name}",
            got=f"numbers below 0, or nothing above it, in {len(bad)} of {len(scores)} rows, "
            f"id {first_few(ids[bad])}",
            expected="probabilities, as its output_kind says",
            fix='say "logits" in its manifest, or in the meta of the records',
        )
