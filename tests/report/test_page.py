import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.records import Records
from orchestrator.report.charts import Chart, charts_from_report, sketches_from_report
from orchestrator.report.data import MOST_ROWS, report_from_records, sampled_rows, slider_data
from orchestrator.report.page import page_from_report, write_report
from orchestrator.report.words import cost_words, times_between, times_words
from orchestrator.spec import CascadeSpec
from tests.report.builders import (
    CALIBRATION,
    CERTIFICATE,
    FRONTIER,
    ProgressCounter,
    made_fit,
    made_plan,
    made_records,
    with_facts,
)


class Page(HTMLParser):
    """Elements and text of a page; fails on anything left open."""

    VOID = ("meta", "link", "img", "source", "input", "br", "circle", "line", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def undrawn(spec: CascadeSpec, records: Records, **facts: Any) -> str:
    """A page with blanks for the large charts, which take seconds to draw."""
    report = report_from_records(spec, records, **facts)
    blanks = [
        Chart(
            name=sketch.name, svg="<svg class='chart'></svg>", png=b"", axes_box=(0, 0, 0, 0), limits=(0, 0, 0, 0)
        )
        for sketch in sketches_from_report(report)
    ]
    return page_from_report(report, blanks)


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def test_the_folder_holds_one_page_and_the_pictures(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    pictures = ("frontier", "exits", "thresholds", "confidence", "reliability", "classes")
    assert names == {"index.html", *(f"{name}.png" for name in pictures)}
    assert all((folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for name in pictures)


def test_the_page_asks_nobody_for_anything(text: str) -> None:
    # What is packed in base64 may look like anything.
    bare = re.sub(r"<script type=\"application/json\".*?</script>", "", text)
    assert len(bare) < 300_000
    assert not re.search(r"https?:|url\((?!#)|@import|\bfetch\b|XMLHttpRequest|WebSocket|import\(", bare)
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in text


def test_the_page_says_what_the_numbers_are_of(text: str) -> None:
    said = Page(text).text
    report = report_from_records(with_facts(made_plan(), guarantee=CERTIFICATE), made_records())
    low, high = report.plan.quality.interval
    assert f"{100 * report.plan.quality.value:.2f} %" in said
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in said
    assert "600 rows of made:test" in said
    assert "accuracy >= that of large - 0.02" in said
    assert "Judged on 200 rows that had no say in the choice: 3 lost, 1 gained; bound 0.0192" in said
    assert "Temperatures are used: it helped." in said
    assert "12.50 %" in said
    assert "The 2 plans of the frontier" in said
    assert "accuracy minus large" in said


def test_every_slider_has_a_label_and_every_picture_words(text: str) -> None:
    elements = Page(text).elements
    sliders = [one["id"] for tag, one in elements if tag == "input" and one["type"] == "range"]
    assert sliders == ["slider-0", "slider-1"]
    labels = [one["for"] for tag, one in elements if tag == "label"]
    assert labels == sliders
    charts = [one for tag, one in elements if tag == "svg"]
    assert len(charts) == 7
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert not any("font-family" in (one.get("style") or "") for _, one in elements)
    assert all(one.get("aria-label") for tag, one in elements if tag == "input" and one["type"] == "number")


def test_writing_twice_gives_equal_bytes(folder: Path) -> None:
    spec = with_facts(made_plan(), guarantee=CERTIFICATE, calibration=CALIBRATION)
    report = report_from_records(spec, made_records(), frontier=FRONTIER)
    sketch = next(one for one in sketches_from_report(report) if one.name == "exits")
    again = sketch.drawn(report)
    assert (folder / "exits.png").read_bytes() == again.png
    assert again.svg in (folder / "index.html").read_text(encoding="utf-8")
    pages = [undrawn(spec, made_records(), frontier=FRONTIER) for _ in range(2)]
    assert pages[0] == pages[1]


def test_no_name_breaks_out_of_its_place(evil: Path) -> None:
    page = Page((evil / "index.html").read_text(encoding="utf-8"))
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("script"), tags.count("svg"), tags.count("img")) == (2, 7, 0)
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>window.pwned=1</script>") > 10


@pytest.mark.parametrize("why", ["no labels", "random weights"])
def test_without_accuracy_the_page_says_why_and_shows_none(why: str) -> None:
    meta = (
        {"data": "made:test", "members": {"small": {"random_weights": True}}} if why == "random weights" else None
    )
    records = made_records(labelled=why != "no labels", meta=meta)
    said = Page(undrawn(made_plan(), records, frontier=FRONTIER)).text
    reason = {"no labels": "the records hold no labels", "random weights": "the weights of small are random"}[why]
    assert f"No accuracy is shown: {reason}" in said
    assert len(re.findall("accuracy", said, re.IGNORECASE)) == 1
    assert "the plan disagrees on" in said
    report = report_from_records(made_plan(), records, frontier=FRONTIER)
    assert not {"classes", "reliability"} & {sketch.name for sketch in sketches_from_report(report)}


def test_a_plan_of_one_stage_has_no_sliders() -> None:
    page = Page(undrawn(made_plan((("tiny", "small"),), ()), made_records()))
    assert not [tag for tag, _ in page.elements if tag in ("input", "script")]
    assert "answers every row" in page.text


def decoded(text: str, dtype: str) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_rows_in_the_page_are_the_scores_and_flags_of_the_core() -> None:
    report = report_from_records(made_plan(), made_records(rows=37))
    live = json.loads(json.dumps(slider_data(report)))
    assert live["rows"] == 37
    for stage, one in enumerate(live["stages"]):
        flags = np.unpackbits(decoded(one["correct"], "u1"), bitorder="little")[:37]
        assert np.array_equal(flags, report.stage_correct[stage])
        assert one["cost"] == report.outputs.cost[stage]
        if stage < 2:
            assert np.array_equal(decoded(one["score"], "<f4"), report.outputs.score[stage])
            grid = decoded(one["grid"], "<f4")
            assert grid[one["planned"]] == np.float32(report.outputs.thresholds[stage])


def test_every_number_of_correct_rows_that_thresholds_can_give_has_its_interval() -> None:
    report = report_from_records(made_plan(), made_records(rows=37))
    intervals = slider_data(report)["intervals"]
    low, high = (decoded(intervals[end], "<f8").tolist() for end in ("low", "high"))
    correct = report.stage_correct.sum(axis=0)
    counts = range((correct == 3).sum(), (correct > 0).sum() + 1)
    assert intervals["fewest"] == counts[0]
    assert list(zip(low, high, strict=True)) == [clopper_pearson(count, 37) for count in counts]


def test_of_many_rows_an_even_draw_travels_and_the_page_says_so() -> None:
    records = made_records(rows=MOST_ROWS + 500, classes=2)
    drawn = sampled_rows(records.rows)
    assert len(drawn) == len(np.unique(drawn)) == MOST_ROWS
    assert np.array_equal(drawn, sampled_rows(records.rows))
    assert abs(drawn.mean() - records.rows / 2) < 200
    report = report_from_records(made_plan(classes=2), records)
    page = page_from_report(report, charts_from_report(report))
    assert len(page.encode()) < 5_000_000
    said = Page(page).text
    assert "an even draw from the 20,500 rows of made:test: 20,000 rows travel in this page" in said


def test_a_place_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("mine")
    for folder in (taken, taken / "below"):
        with pytest.raises(DataError, match="a folder that can be written to"):
            write_report(folder, made_plan(), made_records())
    assert taken.read_text() == "mine"


def test_an_interrupt_while_drawing_leaves_no_folder_that_was_not_there(tmp_path: Path) -> None:
    counter = ProgressCounter(interrupts=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("kept")
    (tmp_path / "empty").mkdir()
    for name in ("new/report", "mine/report", "mine", "empty"):
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path / name, made_plan(), made_records(rows=60), progress=counter.progress)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "mine", "mine/notes", "empty"
    }  # fmt: skip


def test_every_picture_is_a_step_of_the_progress(folder: Path, counter: ProgressCounter) -> None:
    assert counter.steps == counter.total == len(list(folder.glob("*.png"))) > 0


@pytest.mark.parametrize(
    ("cost", "words"),
    [(0.0, "0 MACs"), (0.0042, "0.0042 MACs"), (999.0, "999 MACs"), (999.9, "1 k MACs"), (1.234e6, "1.23 M MACs"),
     (None, "unknown")],
)  # fmt: skip
def test_costs_are_written_with_three_digits(cost: float | None, words: str) -> None:
    assert cost_words(cost, "MACs") == words


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
    spec = with_facts(made_plan(fit=made_fit()), guarantee=facts, **SPLIT)
    return Page(undrawn(spec, made_records())).text


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


CLOCK = {
    "load": "batches of 8", "ms": 0.5, "high_ms": 2.5, "rows_per_s": 2000.0, "busiest": None, "knee": 8,
    "stages": [{"members": ["a<b"], "reach": 1.0, "batch": 8.0, "ms": 0.5, "load": 1.0}],
    "asked": "onnxruntime", "machine": {"cpu": "a processor", "cores": 2, "platform": "Linux"}, "alternatives": [],
}  # fmt: skip


def test_what_was_predicted_by_the_clock_has_a_section() -> None:
    text = Page(undrawn(with_facts(made_plan(fit=made_fit()), timing=CLOCK), made_records())).text
    assert "0.5 ms per row on average, at most 2.5 for 99 % of the rows" in text
    assert "a<b" in text
    assert "Rows are answered" not in text
    assert "own process" not in text
    more = {"answered_ms": 0.75, "answered_p99_ms": 3.5, "in_process": {"stages": 1, "ms": 0.25}}
    text = Page(undrawn(with_facts(made_plan(fit=made_fit()), timing=CLOCK | more), made_records())).text
    assert "Rows are answered after 0.75 ms on average, 99 % of them within 3.5." in text
    assert "With 1 leading stages in the cascade's own process" in text


@pytest.mark.parametrize("facts", [{}, 5, {"ms": 1}])
def test_a_plan_without_a_prediction_has_no_such_section(facts: object) -> None:
    text = Page(undrawn(with_facts(made_plan(fit=made_fit()), timing=facts), made_records())).text
    assert "By the clock" not in text
