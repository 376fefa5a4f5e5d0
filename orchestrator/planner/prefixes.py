"""The running combination of every prefix of a chain of members; it does not depend on thresholds."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Combiner, confidence_score
from orchestrator.errors import DataError
from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, Member, Stage

# Kernel rounding moves scores by about 1e-6 with the batch size; a threshold this far from any score flips no row.
MIN_GAP = 2e-5


def prefixes(
    base: CascadeSpec, records: Records, members: tuple[Member, ...]
) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.int64]]]:
    """Per prefix of the chain: score float32 (n,) and label int64 (n,).

    Raises:
        DataError: an output is not finite.
    """
    chain = dataclasses.replace(base, stages=tuple(Stage(members=(member,)) for member in members))
    combiner = Combiner(chain)
    tally = combiner.empty(records.rows)
    scores, labels = [], []
    for stage, member in enumerate(members):
        failed, _ = combiner.add_stage(tally, stage, [records.outputs[member.name]])
        if failed is not None:
            bad = int((failed >= 0).sum())
            raise DataError(f"records of {member.name}", got=f"{bad} rows with NaN or infinity")
        p, label = combiner.distribution(tally)
        scores.append(confidence_score(base.score, p, label, tally.tops, combiner.weights))
        labels.append(label)
    return scores, labels


def middles(score: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The middles of all gaps between neighbouring scores that are wide enough for a threshold, ascending."""
    ordered = np.unique(score.astype(np.float64))
    gaps = np.flatnonzero(np.diff(ordered) >= MIN_GAP)
    return np.asarray((ordered[gaps] + ordered[gaps + 1]) / 2, np.float64)
