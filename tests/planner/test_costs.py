from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import DataError
from orchestrator.planner.members import cost_profile_from_path, is_cost


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
        cost_profile_from_path(tmp_path / "p.json")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
