from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.plan import check_probabilities, costs_from_path, kind_seen
from orchestrator.planner.records import is_cost

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


@pytest.mark.parametrize("cost", [0, 0.0, 1, 1e-30, 1e30, 10**29])
def test_costs_within_reason_are_costs(cost: float) -> None:
    assert is_cost(cost)


@pytest.mark.parametrize(
    "cost", [-1, float("nan"), float("inf"), 1e31, 1e-31, 10**400, True, "1", None, 1e308], ids=str
)
def test_costs_that_sums_cannot_hold_are_none(cost: object) -> None:
    assert not is_cost(cost)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"cost": {"a": 1' + "0" * 400 + '}, "unit": "ms"}', "10{39} for a"),
        ('{"cost": {"a": 1}, "unit": "\\ud800"}', "surrogates"),
        ('{"cost": {"\\ud800": -1}, "unit": "ms"}', "surrogates"),
        ('{"cost": {"a": 1e307}, "unit": "ms"}', "1e\\+307 for a"),
        ('{"cost": {"a": 1}, "unit": 1}', "other JSON"),
    ],
    ids=["deep", "long", "unit", "name", "huge", "no unit"],
)
def test_profiles_nobody_could_plan_with_are_one_short_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        costs_from_path(tmp_path / "p.json", ["a"])
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
