from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.cost.counting import macs_per_row
from orchestrator.errors import DataError
from perf.routes.recipes.three_cnn import (
    FACTORS,
    NETWORKS,
    Network,
    factor_of,
    kept_factor,
    ms_per_row,
    network_model,
    widened,
)


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
