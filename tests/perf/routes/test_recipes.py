import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.cost.counting import macs_per_row
from orchestrator.errors import DataError
from orchestrator.local import LocalMembers
from orchestrator.rows.digits import digits_split
from orchestrator.spec import cascade_from_path
from perf.routes.recipes import CHOSEN, COMMITTED, GLYPHS, RECIPES, glyphs
from perf.routes.scenario import predicted_speedup
from perf.routes.spec import Rows
from perf.routes.three_cnn import (
    FACTORS,
    NETWORKS,
    Network,
    factor_of,
    kept_factor,
    ms_per_row,
    network_model,
    widened,
)
from perf.studies.reproduce.plans import choices_from_path


@given(measured_ms=st.floats(0.8, 150))
def test_the_factor_brings_any_time_near_the_wanted_one(measured_ms: float) -> None:
    factor = factor_of(measured_ms, 12.0)
    assert factor in FACTORS
    assert 2**-0.251 <= measured_ms * factor / 12.0 <= 2**0.251


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_wider_networks_do_that_many_times_the_work(factor: float) -> None:
    (large,) = NETWORKS[-1:]
    layers = tuple((widened(channels, factor), stride) for channels, stride in large.layers)
    # Counted without their weights being drawn: the input has few channels, all else grows with both neighbours.
    assert work_of(layers) / work_of(large.layers) == pytest.approx(factor, rel=0.03)


def work_of(layers: tuple[tuple[int, int], ...]) -> int:
    total, into, size = 0, 3, 32
    for channels, stride in layers:
        size //= stride
        total += 9 * into * channels * size * size
        into = channels
    return total


def test_work_is_counted_as_in_the_manifest() -> None:
    small = Network(name="small", layers=((8, 1), (16, 2)), seed=1)
    assert macs_per_row(network_model(small)) == work_of(small.layers) + 16 * 10


def test_a_machine_is_measured_once_and_anew_with_another_wish(tmp_path: Path) -> None:
    asked: list[float] = []

    def measure(ms: float) -> float:
        asked.append(ms)
        return ms

    path = tmp_path / "members" / "size.json"
    assert kept_factor(path, lambda: measure(6.0), wanted_ms=12.0) == 2.0
    assert kept_factor(path, lambda: measure(24.0), wanted_ms=12.0) == 2.0
    assert kept_factor(path, lambda: measure(24.0), wanted_ms=24.0) == 1.0
    assert asked == [6.0, 24.0]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"factor": 2}', '{"factor": 3, "onnxruntime": "VERSION", "wanted_ms": 12.0}']
)
def test_a_file_that_holds_no_factor_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "size.json"
    path.write_text(text.replace("VERSION", onnxruntime.__version__))
    with pytest.raises(DataError, match=r"size\.json.*remove it"):
        kept_factor(path, lambda: 6.0, wanted_ms=12.0)


def test_a_row_is_timed_at_all() -> None:
    model = network_model(Network(name="small", layers=((8, 2),), seed=1))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert 0 < ms_per_row(session) < 1000
    assert np.isfinite(ms_per_row(session))


def test_it_is_the_plan_that_was_chosen_against_the_largest_member() -> None:
    (recipe,) = glyphs()
    headline = choices_from_path(CHOSEN).comparisons[0]
    assert headline.one is not None
    assert recipe.scenario.members == headline.one.members
    assert recipe.scenario.members[-1] == headline.other.members[0]
    assert recipe.scenario.earned
    assert not recipe.scenario.imposed
    assert all((GLYPHS / name / "manifest.json").is_file() for name in recipe.scenario.members)
    assert RECIPES["glyphs"].scenario == recipe.scenario


def test_the_predicted_speedup_is_what_the_largest_takes_over_what_the_plan_takes() -> None:
    spec = cascade_from_path(COMMITTED / "digits_cascade" / "1" / "cascade.json")
    rows = digits_split("plan").images[:128]
    stages = len(spec.stages)
    alone = predicted_speedup(COMMITTED, spec, reach=(1.0,) + (0.0,) * (stages - 1), rows=rows)
    all_the_way = predicted_speedup(COMMITTED, spec, reach=(1.0,) * stages, rows=rows)
    assert alone > 1 > all_the_way


def test_without_a_chosen_plan_there_is_no_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.routes.recipes.CHOSEN", CHOSEN.with_name("nowhere.json"))
    assert glyphs() == []


def test_the_predicted_speedup_does_not_move_with_other_work_on_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = cascade_from_path(COMMITTED / "digits_cascade" / "1" / "cascade.json")
    rows = digits_split("plan").images[:64]
    last, ask = spec.members[-1].name, LocalMembers.ask

    def held_up(self: LocalMembers, name: str, batch: Rows) -> npt.NDArray[np.float32]:
        if name == last:
            time.sleep(0.005)
        return ask(self, name, batch)

    reach = (1.0,) * len(spec.stages)
    monkeypatch.setattr(LocalMembers, "ask", held_up)
    # The last member among those asked for every row: waiting, were it counted, would make it nearly all there is.
    assert predicted_speedup(COMMITTED, spec, reach=reach, rows=rows) < 0.9
