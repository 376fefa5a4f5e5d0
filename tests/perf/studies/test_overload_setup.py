from __future__ import annotations

from pathlib import Path

import pytest

from perf.studies.overload.setup import DIGITS, GLYPHS, OverloadSource, make_setup


@pytest.mark.parametrize("source", [GLYPHS, DIGITS], ids=lambda source: source.name)
def test_no_row_that_is_sent_was_planned_on(source: OverloadSource) -> None:
    plan, test = (source.draw(part, 50) for part in ("plan", "test"))
    assert len(plan.images) == len(test.labels) == 50
    assert not set(plan.ids.tolist()) & set(test.ids.tolist())


def test_digits_have_a_plan_with_gears_and_waits_follow_the_wish(tmp_path: Path) -> None:
    folder, cache = tmp_path / "models", tmp_path / "recordings"
    setup = make_setup(folder, source=DIGITS, cache=cache, say=lambda _: None, raise_wait_us=5000)
    gears = setup.spec.gears
    assert gears is not None
    assert (gears.raise_wait_us, gears.lower_wait_us) == (5000, 1000)
    assert {"geared", "plain"} < {path.name for path in folder.iterdir()}
