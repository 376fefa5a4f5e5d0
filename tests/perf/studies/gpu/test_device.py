from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.errors import ServingError
from perf.__main__ import app
from perf.harness.machine import NvidiaGpu
from perf.studies.gpu.device import CPU, CUDA, TENSORRT, chosen_provider, preflight, provider_list

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
