"""Numbers as people read them, and what the page says of its own numbers."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words import times_between, times_words
from orchestrator.spec import Fit
from tests.report.builders import made_plan, made_records
from tests.report.test_page import Page, undrawn


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


SPLIT = {"split": {"seed": 7, "search_rows": 400, "certify_rows": 200}}
FACTS = {"statement": "so it is", "rows": 200, "losses": 43, "gains": 0, "method": "made up", "bound": 0.02}
STRONG, WEAK = "had no say in the choice", "only decide how far down a fixed list of plans to go"


def page(**facts: Any) -> str:
    fit = Fit(
        data_sha256="d" * 64, rows=400, split="made:test", target="highest accuracy", accuracy=0.9,
        accuracy_ci95=(0.8, 0.95), exit_share=(0.5, 0.3, 0.2), mean_cost=8e6, extra=SPLIT | {"guarantee": facts},
    )  # fmt: skip
    return Page(undrawn(made_plan(fit=fit), made_records())).text


@pytest.mark.parametrize(
    ("facts", "sifted"),
    [
        ({}, False),
        ({"candidates": 1, "tested": 1}, False),
        ({"candidates": 12, "tested": 4}, True),
        # Nothing was found to try, so the reference was settled before.
        ({"method": "identity"}, False),
        ({"method": "identity", "candidates": 1, "tested": 1}, True),
    ],
)
def test_rows_that_chose_from_a_list_of_plans_are_not_said_to_have_had_no_say(facts: dict, sifted: bool) -> None:
    text = page(**(FACTS | facts))
    assert text.count(WEAK if sifted else STRONG) == 2
    assert (WEAK if not sifted else STRONG) not in text
    assert ("on the 200 kept to certify" in text) == sifted
    assert ("on the 200 without a say" in text) == (not sifted)
    assert ("a little better there too" in text) == sifted


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        ("wrong", ": 43 wrong; bound"),
        ("lost", ": 43 lost, 0 gained; bound"),
        ("in disagreement", ": 43 in disagreement; bound"),
        (None, ": 43 lost, 0 gained; bound"),
    ],
)
def test_rows_that_count_against_the_plan_are_called_what_they_are(counted: str | None, said: str) -> None:
    text = page(**FACTS, **({"counted": counted} if counted else {}))
    assert said in text
    assert "counted" not in text


def test_a_reference_that_stands_in_is_said_to() -> None:
    text = page(**(FACTS | {"method": "identity", "candidates": 1, "tested": 1, "more_rows": None}))
    assert "No other plan could be certified: this is the reference itself." in text
    assert "more_rows" not in text


def test_the_mean_cost_on_the_rows_a_budget_was_kept_on_stands_beside_that_of_all() -> None:
    assert "8 M MACs on the 400 it was chosen on" in page(**FACTS)
