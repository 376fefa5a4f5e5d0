"""ONNX Runtime as a Python-based Triton backend: what every model with `backend: "onnxruntime"` runs in.

The stock server in the wheel has no ONNX Runtime backend, so this one stands in for it: the same repository
runs here and, unedited, behind the C++ backend of the NVIDIA image. It keeps that backend's meaning of the
configuration and adds nothing. No state but the session, no Python per row.

Different on purpose: intra-op threads default to 1, not to one per core. Every instance is a process here, and
several pools as wide as the machine would only fight each other.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

DEFAULT_MAX_BATCH_SIZE = 4  # the C++ backend's, where a configuration leaves everything out
_TRITON_FROM_ONNX = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
# Triton's numbers, not ONNX Runtime's: 0 (left out) is everything.
_GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_ACCELERATORS = {"tensorrt": "TensorrtExecutionProvider", "openvino": "OpenVINOExecutionProvider", "cuda": _CUDA}

# Errors only: on a machine without a GPU every session would log a warning about the devices it lacks.
ort.set_default_logger_severity(3)


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Fills in what the configuration leaves out; as in the C++ backend, nothing once both sides are given."""
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = _session(_file_for_completion(config), options, [_CPU], config["name"])
        sides = {"input": session.get_inputs(), "output": session.get_outputs()}
        fixed = [value for values in sides.values() for value in values if _shape(value)[:1] != [-1]]
        if config["max_batch_size"] > 0 and fixed:
            _refuse_batching(config["name"], fixed[0])
        if config["max_batch_size"] == 0 and not fixed:
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
            if "sequence_batching" not in config:
                auto_complete_model_config.set_dynamic_batching()
        add = {"input": auto_complete_model_config.add_input, "output": auto_complete_model_config.add_output}
        for side in [side for side in sides if not config[side]]:
            for value in sides[side]:
                dims = _shape(value)[1 if config["max_batch_size"] > 0 else 0 :]
                add[side]({"name": value.name, "data_type": _data_type(value, config["name"]), "dims": dims})
        return auto_complete_model_config

    def initialize(self, args):
        """Loads the session and compares it with the configuration, so that a mistake fails here, not later."""
        config = json.loads(args["model_config"])
        self._name = args["model_name"]
        file = _file(Path(args["model_repository"]) / args["model_version"], config)
        providers = _providers(config, args)
        self._session = _session(file, _options(config), providers, self._name)
        # ONNX Runtime goes on without a provider whose libraries do not load.
        if _CUDA not in self._session.get_providers() and _asks_for_gpu(args):
            _refuse(self._name, f"KIND_GPU: CUDA does not work on device {args['model_instance_device_id']}")
        _compare(self._name, "input", config, self._session.get_inputs())
        _compare(self._name, "output", config, self._session.get_outputs())
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [output["name"] for output in config["output"]]
        self._texts = [value.name for value in self._session.get_inputs() if value.type == "tensor(string)"]

    def execute(self, requests):
        """Answers a whole batch of requests from one run of the session."""
        try:
            return self._answers(requests)
        except Exception as error:
            if len(requests) == 1:
                return [self._error(error)]
            # One of them is at fault and its neighbours must not pay for it, so each gets a run of its own.
            return [response for request in requests for response in self.execute([request])]

    def _answers(self, requests):
        asked = {name for request in requests for name in request.requested_output_names()}
        wanted = [name for name in self._outputs if name in asked]
        arrays = [self._arrays(request) for request in requests]
        if len(requests) == 1:
            return [_response(wanted, self._session.run(wanted, arrays[0]))]
        feeds = {name: np.concatenate([array[name] for array in arrays]) for name in self._inputs}
        values = self._session.run(wanted, feeds)
        ends = np.cumsum([len(array[self._inputs[0]]) for array in arrays]).tolist()
        for name, value in zip(wanted, values, strict=True):
            # Slices of an output without a row per input row would be other requests' answers.
            if value.shape[:1] != (ends[-1],):
                raise RuntimeError(f"output {name} has shape {value.shape} for a batch of {ends[-1]} rows")
        # Outputs a request did not ask for are dropped on the way to it.
        bounds = zip([0, *ends], ends, strict=False)
        return [_response(wanted, [value[start:end] for value in values]) for start, end in bounds]

    def _arrays(self, request):
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name in self._texts:
            texts = [text.decode("utf-8") for text in arrays[name].ravel()]
            arrays[name] = np.array(texts, dtype=np.object_).reshape(arrays[name].shape)
        return arrays

    def _error(self, error):
        # ONNX Runtime's exceptions say through their class whose fault it was.
        callers = isinstance(error, ort.capi.onnxruntime_pybind11_state.InvalidArgument | UnicodeDecodeError)
        code = pb_utils.TritonError.INVALID_ARG if callers else pb_utils.TritonError.INTERNAL
        return pb_utils.InferenceResponse(
            [], error=pb_utils.TritonError(f"{self._name}: {_one_line(error)}", code)
        )


def _response(names, values):
    tensors = [pb_utils.Tensor(name, value) for name, value in zip(names, values, strict=True)]
    return pb_utils.InferenceResponse(tensors)


