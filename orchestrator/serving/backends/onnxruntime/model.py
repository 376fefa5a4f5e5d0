"""ONNX Runtime as a Python-based Triton backend, which runs every model with `backend: "onnxruntime"`.

The stock server in the wheel has no ONNX Runtime backend, so this one stands in for it: the same repository runs
here and, unedited, with the C++ backend of the NVIDIA image. This backend refuses what that one refuses, completes
the same configurations, and fails the same batches. It keeps no state but the session, and runs no Python per row.

Differences:
- `intra_op_thread_count` defaults to 1, not to one per core: every instance is a process here, and several pools
  as wide as the machine would only fight each other.
- Every input of the file must be in the configuration; the C++ backend compares only their number.
- Parts that a configuration leaves out are read from the newest version folder, whichever version is loaded.
- A request with text that is not UTF-8 is refused; the C++ backend passes it on as bytes.
- Not offered: tensors of BF16, ragged batches, batch inputs and outputs, control inputs and states of sequences,
  operators of other libraries (`model_operations`), and the backend's command line (`default-max-batch-size`, the
  global thread pool).
- Accelerators are those of the installed package: pip's has no OpenVINO and, without onnxruntime-gpu, no CUDA and
  no TensorRT. Without CUDA an instance that Triton put on a GPU unasked runs on the CPU.
- The ONNX Runtime is the installed one, not the image's, and every tensor is copied between two processes.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from session_settings import CPU, CUDA, SettingError, asks_for_gpu, providers, run_options, session_options

DEFAULT_MAX_BATCH_SIZE = 4  # the C++ backend's, where a configuration leaves everything out
# ONNX's name of a type -> Triton's.
_TRITON_FROM_ONNX = {
    **{f"tensor({name})": f"TYPE_{name.upper()}" for name in ("bool", "string")},
    **{
        f"tensor({sign}int{bits})": f"TYPE_{sign.upper()}INT{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}

# Errors only: on a machine without a GPU every session would log a warning about the devices it lacks.
ort.set_default_logger_severity(3)


class TritonPythonModel:
    """One instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Completes a configuration without inputs or outputs; any other stays, as in the C++ backend."""
        config = auto_complete_model_config.as_dict()
        if config["input"] and config["output"]:
            return auto_complete_model_config
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = _session(_file_for_completion(config), options, [CPU], config["name"])
        sides = {"input": session.get_inputs(), "output": session.get_outputs()}
        fixed = [value for values in sides.values() for value in values if _shape(value)[:1] != [-1]]
        if config["max_batch_size"] > 0 and fixed:
            _refuse_batching(config["name"], fixed[0])
        if config["max_batch_size"] == 0 and not fixed:
            auto_complete_model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            auto_complete_model_config.set_dynamic_batching()
        for side in [side for side in sides if not config[side]]:
            config[side] = [_completed(value, config) for value in sides[side]]
        return auto_complete_model_config

    def initialize(self, args):
        """Loads the session and compares it with the configuration, so that a mistake fails at load, not later."""
        config = json.loads(args["model_config"])
        name = args["model_name"]
        file = _file(Path(args["model_repository"]) / args["model_version"], config)
        try:
            session = _session(file, session_options(config), providers(config, args), name)
            self._run_options = run_options(config)
        except SettingError as error:
            _refuse(name, error)
        # ONNX Runtime silently leaves out a provider whose libraries do not load.
        if CUDA not in session.get_providers() and asks_for_gpu(args):
            _refuse(name, f"KIND_GPU: CUDA does not work on device {args['model_instance_device_id']}")
        initializers = session.get_overridable_initializers()
        _compare(name, "input", config, session.get_inputs(), initializers)
        _compare(name, "output", config, session.get_outputs())
        self._session = session
        self._batched = config["max_batch_size"] > 0
        # All outputs are computed, whichever a request asks for, as in the C++ backend.
        self._outputs = [output["name"] for output in config["output"]]
        inputs = [*session.get_inputs(), *initializers]
        self._texts = {value.name for value in inputs if value.type == "tensor(string)"}
        self._scalars = {value.name for value in [*inputs, *session.get_outputs()] if not value.shape}
        self._dims = {output["name"]: _dims(output) for output in config["output"]}

    def execute(self, requests):
        """Answers a whole batch of requests from one run of the session; where that fails, all of them fail."""
        responses = [None] * len(requests)
        arrays = {}
        for place, request in enumerate(requests):
            try:
                arrays[place] = self._arrays(request)
            except UnicodeDecodeError as error:
                responses[place] = _error(f"text is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG)
        if arrays:
            try:
                answers = self._answers(list(arrays.values()))
            except Exception as error:
                text = _as_backend_says(error)
                # One object each, or it hangs.
                answers = [_error(text, pb_utils.TritonError.INTERNAL) for _ in arrays]
            for place, answer in zip(arrays, answers, strict=True):
                responses[place] = answer
        return responses

    def _answers(self, arrays):
        names = list(arrays[0])
        feeds = arrays[0] if len(arrays) == 1 else {n: np.concatenate([a[n] for a in arrays]) for n in names}
        feeds.update({name: feeds[name].reshape(()) for name in self._scalars & set(feeds)})
        values = self._session.run(self._outputs, feeds, self._run_options)
        for index, name in enumerate(self._outputs):
            if name in self._scalars:
                values[index] = values[index].reshape(self._dims[name])
        if not self._batched:
            return [_response(self._outputs, values)]
        ends = np.cumsum([len(array[names[0]]) for array in arrays]).tolist()
        # Triton drops outputs that a request did not ask for.
        return [self._part(values, start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _part(self, values, start, end):
        """The response to a request with these rows of the batch."""
        for name, value in zip(self._outputs, values, strict=True):
            if len(value) < end:
                text = f"failed to split the output tensor '{name}' in responses: expected batch size of at least "
                return _error(f"{text}{end} in model output, got {len(value)}", pb_utils.TritonError.UNSUPPORTED)
        return _response(self._outputs, [value[start:end] for value in values])

    def _arrays(self, request):
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        for name in self._texts & set(arrays):
            # The C++ backend passes texts as C strings, which end at the first NUL.
            texts = [text.split(b"\0")[0].decode("utf-8") for text in arrays[name].ravel()]
            arrays[name] = np.array(texts, dtype=np.object_).reshape(arrays[name].shape)
        return arrays


def _response(names, values):
    tensors = [pb_utils.Tensor(name, value) for name, value in zip(names, values, strict=True)]
    return pb_utils.InferenceResponse(tensors)


def _error(text, code):
    return pb_utils.InferenceResponse([], error=pb_utils.TritonError(text, code))


def _as_backend_says(error):
    """An error of ONNX Runtime in the C++ backend's form: its number, then its message."""
    text = _one_line(error)
    found = re.match(r"\[ONNXRuntimeError\] : (\d+) : \w+ : (.*)", text)
    return f"onnx runtime error {found[1]}: {found[2]}" if found else f"onnx runtime error: {text}"


