"""What the stand-in for ONNX Runtime makes of a configuration, without a server and without a GPU."""

import importlib.util
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from orchestrator.repository.check import check
from orchestrator.serving.machine import BACKENDS
from tests.onnx_models import model_of, node
from tests.serving.models import add_onnx

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class RefusedModelError(Exception):
    """The server's TritonModelException."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    return loaded("session_settings", monkeypatch)


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of the backend as a module, without the server."""
    triton = types.SimpleNamespace(TritonModelException=RefusedModelError)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.syspath_prepend(BACKENDS / "onnxruntime")
    spec = importlib.util.spec_from_file_location(f"stand_in_{name}", BACKENDS / "onnxruntime" / f"{name}.py")
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
    options = backend.session_options(config())
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 0
    assert options.enable_cpu_mem_arena
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_the_parameters_of_the_cpp_backend_reach_onnx_runtime(backend: Any) -> None:
    parameters = {"intra_op_thread_count": "3", "inter_op_thread_count": "2", "enable_mem_arena": "0"}
    parameters |= {"enable_mem_pattern": "OFF", "execution_mode": "1"}
    options = backend.session_options(config(parameters))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (-1, "ORT_ENABLE_BASIC"),
        (0, "ORT_ENABLE_ALL"),
        (1, "ORT_ENABLE_EXTENDED"),
        (2, "ORT_DISABLE_ALL"),
        (7, "ORT_ENABLE_ALL"),
        (-2, "ORT_ENABLE_ALL"),
    ],
)
def test_graph_levels_are_tritons_numbers_and_unknown_ones_everything(
    backend: Any, level: int, expected: str
) -> None:
    options = backend.session_options(config(graph={"level": level}))
    assert options.graph_optimization_level == getattr(ort.GraphOptimizationLevel, expected)


def test_a_cpu_instance_runs_on_the_cpu(backend: Any, tmp_path: Path) -> None:
    assert backend.providers(config(), arguments(tmp_path, "CPU", "KIND_CPU")) == [CPU]


