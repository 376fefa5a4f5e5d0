"""Temperatures: fitted per member, and kept only where the committee they make is better on rows of its own.

A temperature never changes a member's own answer, but it changes how members mix and which rows exit, and scaling
is known to make cascades worse as often as better. So it is decided by planning with and without.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from orchestrator.decision import softmax
from orchestrator.decision.combine import scaled_logits
from orchestrator.spec import Member

F32 = npt.NDArray[np.float32]
Truth = npt.NDArray[np.int64]

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """One member's temperature.

    Args:
        temperature: minimises the negative log-likelihood of the fitting rows.
        ece_before: expected calibration error on other rows, at the member's own temperature.
        ece_after: the same at the new one.
    """

    temperature: float
    ece_before: float
    ece_after: float


def temperature_of(z: F32, labels: Truth) -> float:
    """The temperature with the least negative log-likelihood.

    Args:
        z: float32 (n, k), logits, finite.
        labels: int64 (n,).
    """
    peak = z.max(axis=1)
    lowered = z - peak[:, None]
    hit = lowered[np.arange(len(z)), labels].astype(np.float64)

    def loss(log_temperature: float) -> float:
        scale = np.float32(np.exp(-log_temperature))
        spread = np.log(np.exp(lowered * scale).sum(axis=1, dtype=np.float64))
        return float((spread - float(scale) * hit).mean())

    best = minimize_scalar(
        loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-3}
    )
    # Four digits: more would be noise, and a plan is read by people.
    return float(f"{np.exp(best.x):.4g}")


def calibration_error(p: F32, labels: Truth) -> float:
    """Expected calibration error of the top answer, in 15 bins of equal width.

    Args:
        p: float32 (n, k).
        labels: int64 (n,).
    """
    top = p.argmax(axis=1)
    sure = p[np.arange(len(p)), top].astype(np.float64)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, weights=(top == labels) - sure, minlength=BINS)
    return float(np.abs(gap).sum() / len(p))


def scaling_of(member: Member, *, fit: tuple[F32, Truth], check: tuple[F32, Truth]) -> Scaling:
    """A member's temperature, fitted on some rows and judged on others.

    Args:
        member: whose outputs they are.
        fit: outputs float32 (n, k) as recorded, and labels.
        check: the same of other rows.
    """
    z, _ = scaled_logits(member, fit[0])
    factor = temperature_of(z, fit[1])
    other, _ = scaled_logits(member, check[0])
    return Scaling(
        temperature=float(np.clip(member.temperature * factor, 1e-3, 1e3)),
        ece_before=calibration_error(softmax(other), check[1]),
        ece_after=calibration_error(softmax(other / np.float32(factor)), check[1]),
    )
