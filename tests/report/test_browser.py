"""The page in a real Chromium: sliders moved by keyboard, numbers read back and compared with the served core."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.decision.exit_rule import ExitRule
from orchestrator.planner.intervals import clopper_pearson
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.report.inputs import stage_outputs_from_plan
from orchestrator.spec import CascadeSpec
from tests.chromium import Browser, browser, chromium_path
from tests.report.builders import made_plan, made_records
from tests.report.test_page import undrawn

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


@pytest.fixture
def page(folder: Path) -> Path:
    return folder / "index.html"


def undrawn_page(folder: Path, spec: CascadeSpec, records: Records) -> Path:
    path = folder / "index.html"
    path.write_text(undrawn(spec, records), encoding="utf-8")
    return path


def number(chrome: Browser, name: str) -> float:
    return float(chrome.evaluate(f"document.getElementById('{name}').dataset.value"))


def threshold(chrome: Browser, stage: int) -> float | None:
    said = chrome.evaluate(f"document.getElementById('slider-{stage}').getAttribute('aria-valuetext')")
    field = chrome.evaluate(f"document.getElementById('number-{stage}').value")
    assert field == ("" if said == "never" else said)
    return None if said == "never" else float(said)


TINY = "querySelectorAll('#try title').values().find((one) => one.textContent.startsWith('tiny: ')).parentNode"


def place(chrome: Browser, element: str) -> list[float]:
    """Coordinates of the marker in a group of the small chart."""
    use = f"document.{element}.querySelector('use')"
    return [float(chrome.evaluate(f"{use}.getAttribute('{axis}')")) for axis in "xy"]


def focus(chrome: Browser, name: str) -> None:
    chrome.evaluate(f"document.getElementById('{name}').focus()")
    assert chrome.evaluate("document.activeElement.id") == name


def check_against_the_core(chrome: Browser, spec: CascadeSpec, records: Records) -> dict[str, Any]:
    """Every number the sliders give equals a replay with the thresholds they show."""
    thresholds = [threshold(chrome, stage) for stage in range(len(spec.stages) - 1)]
    stages = tuple(
        dataclasses.replace(stage, threshold=one)
        for stage, one in zip(spec.stages, (*thresholds, None), strict=True)
    )
    done = replay(dataclasses.replace(spec, stages=stages), records)
    right = int((done.label == records.labels).sum())
    stops = np.bincount(done.exit_stage, minlength=len(stages))
    assert number(chrome, "live-quality") == right / records.rows
    assert number(chrome, "live-cost") == pytest.approx(float(done.cost.astype(np.float64).mean()), rel=1e-9)
    shares = [number(chrome, f"live-exit-{stage}") for stage in range(len(stages))]
    assert shares == (stops / records.rows).tolist()
    ends = chrome.evaluate("document.getElementById('live-quality-ci').dataset.value").split()
    assert [float(end) for end in ends] == pytest.approx(clopper_pearson(right, records.rows), abs=1e-9)
    return {"right": right, "stops": stops.tolist(), "thresholds": thresholds}


def test_sliders_moved_by_keyboard_give_the_numbers_of_the_core(chrome: Browser, page: Path) -> None:
    spec, records = made_plan(), made_records()
    chrome.open(page)
    planned = check_against_the_core(chrome, spec, records)
    assert np.float32(planned["thresholds"]).tolist() == np.float32([0.93, 0.8]).tolist()
    focus(chrome, "slider-0")
    chrome.press("ArrowLeft", 25)
    lower = check_against_the_core(chrome, spec, records)
    assert lower["stops"][0] > planned["stops"][0]
    focus(chrome, "slider-1")
    chrome.press("ArrowRight", 9)
    assert check_against_the_core(chrome, spec, records)["thresholds"] != lower["thresholds"]
    chrome.press("End")
    assert check_against_the_core(chrome, spec, records)["stops"][1] == 0
    focus(chrome, "slider-0")
    chrome.press("Home")
    assert check_against_the_core(chrome, spec, records)["stops"] == [600, 0, 0]
    # All rows stop at the first stage, so the dot is where that member is drawn.
    assert place(chrome, "getElementById('slider-dot')") == pytest.approx(place(chrome, TINY), abs=0.01)
    focus(chrome, "live-reset")
    chrome.press("Enter")
    assert check_against_the_core(chrome, spec, records) == planned
    assert chrome.trouble() == []


def test_a_typed_threshold_that_equals_a_score_lets_that_row_go(chrome: Browser, page: Path) -> None:
    spec, records = made_plan(), made_records()
    scores = np.sort(stage_outputs_from_plan(spec, records).score[0])[::-1]
    # Its shortest text lies a little above it: only the float32 of that text is the score again.
    place = next(one for one in range(50, 600) if float(str(scores[one])) > float(scores[one]))
    tie, above = scores[place], place
    chrome.open(page)
    for typed, stops in ((str(tie), above + 1), (str(np.nextafter(tie, np.float32(2))), above), ("", 0)):
        focus(chrome, "number-0")
        chrome.evaluate("document.activeElement.select()")
        if typed:
            chrome.type(typed)
        else:
            chrome.evaluate("document.activeElement.value = ''; "
                            "document.activeElement.dispatchEvent(new Event('change'))")  # fmt: skip
        chrome.press("Tab")
        assert number(chrome, "live-exit-0") == stops / 600


SCORES = st.floats(-2, 2, width=32)


@given(
    scores=st.lists(SCORES, min_size=1), threshold=st.none() | SCORES, low=st.none() | SCORES, shared=st.booleans()
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_leaves_a_stage_on_the_page_where_the_exit_rule_lets_it(
    scores: list[float], threshold: float | None, low: float | None, shared: bool, chrome: Browser, page: Path
) -> None:
    # Scores that equal a threshold or a low end are the ones that two rules could differ on.
    scores += [one for one in (threshold, low) if one is not None and shared]
    low = None if low is None or (threshold is not None and low >= threshold) else low
    spec = made_plan((("tiny",), ("large",)), (threshold,))
    spec = dataclasses.replace(spec, stages=(dataclasses.replace(spec.stages[0], low=low), spec.stages[1]))
    score, stage = np.array(scores, np.float32), np.zeros(len(scores), np.int32)
    shift = np.zeros(len(scores), np.float32)
    exits, _ = ExitRule(spec).decide(0, score, min_stage=stage, max_stage=stage + 1, shift=shift)
    if chrome.evaluate("typeof leaves") != "function":
        chrome.open(page)
    bar = "Infinity" if threshold is None else threshold
    found = chrome.evaluate(f"{scores}.map((one) => leaves(one, {bar}, {'null' if low is None else low}))")
    assert found == exits.tolist()


def test_an_abstain_window_is_kept_by_the_sliders(chrome: Browser, tmp_path: Path) -> None:
    spec, records = made_plan(), made_records(4)
    first = dataclasses.replace(spec.stages[0], low=0.4)
    spec = dataclasses.replace(spec, stages=(first, *spec.stages[1:]))
    chrome.open(undrawn_page(tmp_path, spec, records))
    check_against_the_core(chrome, spec, records)
    focus(chrome, "slider-0")
    chrome.press("ArrowRight", 12)
    assert check_against_the_core(chrome, spec, records)["stops"][0] > 0


def test_the_page_asks_nobody_and_complains_of_nothing(chrome: Browser, page: Path) -> None:
    chrome.open(page)
    assert chrome.requests() == [page.resolve().as_uri()]
    assert chrome.trouble() == []


def test_no_name_runs_as_a_script(chrome: Browser, evil: Path) -> None:
    page = evil / "index.html"
    chrome.open(page)
    assert chrome.evaluate("String(window.pwned)") == "undefined"
    assert chrome.requests() == [page.resolve().as_uri()]
    assert chrome.trouble() == []
    assert number(chrome, "live-quality") > 0


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_it_fits_a_laptop_and_follows_its_look(scheme: str, dark: bool, chrome: Browser, page: Path) -> None:
    chrome.open(page, scheme=scheme, width=1280, height=800)
    assert chrome.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colour = chrome.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).join(' ')"
    )
    assert (max(int(part) for part in colour.split()) < 80) == dark
    inks = chrome.evaluate("[...document.querySelectorAll('.chart')].map((one) => "
                           "getComputedStyle(one.querySelector('text')).fill).join(';')").split(";")  # fmt: skip
    assert len(inks) == 7
    assert all((min(int(part) for part in re.findall(r"\d+", ink)) > 150) == dark for ink in inks)
    chrome.evaluate("document.getElementById('try').scrollIntoView({behavior: 'instant'})")
    # The sliders and all numbers they change are on one screen.
    last = "document.getElementById('live-exit-2').getBoundingClientRect().bottom"
    assert chrome.evaluate(last) <= 800


def test_without_labels_the_sliders_show_agreement(chrome: Browser, tmp_path: Path) -> None:
    chrome.open(undrawn_page(tmp_path, made_plan(), made_records(labelled=False)))
    focus(chrome, "slider-0")
    chrome.press("End")
    focus(chrome, "slider-1")
    chrome.press("End")
    assert number(chrome, "live-quality") == 1
    assert "agreement with the last stage" in chrome.evaluate("document.getElementById('try').innerText")
    assert chrome.trouble() == []