def test_threads_are_read_as_cpp_reads_numbers(backend: Any) -> None:
    assert backend.session_options(config({"intra_op_thread_count": " 2x"})).intra_op_num_threads == 2
    assert backend.session_options(config({"inter_op_thread_count": "-3"})).inter_op_num_threads == 0


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("intra_op_thread_count", "many", "expected a whole number"),
        ("execution_mode", "2", "got 2, expected 0 or 1"),
        ("enable_mem_arena", "yes", "expected true, on, 1, false, off or 0"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_refused(backend: Any, key: str, value: str, says: str) -> None:
    with pytest.raises(backend.SettingError, match=f"parameter {key}: .*{says}"):
        backend.session_options(config({key: value}))


def test_the_arena_is_shrunk_after_every_run_only_where_the_configuration_says_so(backend: Any) -> None:
    assert backend.run_options(config()) is None
    options = backend.run_options(config({"memory.enable_memory_arena_shrinkage": "cpu:0"}))
    assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that says it can do everything."""
    every = ["TensorrtExecutionProvider", CUDA, "OpenVINOExecutionProvider", CPU]
    monkeypatch.setattr(ort, "get_available_providers", lambda: every)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)


def on_gpu(
    backend: Any, folder: Path, *entries: dict[str, Any], parameters: dict[str, str] | None = None
) -> list[Any]:
    accelerators = {"gpu_execution_accelerator": list(entries)}
    found: list[Any] = backend.providers(
        config(parameters, execution_accelerators=accelerators), arguments(folder, "GPU")
    )
    return found


CUDA_OPTIONS = {
    "device_id": "1",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "arena_extend_strategy": "kNextPowerOfTwo",
    "gpu_mem_limit": "18446744073709551615",
    "do_copy_in_default_stream": "1",
}


@pytest.mark.usefixtures("gpu")
def test_a_gpu_instance_runs_on_its_device_with_the_cpu_behind(backend: Any, tmp_path: Path) -> None:
    assert on_gpu(backend, tmp_path) == [(CUDA, CUDA_OPTIONS), CPU]
    given = {
        "precision_mode": "FP16",
        "max_workspace_size_bytes": "1073741824",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/tmp/engines",
    }
    assert on_gpu(backend, tmp_path, {"name": "tensorrt", "parameters": given}) == [
        (
            "TensorrtExecutionProvider",
            {
                "device_id": "1",
                "trt_fp16_enable": "True",
                "trt_max_workspace_size": "1073741824",
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": "/tmp/engines",
            },
        ),
        (CUDA, CUDA_OPTIONS),
        CPU,
    ]


@pytest.mark.usefixtures("gpu")
def test_the_search_for_convolutions_is_a_parameter_and_no_setting_of_the_accelerator(
    backend: Any, tmp_path: Path
) -> None:
    parameters = {"cudnn_conv_algo_search": "1", "arena_extend_strategy": "1", "gpu_mem_limit": "1000"}
    ((_, found), _) = on_gpu(backend, tmp_path, parameters=parameters)
    assert found == {
        **CUDA_OPTIONS,
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "1000",
    }
    entry = {
        "name": "cuda",
        "parameters": {"cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "0"},
    }
    ((_, found), _) = on_gpu(backend, tmp_path, entry)
    assert found == {**CUDA_OPTIONS, "cudnn_conv_use_max_workspace": "0"}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("entry", "parameters", "says"),
    [
        ({"name": "openvino"}, {}, "unknown execution accelerator 'openvino' for the GPU"),
        ({"name": "magic"}, {}, "unknown execution accelerator 'magic' for the GPU"),
        ({"name": "tensorrt", "parameters": {"trt_fp16_enable": "1"}}, {}, "unknown parameter 'trt_fp16_enable'"),
        ({"name": "tensorrt", "parameters": {"precision_mode": "fp16"}}, {}, "precision_mode: got 'fp16'"),
        ({"name": "tensorrt", "parameters": {"trt_dla_enable": "yes"}}, {}, "trt_dla_enable: got 'yes'"),
        ({"name": "tensorrt", "parameters": {"trt_dla_core": "no"}}, {}, "trt_dla_core: got 'no'"),
        ({"name": "cuda"}, {"cudnn_conv_algo_search": "3"}, "cudnn_conv_algo_search: got 3"),
        ({"name": "cuda"}, {"arena_extend_strategy": "2"}, "arena_extend_strategy: got 2"),
    ],
)
def test_what_the_cpp_backend_does_not_know_of_a_gpu_is_refused(
    backend: Any, tmp_path: Path, entry: dict[str, Any], parameters: dict[str, str], says: str
) -> None:
    with pytest.raises(backend.SettingError, match=says):
        on_gpu(backend, tmp_path, entry, parameters=parameters)


@pytest.mark.usefixtures("gpu")
def test_the_accelerator_of_the_cpu_is_openvino_whatever_the_instance(backend: Any, tmp_path: Path) -> None:
    accelerators = {"cpu_execution_accelerator": [{"name": "openvino"}]}
    given = config(execution_accelerators=accelerators)
    openvino = ("OpenVINOExecutionProvider", {"device_type": "CPU"})
    assert backend.providers(given, arguments(tmp_path, "CPU")) == [openvino, CPU]
    assert backend.providers(given, arguments(tmp_path, "GPU"))[1:] == [openvino, CPU]
    accelerators["cpu_execution_accelerator"] = [{"name": "cuda"}]
    with pytest.raises(backend.SettingError, match="unknown execution accelerator 'cuda' for the CPU"):
        backend.providers(given, arguments(tmp_path, "CPU"))


def test_without_cuda_a_gpu_that_was_asked_for_is_an_error_and_one_that_was_not_is_none(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU])
    assert backend.providers(config(), arguments(tmp_path, "GPU", "# not KIND_GPU\nkind: KIND_AUTO")) == [CPU]
    with pytest.raises(backend.SettingError, match=r"KIND_GPU: .*onnxruntime-gpu"):
        backend.providers(config(), arguments(tmp_path, "GPU", "instance_group [{ kind: KIND_GPU }]"))


SHAPES = ([3], [-1], [1], [], [3, 1])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("graph", [["n", 3], ["n", "w"], ["n"], [1, 3], []], ids=str)
def test_check_and_the_backend_take_the_same_shapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, graph: list[Any], batched: bool
) -> None:
    backend = loaded("model", monkeypatch)
    model = model_of([node("Identity", ["x"], ["y"])], {"x": graph}, {"y": graph}, opset=17, ir=8)
    folder = add_onnx(tmp_path, "net", model)
    session = ort.InferenceSession(folder / "1" / "model.onnx")
    for kind, dims in itertools.product(("input", "output"), SHAPES):
        entry = {"name": "x" if kind == "input" else "y", "data_type": "TYPE_FP32", "dims": [str(d) for d in dims]}
        stated = {"name": "net", "max_batch_size": 8 if batched else 0, kind: [entry]}
        refused = None
        try:
            backend._compare("net", kind, stated, getattr(session, f"get_{kind}s")())
        except RefusedModelError as error:
            refused = str(error)
        text = f'{kind} [{{ name: "{entry["name"]}" data_type: TYPE_FP32 dims: {dims} }}]'
        config = f'backend: "onnxruntime" max_batch_size: {stated["max_batch_size"]} {text}'
        (folder / "config.pbtxt").write_text(config)
        shown = [fault for fault in check(tmp_path).faults if kind in fault.field]
        assert bool(shown) == bool(refused), (kind, dims, refused, shown)
