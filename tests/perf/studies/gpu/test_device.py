import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError, ServingError
from perf.__main__ import app
from perf.harness.machine import NvidiaGpu
from perf.harness.windows import Journal
from perf.routes.recipes import COMMITTED
from perf.studies.gpu import device
from perf.studies.gpu.device import (
    CPU,
    CUDA,
    TENSORRT,
    best_rows_per_s,
    chosen_provider,
    key_of,
    measure_alone,
    preflight,
    provider_list,
)

ONLY_CPU = ["AzureExecutionProvider", CPU]
ALL = [TENSORRT, CUDA, CPU]
GPU = NvidiaGpu(name="NVIDIA X100", driver="550.54.15", memory_mib=81559)


class Session:
    def __init__(self, active: list[str]) -> None:
        self.active = active

    def get_providers(self) -> list[str]:
        return self.active

    def run(self, _: Any, feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"]]


def opening(*active: str) -> Any:
    def open_session(_: bytes, providers: Sequence[Any]) -> Session:
        return Session(list(active))

    return open_session


@pytest.mark.parametrize(
    ("asked", "available", "small", "chosen"),
    [
        ("auto", ALL, False, "cuda"),
        ("auto", ALL, True, "cuda"),
        ("auto", ONLY_CPU, True, "cpu"),
        ("cpu", ALL, True, "cpu"),
        ("tensorrt", ALL, False, "tensorrt"),
    ],
)
def test_a_provider_is_chosen(asked: str, available: list[str], small: bool, chosen: str) -> None:
    assert chosen_provider(asked, available, small=small) == chosen


@pytest.mark.parametrize("asked", ["auto", "cuda", "tensorrt"])
def test_without_cuda_the_refusal_says_what_to_install_and_what_to_try(asked: str) -> None:
    with pytest.raises(ServingError, match=r"CPUExecutionProvider, expected .*onnxruntime-gpu.*--small"):
        chosen_provider(asked, ONLY_CPU, small=False)


def test_large_networks_are_refused_on_a_cpu() -> None:
    with pytest.raises(ServingError, match="add --small"):
        chosen_provider("cpu", ALL, small=False)


@pytest.mark.parametrize(
    ("provider", "active", "fix"),
    [
        ("cuda", (CPU,), r"onnxruntime-gpu\[cuda,cudnn\]"),
        ("tensorrt", (CUDA, CPU), "LD_LIBRARY_PATH"),
        ("tensorrt", (CPU,), "LD_LIBRARY_PATH"),
    ],
)
def test_a_session_that_fell_back_silently_is_refused(provider: str, active: tuple[str, ...], fix: str) -> None:
    with pytest.raises(ServingError, match=rf"fell back to {', '.join(active)}, expected .*{fix}"):
        preflight(provider, [], open_session=opening(*active), find_gpu=lambda: GPU)


def test_a_session_that_cannot_run_is_refused_in_one_line() -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA failure 35:\n driver too old")

    with pytest.raises(ServingError, match="CUDA failure 35: driver too old") as caught:
        preflight("cuda", [], open_session=broken, find_gpu=lambda: GPU)
    assert "\n" not in str(caught.value)


def test_the_gpu_is_named_with_driver_memory_and_what_is_really_active() -> None:
    device = preflight("cuda", [], open_session=opening(CUDA, CPU), find_gpu=lambda: GPU)
    assert (device.gpu, device.driver, device.memory_mib) == ("NVIDIA X100", "550.54.15", 81559)
    assert f"with {CUDA}, {CPU}" in device.words
    assert "unnamed GPU" in preflight("cuda", [], open_session=opening(CUDA), find_gpu=lambda: None).words


def test_the_real_onnxruntime_passes_on_a_cpu(tmp_path: Path) -> None:
    device = preflight("cpu", provider_list("cpu", precision="fp16", cache=tmp_path))
    assert device.active == (CPU,)
    assert device.words.startswith("no GPU used")


def test_tensorrt_keeps_its_engines_and_falls_back_to_cuda_operator_by_operator(tmp_path: Path) -> None:
    providers = provider_list("tensorrt", precision="fp16", cache=tmp_path)
    assert [name for name, _ in providers] == [TENSORRT, CUDA, CPU]
    assert providers[0][1]["trt_fp16_enable"] == "True"
    assert providers[0][1]["trt_engine_cache_path"] == str(tmp_path)
    assert provider_list("tensorrt", precision="fp32", cache=tmp_path)[0][1]["trt_fp16_enable"] == "False"


def test_the_command_refuses_before_it_makes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ONLY_CPU)
    result = CliRunner().invoke(app, ["gpu", "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, ServingError)
    assert result.exception.exit_code != 0
    assert not (tmp_path / "out").exists()


MEMBER = "digits_small"


def rows_at(numbers: Sequence[int]) -> Any:
    return np.zeros((len(numbers), 1, 8, 8), np.float32)


def measured(journal: Journal, told: list[str]) -> dict[str, str]:
    return measure_alone(
        COMMITTED, [MEMBER], batches=(2, 16), rounds=2, seconds=0.02, providers=[(CPU, {})], rows_at=rows_at,
        journal=journal, progress=told.append,
    )  # fmt: skip


def test_every_batch_size_is_run_and_a_run_that_goes_on_runs_none_again(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    assert measured(journal, told) == {}
    assert [len(journal.of(key_of(MEMBER, batch))) for batch in (2, 16)] == [2, 2]
    record = journal.of(key_of(MEMBER, 16))[0]
    assert record["rows_per_s"] == pytest.approx(16 * record["requests_per_s"])
    best = best_rows_per_s(journal, MEMBER, (2, 16))
    assert best == max(best_rows_per_s(journal, MEMBER, [batch]) or 0 for batch in (2, 16))
    told.clear()
    again = Journal(tmp_path / "alone.jsonl", {}, resume=True)
    assert measured(again, told) == {}
    assert told == []


def test_a_batch_too_large_for_the_device_is_reported_and_the_smaller_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = device._window

    def window(run: Any, key: str, *, batch: int, **more: Any) -> Any:
        if batch > 8:
            raise RuntimeError("Failed to allocate memory for requested buffer\nof size 4096")
        return real(run, key, batch=batch, **more)

    monkeypatch.setattr(device, "_window", window)
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    failures = measured(journal, [])
    assert failures == {key_of(MEMBER, 16): "Failed to allocate memory for requested buffer of size 4096"}
    assert best_rows_per_s(journal, MEMBER, (2, 16)) is not None
    assert best_rows_per_s(journal, MEMBER, [16]) is None


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_small_run_exports_serves_loads_and_reports_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["gpu", "--small", "--provider", "cpu", "--family", "vit", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["small"] is True
    assert document["precision"] == "fp16"
    assert document["device"]["active"] == ["CPUExecutionProvider"]
    (comparison,) = document["comparisons"]
    assert comparison["exit_mix"] == "imposed"
    assert comparison["measured_reach"] == pytest.approx([1.0, 0.15], abs=0.03)
    assert comparison["online_speedup"] > 0
    assert comparison["offline_speedup"] > 0
    assert comparison["macs_speedup"] > comparison["alone_speedup"] > 1
    assert comparison["paper_speedup"] is None
    assert len(document["cells"]) == 6
    assert not document["failures"]
    with (tmp_path / "alone.csv").open() as file:
        alone = list(csv.DictReader(file))
    assert {(one["member"], one["batch"]) for one in alone} == {
        (f"tiny_vit_{letter}_fp16", batch) for letter in "ab" for batch in ("4", "8")
    }
    text = (tmp_path / "GPU.md").read_text()
    assert "toy's size" in text
    assert "| tiny_vit_a -> tiny_vit_b | 100.0 %, 15.0 % |" in text
    assert all((tmp_path / "plots" / f"gpu-{name}.png").stat().st_size > 5000 for name in ("alone", "speedups"))

    journal = tmp_path / "full-tiny_vit.jsonl"
    before = journal.read_text()
    assert json.loads(before.splitlines()[1])["requests"] > 0
    other = CliRunner().invoke(app, [*words, "--seconds", "3", "--resume"])
    assert isinstance(other.exception, DataError)
    assert "differs in seconds" in str(other.exception)
    assert journal.read_text() == before
