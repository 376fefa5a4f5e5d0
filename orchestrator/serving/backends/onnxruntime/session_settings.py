"""A model's settings for ONNX Runtime, read from its configuration as Triton's C++ backend of 24.10 reads them.

Names, numbers and precedence are that backend's, even where they surprise: an unknown graph level is level 0, and
four CUDA settings come from `parameters` alone, whatever the accelerator's entry says.
"""

import re
from pathlib import Path

import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_INITIALIZERS = "session.use_device_allocator_for_initializers"  # read by the backend since 25.x, harmless before
# Triton's numbers, not ONNX Runtime's; all other numbers, such as 0, mean all optimisations.
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_TRUE, _FALSE = ("true", "on", "1"), ("false", "off", "0")
_SEARCH = {0: "EXHAUSTIVE", 1: "HEURISTIC", 2: "DEFAULT"}
_GROWTH = {0: "kNextPowerOfTwo", 1: "kSameAsRequested"}
_NO_LIMIT = str(2**64 - 1)
# Parameters of the accelerator "tensorrt" by what they hold; the options of ONNX Runtime have the same names.
_TENSORRT_NAMES = {
    "number": (
        "max_partition_iterations", "min_subgraph_size", "dla_core", "builder_optimization_level",
        "auxiliary_streams", "ep_context_embed_mode",
    ),
    "flag": (
        "dla_enable", "engine_cache_enable", "dump_subgraphs", "force_sequential_engine_build",
        "context_memory_sharing_enable", "layer_norm_fp32_fallback", "timing_cache_enable", "force_timing_cache",
        "detailed_build_log", "build_heuristics_enable", "sparsity_enable", "cuda_graph_enable",
        "dump_ep_context_model",
    ),
    "text": (
        "engine_cache_path", "engine_cache_prefix", "timing_cache_path", "tactic_sources",
        "extra_plugin_lib_paths",
        "profile_min_shapes", "profile_max_shapes", "profile_opt_shapes", "ep_context_file_path",
    ),
}  # fmt: skip
# parameter -> what it holds, and the option of ONNX Runtime
_TENSORRT = {
    "max_workspace_size_bytes": ("number", "trt_max_workspace_size"),
    "int8_calibration_table_name": ("text", "trt_int8_calibration_table_name"),
    "int8_use_native_calibration_table": ("flag", "trt_int8_use_native_calibration_table"),
    **{f"trt_{name}": (kind, f"trt_{name}") for kind, names in _TENSORRT_NAMES.items() for name in names},
}
_PRECISIONS = {"FP32": {}, "FP16": {"trt_fp16_enable": "True"}, "INT8": {"trt_int8_enable": "True"}}


class SettingError(Exception):
    """A setting that cannot be applied; the message is one line."""


