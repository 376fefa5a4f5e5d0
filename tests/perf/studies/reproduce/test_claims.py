from typing import Any

import pytest

from perf.studies.reproduce.claims import SECTIONS, ranged, times

SHORT = {section.claim: section.short for section in SECTIONS}
VERDICTS = {section.claim: section.verdict for section in SECTIONS}


def line(
    label: str, difference: float = 0.0, reach: float = 0.01, factor: float = 2.0, **more: Any
) -> dict[str, Any]:
    return {
        "label": label,
        "one": {},
        "difference": difference,
        "difference_ci95": [difference - reach, difference + reach],
        "macs_factor": factor,
        "macs_factor_ci95": [factor - 0.1, factor + 0.1],
        **more,
    }


NOBODY = {"label": "small", "one": None, "note": "too dear"}


def test_losses_are_said_as_plainly_as_gains() -> None:
    text = VERDICTS["2"]([NOBODY, line("a", -0.05), line("b", 0.05), line("c", 0.005)])
    assert "surely more accurate (the interval is above 0) in 1 of 3 lines (b)" in text
    assert "surely less accurate in 1 (a), undecided: c" in text
    assert text.endswith("No two members fit small.")


def test_cascades_say_how_many_lost_accuracy_or_time() -> None:
    slow, fast = {"32": {"median": 0.5}}, {"32": {"median": 3.0}}
    text = VERDICTS["3"](
        [NOBODY, line("a", -0.05, factor=4, time_factor=slow), line("b", 0.01, factor=2, time_factor=fast)]
    )
    assert (
        "2 of 3 single models have such a plan: 3.00 times fewer MACs in the median, 2.00 to 4.00 in all" in text
    )
    assert "lower than the single model's for 1 of 2, surely (the interval is below 0) for 1." in text
    assert "In batches of 32 1 of 2 take longer" in text
    assert VERDICTS["3"]([NOBODY]) == "0 of 1 single models have such a plan."


def test_worst_cases_without_the_margin_are_told_apart() -> None:
    text = VERDICTS["4"]([NOBODY, line("small, no margin", -0.002, factor=1.3)])
    assert text == (
        "0 of 1 single models have such a plan. Without the margin 1 more: small 1.30 times fewer MACs at"
        " -0.20 points."
    )


def test_modes_are_held_against_the_first_line() -> None:
    text = VERDICTS["6a"](
        [line("mean_logit, max_prob", factor=1.0), line("x", factor=1.5), line("y", factor=1.05)]
    )
    assert text == "Beside the defaults, surely cheaper: x (1.50 times fewer MACs); surely dearer: none."


def test_stages_are_listed_by_target() -> None:
    text = VERDICTS["7"]([line("b3, at most 2 stages", factor=2.0), line("b3, at most 3 stages", factor=3.0)])
    assert text == "b3: 2.00 times fewer MACs with at most 2 stages, 3.00 times fewer MACs with at most 3 stages."


def test_an_interval_without_width_is_not_printed() -> None:
    assert ranged(2.0, [2.0, 2.0], times) == "2.00"
    assert ranged(2.0, [1.9, 2.1], times) == "2.00 [1.90, 2.10]"


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("1", "Surely more accurate in 1 of 2 lines, surely less accurate in 0."),
        ("4", "2 of 3 single models have such a plan: 2.00 times fewer MACs in the median, 2.00 to 2.00 in all."),
        ("6a", "Of 1 pairs of mode and score beside the defaults, surely cheaper: 1; surely dearer: 0."),
        ("7", "For b: 2.00 times fewer MACs with 1 stage."),
    ],
)
def test_the_summary_counts_what_is_sure(claim: str, said: str) -> None:
    labels = ("a, 1 stage", "b, 1 stage") if claim == "7" else ("a", "b")
    lines = [line(labels[0], 0.05), line(labels[1])] + ([] if claim == "7" else [NOBODY])
    assert SHORT[claim](lines).startswith(said)