def _one_line(text):
    return " ".join(str(text).split())


def _refuse(name, text):
    raise pb_utils.TritonModelException(f"{name}: {text}")


def _refuse_batching(name, value):
    _refuse(name, f"{value.name} has shape {_shape(value)}: with a fixed first axis max_batch_size must be 0")


def _file(folder, config):
    path = folder / (config.get("default_model_filename") or "model.onnx")
    path = path / "model.onnx" if path.is_dir() else path
    if not path.is_file():
        _refuse(config["name"], f"{path} does not exist")
    return path


def _file_for_completion(config):
    # Triton passes the configuration only; the server's environment has the path of the repository.
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


def _data_type(value, name):
    if value.type not in _TRITON_FROM_ONNX:
        _refuse(name, f"tensor {value.name} is {value.type}, which a Python backend cannot pass on")
    return _TRITON_FROM_ONNX[value.type]


def _shape(value):
    return [size if isinstance(size, int) else -1 for size in value.shape]


def _completed(value, config):
    dims = _shape(value)[1 if config["max_batch_size"] > 0 else 0 :]
    entry = {"name": value.name, "data_type": _data_type(value, config["name"]), "dims": dims or [1]}
    # A configuration can say "no axes" only by a reshape, which needs a batch axis.
    return {**entry, "reshape": {"shape": []}} if not dims and config["max_batch_size"] > 0 else entry


def _dims(tensor):
    return [int(size) for size in tensor.get("reshape", {}).get("shape", tensor["dims"])]


def _compare(name, side, config, values, initializers=()):
    required = {value.name: value for value in values}
    known = {**required, **{value.name: value for value in initializers}}
    given = {tensor["name"]: tensor for tensor in config[side]}
    if set(given) - set(known) or (side == "input" and set(required) - set(given)):
        _refuse(name, f"config.pbtxt has {side}s {sorted(given)}, expected those of the file, {sorted(required)}")
    for tensor_name, tensor in given.items():
        subject = f"{side} {tensor_name}"
        data_type = _data_type(known[tensor_name], name)
        if tensor["data_type"] != data_type:
            _refuse(name, f"{subject} is {tensor['data_type']} in config.pbtxt, {data_type} in the file")
        if tensor.get("optional") and config["max_batch_size"] > 0:
            _refuse(name, f"{subject} is optional, which needs max_batch_size 0")
        _compare_shape(name, subject, tensor, known[tensor_name], config["max_batch_size"] > 0, side == "output")


def _compare_shape(name, subject, tensor, value, batched, exact):
    shape, dims = _shape(value), _dims(tensor)
    if not shape:
        if any(size != 1 for size in dims):
            _refuse(name, f"{subject} has dims {dims} by config.pbtxt, expected only 1 for a scalar of the file")
        return
    if batched:
        dims = [-1, *dims]
        if shape[0] != -1:
            _refuse_batching(name, value)
    # The configuration may fix sizes that the file leaves free for inputs; for outputs it must repeat the file's.
    agree = (size == real or (real == -1 and not exact) for size, real in zip(dims, shape, strict=False))
    if len(dims) != len(shape) or not all(agree):
        _refuse(name, f"{subject} has shape {dims} by config.pbtxt, {shape} in the file")