def _refuse(name, text):
    raise pb_utils.TritonModelException(f"{name}: {text}")


def _refuse_batching(name, value):
    _refuse(name, f"{value.name} has shape {_shape(value)}: with a fixed first axis max_batch_size must be 0")


def _one_line(text):
    return " ".join(str(text).split())


def _file(folder, config):
    path = folder / (config.get("default_model_filename") or "model.onnx")
    path = path / "model.onnx" if path.is_dir() else path
    if not path.is_file():
        _refuse(config["name"], f"{path} does not exist")
    return path


def _file_for_completion(config):
    # Completion is handed the configuration only; where the repository lies is in the server's environment.
    folder = Path(os.environ["COMMITTEE_MODEL_REPOSITORY"]) / config["name"]
    versions = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    if not versions:
        _refuse(config["name"], f"{folder} has no version folder such as 1/")
    return _file(max(versions, key=lambda path: int(path.name)), config)


def _session(path, options, providers, name):
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        return _refuse(name, f"ONNX Runtime cannot load {path}: {_one_line(error)}")


def _options(config):
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(_parameter(config, "intra_op_thread_count", "1", r"\d{1,4}"))
    options.inter_op_num_threads = int(_parameter(config, "inter_op_thread_count", "0", r"\d{1,4}"))
    options.enable_cpu_mem_arena = _parameter(config, "enable_mem_arena", "1", "0|1|true|false") in ("1", "true")
    options.enable_mem_pattern = _parameter(config, "enable_mem_pattern", "1", "0|1|true|false") in ("1", "true")
    if _parameter(config, "execution_mode", "0", "0|1") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in _GRAPH_LEVELS:
        _refuse(config["name"], f"optimization graph level: got {level}, expected -1, 0, 1 or 2")
    options.graph_optimization_level = _GRAPH_LEVELS[level]
    return options


def _parameter(config, key, default, pattern):
    text = config.get("parameters", {}).get(key, {}).get("string_value", default).strip().lower()
    if not re.fullmatch(pattern, text):
        _refuse(config["name"], f"parameter {key}: got {text!r}, expected something like {default}")
    return text


def _providers(config, args):
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if args["model_instance_kind"] != "GPU":
        return [*_accelerated(accelerators.get("cpu_execution_accelerator", []), config, {}), _CPU]
    if _CUDA not in ort.get_available_providers():
        if _asks_for_gpu(args):
            _refuse(config["name"], "KIND_GPU: this onnxruntime has no CUDA; pip install onnxruntime-gpu instead")
        return [_CPU]
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from pip's nvidia packages lie where no loader looks
    device = {"device_id": args["model_instance_device_id"]}
    chosen = _accelerated(accelerators.get("gpu_execution_accelerator", []), config, device)
    if _CUDA not in [provider for provider, _ in chosen]:
        chosen.append((_CUDA, device))
    return [*chosen, _CPU]


def _accelerated(entries, config, device):
    chosen = []
    for entry in entries:
        provider = _ACCELERATORS.get(entry["name"])
        if provider not in ort.get_available_providers():
            _refuse(config["name"], f"this onnxruntime has no execution accelerator {entry['name']!r}")
        chosen.append((provider, {**device, **entry.get("parameters", {})}))
    return chosen


def _asks_for_gpu(args):
    # By now Triton has turned KIND_AUTO into the kind it chose; only the file still tells the two apart.
    path = Path(args["model_repository"]) / "config.pbtxt"
    text = path.read_text(encoding="utf-8") if args["model_instance_kind"] == "GPU" and path.is_file() else ""
    return "KIND_GPU" in re.sub(r"#.*", "", text)


def _data_type(value, name):
    if value.type not in _TRITON_FROM_ONNX:
        _refuse(name, f"tensor {value.name} is {value.type}, which a Python backend cannot pass on")
    return _TRITON_FROM_ONNX[value.type]


def _shape(value):
    return [size if isinstance(size, int) else -1 for size in value.shape]


def _compare(name, side, config, values):
    known = {value.name: value for value in values}
    given = {tensor["name"]: tensor for tensor in config[side]}
    if set(given) - set(known) or (side == "input" and set(known) - set(given)):
        _refuse(name, f"config.pbtxt has {side}s {sorted(given)}, expected those of the file, {sorted(known)}")
    for tensor_name, tensor in given.items():
        subject = f"{side} {tensor_name}"
        data_type = _data_type(known[tensor_name], name)
        if tensor["data_type"] != data_type:
            _refuse(name, f"{subject} is {tensor['data_type']} in config.pbtxt, {data_type} in the file")
        shape = _shape(known[tensor_name])
        dims = [int(size) for size in tensor.get("reshape", {}).get("shape", tensor["dims"])]
        if config["max_batch_size"] > 0:
            dims = [-1, *dims]
            if shape[:1] != [-1]:
                _refuse_batching(name, known[tensor_name])
        agree = (-1 in pair or len(set(pair)) == 1 for pair in zip(dims, shape, strict=False))
        if len(dims) != len(shape) or not all(agree):
            _refuse(name, f"{subject} has shape {dims} by config.pbtxt, {shape} in the file")
