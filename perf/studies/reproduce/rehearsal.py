"""How the margin was fixed: the rule, tried on plan rows that had no part in choosing.

The plan part is split at random several times. On the larger piece plans are chosen with several margins, on the
smaller one they are judged. The test part is not involved, and no choice depends on what comes out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from perf.studies.reproduce.choices import ChosenPlan
from perf.studies.reproduce.search_space import SearchSpace, no_worse, searched

MARGINS_SE = (0.0, 1.0, 2.0, 3.0)
CHOOSING_SHARE = 0.6
SEED = 5


def validate_margins(space: SearchSpace, reference: str, *, splits: int) -> Iterator[dict[str, Any]]:
    """What each margin comes to, as JSON values.

    Args:
        space: all plan rows.
        reference: the member that plans are held to.
        splits: how many random ones.
    """
    seen: dict[float, list[tuple[float, float]]] = {margin: [] for margin in MARGINS_SE}
    for number in range(splits):
        order = np.random.default_rng([SEED, number]).permutation(space.table.rows)
        cut = round(CHOOSING_SHARE * len(order))
        chosen_on, judged_on = (space.take(np.sort(rows)) for rows in (order[:cut], order[cut:]))
        found, right = searched(chosen_on), chosen_on.right(reference)
        cost = space.table.costs[space.names.index(reference)]
        for margin in MARGINS_SE:
            plan = no_worse(chosen_on, found, right, below_cost=cost, margin_se=margin)
            if plan is not None:
                seen[margin].append(_judged(judged_on, plan, reference, cost))
    for margin, figures in seen.items():
        differences, factors = np.array(figures).reshape(-1, 2).T
        yield {
            "margin_se": margin,
            "splits": splits,
            "plans": len(figures),
            "lower": int((differences < 0).sum()),
            "mean_difference": float(differences.mean()) if len(figures) else None,
            "mean_macs_factor": float(factors.mean()) if len(figures) else None,
        }


def _judged(space: SearchSpace, plan: ChosenPlan, reference: str, cost: float) -> tuple[float, float]:
    """Difference of accuracy and how many times fewer MACs, on the rows of the space."""
    again = space.again(plan)
    return again.accuracy - float(space.right(reference).mean()), cost / again.mean_cost
