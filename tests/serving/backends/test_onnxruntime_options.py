"""What the stand-in for ONNX Runtime makes of a configuration, without a server and without a GPU."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from orchestrator.serving.embedded import BACKENDS

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class RefusedModelError(Exception):
    """The server's TritonModelException."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    triton = types.ModuleType("triton_python_backend_utils")
    triton.TritonModelException = RefusedModelError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec = importlib.util.spec_from_file_location("stand_in", BACKENDS / "onnxruntime" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(parameters: dict[str, str] | None = None, **optimization: Any) -> dict[str, Any]:
    return {
        "name": "net",
        "parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()},
        "optimization": optimization,
    }


def arguments(folder: Path, kind: str, text: str = "") -> dict[str, str]:
    (folder / "config.pbtxt").write_text(text)
    return {"model_instance_kind": kind, "model_instance_device_id": "1", "model_repository": str(folder)}


def test_the_defaults_are_one_thread_and_every_optimisation(backend: Any) -> None:
    options = backend._options(config())
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 0
    assert options.enable_cpu_mem_arena
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_the_parameters_of_the_cpp_backend_reach_onnx_runtime(backend: Any) -> None:
    parameters = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "false",
        "execution_mode": "1",
    }
    options = backend._options(config(parameters))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize(
    ("level", "expected"),
    [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
)
def test_graph_levels_are_tritons_numbers(backend: Any, level: int, expected: str) -> None:
    options = backend._options(config(graph={"level": level}))
    assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, expected)


def test_a_cpu_instance_runs_on_the_cpu(backend: Any, tmp_path: Path) -> None:
    assert backend._providers(config(), arguments(tmp_path, "CPU", "KIND_CPU")) == [CPU]


def test_a_gpu_instance_runs_on_its_device_with_the_cpu_behind(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    cuda = {"name": "cuda", "parameters": {"cudnn_conv_algo_search": "HEURISTIC"}}
    entries = {"gpu_execution_accelerator": [{"name": "tensorrt", "parameters": {"trt_fp16_enable": "1"}}]}
    given = arguments(tmp_path, "GPU")
    assert backend._providers(config(), given) == [(CUDA, {"device_id": "1"}), CPU]
    assert backend._providers(config(execution_accelerators=entries), given) == [
        ("TensorrtExecutionProvider", {"device_id": "1", "trt_fp16_enable": "1"}),
        (CUDA, {"device_id": "1"}),
        CPU,
    ]
    entries["gpu_execution_accelerator"] = [cuda]
    assert backend._providers(config(execution_accelerators=entries), given) == [
        (CUDA, {"device_id": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
        CPU,
    ]


def test_without_cuda_a_gpu_that_was_asked_for_is_an_error_and_one_that_was_not_is_none(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert backend._providers(config(), arguments(tmp_path, "GPU", "# not KIND_GPU\nkind: KIND_AUTO")) == [CPU]
    with pytest.raises(RefusedModelError, match=r"net: KIND_GPU: .*onnxruntime-gpu"):
        backend._providers(config(), arguments(tmp_path, "GPU", "instance_group [{ kind: KIND_GPU }]"))
