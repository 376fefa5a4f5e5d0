"""Logits or probabilities: telling from values what the scores of a member are.

A cascade compares how sure its members are of one class among several that exclude each other. Each row of scores
is therefore either a distribution ("probabilities"), or a softmax makes it one ("logits"; log-probabilities are
logits, too). Outputs of independent sigmoids are neither.

The evidence is a summary that grows with every row, so that a stream of rows, the answers a client gets and an
export's comparison are judged by the same rules.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OUTPUT_KINDS = ("logits", "probabilities")
# Triton dtypes that scores may have; the runtime works in FP32.
SCORE_DTYPES = ("FP16", "FP32", "FP64")
# Parameter in a served model's configuration that says which of the two its output is.
PARAMETER = "output_kind"
# Half precision rounds a probability by up to 5e-4 of its value, bfloat16 by 4e-3, and sums of a row by as much.
MAX_SUM_ERROR = 1e-2
# Rounding may take a probability this far below 0, or above 1.
BELOW_0, ABOVE_1 = 1e-6, 1e-3
# Fewer rows of logits may look like distributions by chance.
MIN_ROWS = 4
# So many scores from 0 to 1 that come this near to both ends were made by a function bounded there, a sigmoid.
MIN_SCORES, FILLED_TO = 64, 0.01
# Rows that differ by less than this share of their largest score count as one row.
SAME = 1e-4
# The sums of distributions vary by rounding only; the sums of small logits vary as much as the logits.
_SUMS_VARY = 0.1

EXCLUSIVE = "a cascade compares how sure members are of one class, so classes must exclude each other"


@dataclass(frozen=True, kw_only=True)
class ScoreEvidence:
    """Summary of a member's scores over some rows; rows with values that are not finite are left out."""

    rows: int = 0  # rows seen
    classes: int = 0  # scores per row
    low: float = np.inf  # smallest and largest score
    high: float = -np.inf  # smallest and largest score
    low_sum: float = np.inf  # smallest and largest sum of a row
    high_sum: float = -np.inf  # smallest and largest sum of a row
    low_exp_sum: float = np.inf  # smallest and largest sum of exp(-score) over a row; 1 where scores are -log p
    high_exp_sum: float = -np.inf  # smallest and largest sum of exp(-score) over a row; 1 where scores are -log p
    spread: float = 0.0  # largest difference between a score and the first row's score of the same class
    # float64 (k,), the first row; None before it
    first: npt.NDArray[np.float64] | None = dataclasses.field(default=None, compare=False)

    def with_scores(self, scores: npt.NDArray[np.generic]) -> "ScoreEvidence":
        """The evidence after further rows (n, k) in any floating-point type."""
        rows = np.asarray(scores, np.float64)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if not rows.size:
            return self
        first = rows[0] if self.first is None else self.first
        sums = rows.sum(axis=1)
        # With a score below -1 the sum is far from 1 anyway; the bound keeps it from overflowing.
        exp_sums = np.exp(np.minimum(-rows, 1.0)).sum(axis=1)
        return ScoreEvidence(
            rows=self.rows + len(rows),
            classes=rows.shape[1],
            low=min(self.low, float(rows.min())),
            high=max(self.high, float(rows.max())),
            low_sum=min(self.low_sum, float(sums.min())),
            high_sum=max(self.high_sum, float(sums.max())),
            low_exp_sum=min(self.low_exp_sum, float(exp_sums.min())),
            high_exp_sum=max(self.high_exp_sum, float(exp_sums.max())),
            spread=max(self.spread, float(np.abs(rows - first).max())),
            first=first,
        )

    @property
    def varies(self) -> bool:
        """Two rows differ by more than rounding."""
        return self.spread > SAME * max(abs(self.low), abs(self.high)) if self.rows else False

    @property
    def sums_agree(self) -> bool:
        """All rows have the same sum, whatever it is, while their scores differ."""
        return self.rows >= MIN_ROWS and self.varies and self.high_sum - self.low_sum <= _SUMS_VARY * self.spread

    @property
    def in_unit_interval(self) -> bool:
        """Every score lies from 0 to 1."""
        return self.rows > 0 and self.low >= -BELOW_0 and self.high <= 1 + ABOVE_1

    @property
    def adds_up(self) -> bool:
        """Every row is a distribution."""
        return self.in_unit_interval and abs(self.low_sum - 1) <= MAX_SUM_ERROR >= abs(self.high_sum - 1)

    @property
    def fills_unit_interval(self) -> bool:
        """Scores from 0 to 1 that reach both ends and do not add up, as sigmoids of a trained network give."""
        many = self.rows * self.classes >= MIN_SCORES
        reaches_both_ends = self.low <= FILLED_TO and self.high >= 1 - FILLED_TO
        return many and self.in_unit_interval and not self.adds_up and reaches_both_ends

    @property
    def is_negative_log(self) -> bool:
        """Every row holds -log p of a distribution: its largest score is of the least likely class."""
        near = abs(self.low_exp_sum - 1) <= MAX_SUM_ERROR >= abs(self.high_exp_sum - 1)
        return self.rows >= MIN_ROWS and self.varies and near

    @property
    def adds_up_otherwise(self) -> bool:
        """The rows differ and have one sum, neither 0 nor 1, as 2p - 1 and other functions of a softmax have."""
        error = MAX_SUM_ERROR * max(1.0, abs(self.low), abs(self.high))
        near = (max(abs(self.low_sum - one), abs(self.high_sum - one)) <= error for one in (0, 1))
        return self.sums_agree and not any(near)

    @property
    def kind(self) -> str:
        """The kind by values alone: one of OUTPUT_KINDS."""
        return "probabilities" if self.adds_up else "logits"

    def contradicts(self, kind: str) -> bool:
        """Whether scores of that kind could not have, or would not have, these values.

        Logits may have any values, so only several rows can contradict them: distributions that differ, negative
        logarithms of such, or scores that fill the unit interval and never leave it.
        """
        if kind == "probabilities":
            return self.rows > 0 and not self.adds_up
        return (self.adds_up and self.sums_agree) or self.fills_unit_interval or self.is_negative_log

    @property
    def looks(self) -> str:
        """What scores look like that are not of the stated kind, for messages."""
        if self.adds_up:
            return "distributions"
        if self.is_negative_log:
            return "negative log-probabilities, whose largest is the least likely class"
        return "sigmoids" if self.fills_unit_interval else "no distributions"

    def __str__(self) -> str:
        # One number where both sums read the same.
        sums = " to ".join(dict.fromkeys(f"{one:.3g}" for one in (self.low_sum, self.high_sum)))
        return f"values from {self.low:.3g} to {self.high:.3g} in {self.rows} rows that add up to {sums}"
