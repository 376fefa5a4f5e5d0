"""Whether scores are logits or probabilities, where nobody says, and whether they are what somebody says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError, first_few
from orchestrator.spec.output_kind import BELOW_0, ScoreEvidence

# Rows looked at to tell probabilities from logits.
LOOKED_AT = 256


def kind_seen(scores: npt.NDArray[np.float32]) -> str:
    """What the values of the first rows of float32 (n, k) make of them."""
    return ScoreEvidence().with_scores(scores[:LOOKED_AT]).kind


def check_probabilities(name: str, scores: npt.NDArray[np.float32], ids: npt.NDArray[Any]) -> None:
    """Refuses probabilities that cannot be any.

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