def session_options(config):
    """The options of a session; intra-op threads default to 1."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(_number(config, "intra_op_thread_count", 1), 0)
    options.inter_op_num_threads = max(_number(config, "inter_op_thread_count", 0), 0)
    options.enable_cpu_mem_arena = _flag(config, "enable_mem_arena", True)
    options.enable_mem_pattern = _flag(config, "enable_mem_pattern", True)
    mode = _number(config, "execution_mode", 0)
    if mode not in (0, 1):
        raise SettingError(f"parameter execution_mode: got {mode}, expected 0 or 1")
    if mode == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _GRAPH_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if _text(config, _INITIALIZERS) is not None:
        options.add_session_config_entry(_INITIALIZERS, _text(config, _INITIALIZERS))
    return options


def run_options(config):
    """The options of every run; None where the configuration names none."""
    shrinkage = _text(config, SHRINKAGE)
    if shrinkage is None:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry(SHRINKAGE, shrinkage)
    return options


def providers(config, args):
    """Execution providers for an instance, the CPU last."""
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    behind = [*_on_cpu(accelerators.get("cpu_execution_accelerator", [])), CPU]
    if args["model_instance_kind"] != "GPU":
        return behind
    if CUDA not in ort.get_available_providers():
        if asks_for_gpu(args):
            raise SettingError("KIND_GPU: this onnxruntime has no CUDA; pip install onnxruntime-gpu instead")
        return behind
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from pip's nvidia packages lie where no loader looks
    device = args["model_instance_device_id"]
    return [*_on_gpu(accelerators.get("gpu_execution_accelerator", []), config, device), *behind]


def asks_for_gpu(args):
    """Whether the configuration names KIND_GPU.

    Triton has replaced KIND_AUTO by the kind it chose, so only the file tells the two apart.
    """
    path = Path(args["model_repository"]) / "config.pbtxt"
    text = path.read_text(encoding="utf-8") if args["model_instance_kind"] == "GPU" and path.is_file() else ""
    return "KIND_GPU" in re.sub(r"#.*", "", text)


def _on_cpu(entries):
    for entry in entries:
        if entry["name"] != "openvino":
            raise SettingError(f"unknown execution accelerator {entry['name']!r} for the CPU, expected openvino")
        _require(OPENVINO, entry["name"])
    return [(OPENVINO, {"device_type": "CPU"}) for _ in entries[:1]]


def _on_gpu(entries, config, device):
    chosen, cuda = [], {}
    for entry in entries:
        parameters = entry.get("parameters", {})
        if entry["name"] == "tensorrt":
            _require(TENSORRT, entry["name"])
            chosen.append((TENSORRT, {"device_id": device, **_tensorrt(parameters)}))
        elif entry["name"] == "cuda":
            cuda.update({key: value for key, value in parameters.items() if value})
        else:
            text = f"unknown execution accelerator {entry['name']!r} for the GPU, expected cuda or tensorrt"
            raise SettingError(text)
    if "parameters" in config:
        cuda["cudnn_conv_algo_search"] = _choice(config, "cudnn_conv_algo_search", _SEARCH)
        cuda["arena_extend_strategy"] = _choice(config, "arena_extend_strategy", _GROWTH)
        cuda["gpu_mem_limit"] = _text(config, "gpu_mem_limit") or _NO_LIMIT
        cuda["do_copy_in_default_stream"] = _text(config, "do_copy_in_default_stream") or "1"
    return [*chosen, (CUDA, {**cuda, "device_id": device})]


def _tensorrt(parameters):
    options = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                expected = ", ".join(_PRECISIONS)
                raise SettingError(f"tensorrt precision_mode: got {value!r}, expected one of {expected}")
            options.update(_PRECISIONS[value])
            continue
        if key not in _TENSORRT:
            raise SettingError(f"unknown parameter {key!r} of the execution accelerator tensorrt")
        kind, option = _TENSORRT[key]
        if kind == "flag":
            # Spelled as the Python API expects it.
            value = str(_parsed_flag(key, value))
        elif kind == "number":
            _parsed_number(key, value)
        options[option] = value
    return options


def _require(provider, name):
    if provider not in ort.get_available_providers():
        raise SettingError(f"this onnxruntime has no execution accelerator {name!r}")


def _text(config, key):
    return config.get("parameters", {}).get(key, {}).get("string_value")


def _number(config, key, default):
    text = _text(config, key)
    return default if text is None else _parsed_number(key, text)


def _parsed_number(key, text):
    # As C++'s stoi: a number, with any text behind it.
    found = re.match(r"\s*([+-]?\d{1,20})", text)
    if found is None:
        raise SettingError(f"parameter {key}: got {text!r}, expected a whole number")
    return int(found[1])


def _choice(config, key, names):
    number = _number(config, key, 0)
    if number not in names:
        meanings = ", ".join(f"{value} ({name})" for value, name in names.items())
        raise SettingError(f"parameter {key}: got {number}, expected one of {meanings}")
    return names[number]


def _flag(config, key, default):
    text = _text(config, key)
    return default if text is None else _parsed_flag(key, text)


def _parsed_flag(key, text):
    if text.lower() not in (*_TRUE, *_FALSE):
        raise SettingError(f"parameter {key}: got {text!r}, expected true, on, 1, false, off or 0")
    return text.lower() in _TRUE
