"""What a cascade answers with: its output columns and status bits, for runtime, clients, configs and graphs."""

from typing import NamedTuple

import numpy as np

# Bits of the status column.
DEGRADED = 1  # a member failed; the others answered
DEADLINE = 2  # the deadline passed; the best answer so far
ABSTAINED = 4  # below the plan's abstain window
CAPPED = 8  # answered at the request's `max_stage`, below the threshold
GEARED = 16  # judged by a cheaper gear
# bit -> its name in metrics and for people
STATUS_BITS = {
    DEGRADED: "degraded",
    DEADLINE: "deadline",
    ABSTAINED: "abstained",
    CAPPED: "capped",
    GEARED: "geared",
}


class AnswerColumn(NamedTuple):
    """An output of a cascade.

    Args:
        triton_dtype: "FP32", "INT64" or "INT32".
        numpy_dtype: the same for numpy.
        is_vector: k values per row, one per class, instead of one.
    """

    triton_dtype: str
    numpy_dtype: type[np.generic]
    is_vector: bool = False

    def width(self, classes: int) -> int:
        """Values per row where there are k classes."""
        return classes if self.is_vector else 1


# By name, in the order they are served.
ANSWER_COLUMNS = {
    "probabilities": AnswerColumn("FP32", np.float32, is_vector=True),
    "label": AnswerColumn("INT64", np.int64),
    "confidence": AnswerColumn("FP32", np.float32),
    "exit_stage": AnswerColumn("INT32", np.int32),
    "cost": AnswerColumn("FP32", np.float32),
    "status": AnswerColumn("INT32", np.int32),
}
