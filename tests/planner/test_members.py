from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.members import check_probabilities, kind_seen

EVEN = np.full((4, 5), 0.2, np.float32)


def test_rows_that_add_up_to_one_are_probabilities_and_others_are_logits() -> None:
    assert kind_seen(EVEN) == "probabilities"
    assert kind_seen(EVEN * 2) == "logits"
    assert kind_seen(np.array([[2.0, -1.0]], np.float32)) == "logits"


def test_probabilities_may_be_rounded_and_need_not_add_up() -> None:
    check_probabilities("m", EVEN * 3, np.arange(4))
    check_probabilities("m", EVEN - np.eye(4, 5, dtype=np.float32) * np.float32(0.2000001), np.arange(4))


@pytest.mark.parametrize("row", [[-0.5, 0.5, 0.5, 0.5, 0.0], [0.0] * 5])
def test_rows_that_are_no_probabilities_are_named(row: list[float]) -> None:
    scores = EVEN.copy()
    scores[2] = row
    with pytest.raises(DataError, match=r"outputs of m: .*1 of 4 rows, id c.*output_kind"):
        check_probabilities("m", scores, np.array(["a", "b", "c", "d"]))
