import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.rows.digits import digits_split
from orchestrator.spec import cascade_from_path
from perf.studies.onefile import OnefileCase, measure_onefile, random_cascade
from tests.export.onefile.builders import cascade, put_slicing

REPOSITORY = Path(__file__).parents[3] / "model_repository"


def test_a_case_gives_its_ratio_within_rounds_with_quartiles_and_the_difference() -> None:
    case = OnefileCase(
        cascade="c",
        rows=4,
        mix="all easy",
        asked=(4, 0),
        onefile_us=(11.0, 24.0, 33.0),
        members_us=(10.0, 20.0, 30.0),
    )
    value = case.as_json()
    assert (value["ratio"], value["ratio_quartiles"], value["extra_us"]) == (1.1, [1.1, 1.15], 3.0)
    assert json.loads(json.dumps(value))["asked"] == [4, 0]


def test_every_mix_asks_the_stages_for_the_rows_it_names(tmp_path: Path) -> None:
    spec = cascade([1, 2], 2)
    put_slicing(tmp_path, spec)
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    cases = measure_onefile(
        spec, tmp_path, rows, batches=(1, 20), rounds=3, progress=lambda text: None, round_s=0.0
    )
    asked = [(case.rows, case.mix, case.asked) for case in cases]
    assert asked == [
        (1, "all easy", (1, 0)), (1, "all hard", (1, 1)),
        (20, "all easy", (20, 0)), (20, "15 % hard", (20, 3)), (20, "all hard", (20, 20)),
    ]  # fmt: skip
    assert all(len(case.onefile_us) == len(case.members_us) == 3 for case in cases)


@pytest.mark.slow
def test_a_batch_of_sure_rows_costs_hardly_more_than_the_first_member() -> None:
    spec = cascade_from_path(REPOSITORY / "digits_cascade" / "1" / "cascade.json")
    cases = measure_onefile(
        spec, REPOSITORY, digits_split("test").images, batches=(1, 256), rounds=9, progress=lambda text: None
    )
    easy = {case.rows: case.as_json() for case in cases if case.mix == "all easy"}
    assert easy[256]["ratio"] <= 1.15
    assert easy[1]["extra_us"] <= 40


@pytest.mark.slow
def test_beside_members_of_ten_milliseconds_the_graph_around_them_is_not_seen(tmp_path: Path) -> None:
    spec, rows = random_cascade(tmp_path)
    cases = measure_onefile(spec, tmp_path, rows, batches=(32,), rounds=9, progress=lambda text: None)
    ratios = {case.mix: case.as_json()["ratio"] for case in cases}
    assert {mix: ratio for mix, ratio in ratios.items() if ratio > 1.1} == {}
    assert np.median(next(case.members_us for case in cases)) > 5_000
    assert dataclasses.asdict(cases[0])["asked"] == (32, 0)
