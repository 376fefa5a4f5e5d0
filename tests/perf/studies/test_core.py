import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.decision import CascadeRun
from orchestrator.errors import DataError
from perf.__main__ import app
from perf.studies.core import PARTS, CoreTimes, core_calls
from tests.decision.builders import Case, make_spec, with_thresholds


def test_the_parts_take_the_ways_they_are_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(
        [2, 1, 1], 7, combine="mean_logit", score="max_prob", rng=np.random.default_rng(0), kinds=True
    )
    calls = core_calls(with_thresholds(Case(spec, {}, 0), 0.7).spec)
    assert calls.keys() == PARTS.keys()
    ways = []
    for name in ("admit", "feed"):
        way = getattr(CascadeRun, name)
        monkeypatch.setattr(CascadeRun, name, lambda *a, name=name, way=way: ways.append(name) or way(*a))
    assert calls["fast_path"]().exits.tolist() == [True]
    assert ways == []
    assert calls["general_exit"]().answers.exit_stage.tolist() == [0]
    assert calls["one_deferral"]().answers.exit_stage.tolist() == [1]
    assert ways == ["admit", "admit", "feed"]


def test_ratios_are_formed_within_rounds() -> None:
    value = CoreTimes(us=(10.0, 40.0, 90.0), operation_us=(5.0, 10.0, 30.0)).as_json()
    assert value == {"us": 40.0, "us_quartiles": [25.0, 65.0], "ratio": 3.0, "ratio_quartiles": [2.5, 3.5]}


def test_the_command_prints_every_part_as_json() -> None:
    said = CliRunner().invoke(app, ["core", "--rounds", "3", "--rows", "1", "--json"], catch_exceptions=False)
    parts = json.loads(said.stdout)["parts"]
    assert parts.keys() == PARTS.keys()
    assert parts["numpy"]["ratio"] == 1.0


def test_a_plan_whose_rows_take_no_such_way_is_one_line() -> None:
    spec = make_spec([1, 1], 7, combine="mean_logit", score="max_prob", rng=np.random.default_rng(0), kinds=False)
    with pytest.raises(DataError, match="does not exit as general_exit needs it"):
        core_calls(spec)
    with pytest.raises(DataError, match="with one stage, expected a cascade of two stages"):
        core_calls(replace(spec, stages=spec.stages[-1:]))
