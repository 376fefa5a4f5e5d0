"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words import times_between, times_words


@pytest.mark.parametrize(
    ("factor", "options", "words"),
    [
        (25.77, {}, "25.8 times less"),
        (0.14, {}, "7.14 times more"),
        (0.14, {"noun": "MACs", "than": "large"}, "7.14 times more MACs than large"),
        (5.876, {"noun": "MACs", "form": ".2f"}, "5.88 times fewer MACs"),
        (1234.5, {}, "1,234 times less"),
        (1 / 1234.5, {}, "1,234 times more"),
        (99.96, {}, "100 times less"),
        (1.0, {}, "as much"),
        (1.004, {"form": ".2f"}, "as much"),
        (0.996, {"form": ".2f", "noun": "MACs", "than": "large"}, "as many MACs as large"),
        (0.996, {"form": ".3f"}, "1.004 times more"),
    ],
)
def test_what_costs_more_is_said_to_cost_more(factor: float, options: dict, words: str) -> None:
    assert times_words(factor, **options) == words


@given(st.floats(1e-6, 1e6))
def test_the_number_is_never_below_one_and_the_word_is_right(factor: float) -> None:
    words = times_words(factor)
    if words == "as much":
        assert factor == pytest.approx(1, rel=0.006)
        return
    found = re.fullmatch(r"([\d,.]+) times (less|more)", words)
    assert found is not None
    assert found[2] == ("less" if factor > 1 else "more")
    assert float(found[1].replace(",", "")) == pytest.approx(max(factor, 1 / factor), rel=0.006)


@pytest.mark.parametrize(
    ("interval", "factor", "words"),
    [
        ((5.67, 6.09), 5.88, "5.67 to 6.09"),
        ((0.125, 0.25), 0.2, "4 to 8"),
        ((0.8, 1.25), 1.1, "1.25 times more to 1.25 times less"),
        ((0.8, 1.25), 0.9, "1.25 times more to 1.25 times less"),
        ((1.0, 2.0), 1.4, "1 to 2"),
    ],
)
def test_an_interval_says_on_which_side_its_ends_are(
    interval: tuple[float, float], factor: float, words: str
) -> None:
    assert times_between(interval, factor) == words
