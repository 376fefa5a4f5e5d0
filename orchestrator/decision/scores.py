"""Confidence scores of a combined answer. Higher is surer, every score lies in [0, 1]."""

from collections.abc import Callable
from functools import partial

import numpy as np

from orchestrator.decision.combine import F32, I32, I64

# Probability of the answer; float32 (n,) from float32 (n, k). In every combine mode the answer is a class of the
# largest probability, so that one reduction finds it; a partial of it, because every row pays for a call.
max_prob: Callable[[F32], F32] = partial(np.maximum.reduce, axis=1)


def top2_gap(p: F32) -> F32:
    """Largest probability minus the second largest; float32 (n,)."""
    # Two maxima rather than a partition, which is twenty times slower at 1,000 classes and gives the same values.
    rows, first = np.arange(len(p)), np.argmax(p, axis=1)
    rest = p.copy()
    rest[rows, first] = -1
    gap: F32 = p[rows, first] - np.maximum.reduce(rest, axis=1)
    return gap


def neg_entropy(p: F32) -> F32:
    """1 - H(p) / log k: 1 for certainty, 0 for the uniform distribution; float32 (n,)."""
    plogp = p * np.log(np.maximum(p, np.float32(1e-38)))
    score = 1 + np.add.reduce(plogp, axis=1) / np.float32(np.log(p.shape[1]))
    # Rounding puts the uniform distribution a few 1e-8 below 0, where a threshold of 0 would miss it.
    clipped: F32 = np.clip(score, np.float32(0), np.float32(1)).astype(np.float32, copy=False)
    return clipped


def agreement(tops: I32, weights: F32, label: I64) -> F32:
    """Weighted share of the members asked so far whose own top-1 is the combined label; float32 (n,).

    Args:
        tops: int32 (n, m), -1 where a member was not asked.
        weights: float32 (m,).
        label: int64 (n,).
    """
    same, asked = np.zeros(len(tops), np.float32), np.zeros(len(tops), np.float32)
    # One member at a time, so that the sum runs in plan order and no axis reduction reorders it.
    for index, weight in enumerate(weights):
        same += weight * (tops[:, index] == label)
        asked += weight * (tops[:, index] >= 0)
    share: F32 = same / np.maximum(asked, np.float32(1e-30))
    return share


OF_PROBABILITIES = {"max_prob": max_prob, "top2_gap": top2_gap, "neg_entropy": neg_entropy}


def confidence_score(name: str, p: F32, label: I64, tops: I32 | None, weights: F32) -> F32:
    """The score of a name in `orchestrator.spec.SCORES` for combined probabilities (n, k); float32 (n,).

    Labels, tops and weights are those of `agreement`, which alone needs tops.
    """
    if name == "agreement" and tops is not None:
        return agreement(tops, weights, label)
    return OF_PROBABILITIES[name](p)
