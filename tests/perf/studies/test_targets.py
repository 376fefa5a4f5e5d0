from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perf.harness.frame import TargetVerdict
from perf.studies.bench.targets import verdicts
from perf.studies.leak import Growth, growth_from
from tests.perf.harness.builders import cell_row, frame_of


def whole_run() -> list[dict[str, Any]]:
    """Everything the targets ask for; ours is twice as fast as the tutorial form, and so on."""
    return [
        cell_row("committee", concurrency=16, requests_per_s=400, easy_p50_ms=5.0),
        cell_row("tutorial", concurrency=16, requests_per_s=200, easy_p50_ms=50.0),
        cell_row("committee", concurrency=64, requests_per_s=500, bound=520.0),
        cell_row("tutorial", concurrency=64, requests_per_s=250),
        cell_row("committee", share=0.8, of_route="tutorial", p99_ms=40.0),
        cell_row("tutorial", share=0.8, of_route="tutorial", p99_ms=100.0),
        cell_row("committee", share=0.8, of_route="concatenate_4", p99_ms=80.0),
        cell_row("concatenate_4", share=0.8, of_route="concatenate_4", p99_ms=100.0),
        cell_row("committee", concurrency=1, easy_p50_ms=0.9),
        cell_row("pass_through", concurrency=1, p50_ms=0.8),
        cell_row("committee", deferral=0.0, requests_per_s=4000),
        cell_row("pass_through", deferral=0.0, requests_per_s=4400),
        cell_row("committee", concurrency=64, deferral=1.0, requests_per_s=78),
        cell_row("member_2", concurrency=64, requests_per_s=84),
        cell_row("member_2", concurrency=16, requests_per_s=80),
        cell_row("committee", scenario="glyphs", batch=32, requests_per_s=30),
        cell_row("member_3", scenario="glyphs", batch=32, requests_per_s=10),
    ]


def found(**changes: Any) -> dict[str, TargetVerdict]:
    given = {"predicted_speedup": 4.0, "leak": Growth(percent=0.5, note="little"), **changes}
    return {one.target: one for one in verdicts(frame_of(*whole_run()), members=3, **given)}


def test_every_target_is_a_ratio_of_what_was_measured() -> None:
    measured = [one.measured for one in found().values()]
    assert measured == pytest.approx(
        [2.0, 2.0, 0.1, 0.4, 0.8, 500 / 520, 0.9 / 0.8, 4000 / 4400, 78 / 84, 500 / 84, 3 / 4, 0.5]
    )


def test_targets_are_met_or_not_by_their_own_sense() -> None:
    assert [one.met for one in found().values()] == [True] * 4 + [False] + [True] * 7
    assert next(reversed(found(leak=Growth(percent=2.1, note="")).values())).met is False


def test_the_note_holds_what_the_bound_would_have_allowed() -> None:
    note = found()["requests/s against the tutorial form, concurrency 64"].note
    # Both made-up routes spend the same.
    assert note == (
        f"0.9 x bound / tutorial is {0.9 * 520 / 250:.2f}; by the server's processor time per request 1.00"
    )


@pytest.mark.parametrize(
    ("flag", "met", "words"),
    [
        ({"failed": 3}, None, "tutorial: 3 requests failed"),
        ({"reach_is_off": True}, None, "tutorial: exit mix off by over 1 point"),
        ({"unstable": True}, True, "tutorial: unstable"),
    ],
)
def test_a_ratio_of_flagged_cells_says_so_and_one_of_lost_requests_or_another_mix_is_not_judged(
    flag: dict[str, Any], met: bool | None, words: str
) -> None:
    cells = [
        {**one, **flag} if (one["route"], one["concurrency"]) == ("tutorial", 64) else one for one in whole_run()
    ]
    judged = verdicts(frame_of(*cells), members=3, predicted_speedup=None, leak=None)
    changed = [one for one in judged if words in one.remarks]
    assert [one.target for one in changed] == ["requests/s against the tutorial form, concurrency 64"]
    assert changed[0].met is met
    assert words in changed[0].as_json()["note"]


def test_baselines_with_more_instances_are_named_beside_those_with_one() -> None:
    more = [
        cell_row("tutorial_4", concurrency=64, requests_per_s=400),
        cell_row("largest_2", concurrency=64, requests_per_s=125),
    ]
    found = {
        one.target: one.note
        for one in verdicts(frame_of(*whole_run(), *more), members=3, predicted_speedup=None, leak=None)
    }
    assert "against 4 instances of it 1.25" in found["requests/s against the tutorial form, concurrency 64"]
    assert found["requests/s against the largest member alone, three CNNs"].startswith(
        "against 2 instances of it 4.00"
    )


def leak_document(**changes: Any) -> dict[str, Any]:
    return {
        "scenario": "three_cnn",
        "route": "committee",
        "commit": "abc",
        "requests": 200_000,
        "resident_percent": 0.4,
        "shm_percent": 0.1,
        "own_percent": 1.5,
        **changes,
    }


def test_the_leak_target_counts_the_cascades_own_process_too(tmp_path: Path) -> None:
    path = tmp_path / "leak.json"
    path.write_text(json.dumps(leak_document()))
    assert growth_from(path) == Growth(
        percent=1.5,
        note="resident +0.40 %, shared +0.10 %, the cascade's own process +1.50 %; 200,000 requests, commit abc",
    )


@pytest.mark.parametrize(
    "changes",
    [{"route": "tutorial"}, {"scenario": "digits"}, {"requests": 199_999}, {"own_percent": None}, {"route": 5}],
)
def test_a_leak_run_of_something_else_is_no_figure_of_the_target(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "leak.json"
    path.write_text(json.dumps(leak_document(**changes)))
    assert growth_from(path) is None


def test_the_glyphs_note_says_what_is_left_without_idle_cores() -> None:
    target = "glyphs at request batch 32: speed-up over the largest member, share of what the plan predicts"
    note = found()[target].note
    assert note.startswith("3.00x, predicted 4.00x; earned mix; ")
    # Both made-up routes spend the same.
    assert note.endswith("processor time per request it is 1.00x, 0.25 of what is predicted")


def test_the_fastest_mix_is_not_held_against_the_largest_member() -> None:
    """At 0 % deferral the committee is ten times as fast; the target is about 15 %."""
    assert found()["requests/s against the largest member alone, three CNNs"].measured == pytest.approx(500 / 84)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    empty = verdicts(frame_of(), members=3, predicted_speedup=None, leak=None)
    assert len(empty) == 12
    assert {one.met for one in empty} == {None}
    assert set(empty[0].as_json()) == {"target", "needed", "measured", "met", "note"}
    assert empty[0].as_json()["met"] is None
