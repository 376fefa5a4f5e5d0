"""What we use of the tensorrt module, read from its bindings: `python -m tests.fakes.tensorrt_signatures`.

tensorrt_signatures.json keeps what two releases said, since the package is too large for every machine. To record
another release, run this where it is installed and put the output there under its version.
"""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_suffix(".json")
METHODS = {
    "ILogger": ["__init__", "log"],
    "Builder": [
        "__init__", "create_network", "create_builder_config", "create_optimization_profile",
        "build_serialized_network",
    ],
    "OnnxParser": ["__init__", "parse_from_file", "get_error"],
    "ParserError": ["desc", "node_name", "node_operator"],
    "INetworkDefinition": ["get_input"],
    "IBuilderConfig": [
        "set_flag", "clear_flag", "set_memory_pool_limit", "add_optimization_profile", "create_timing_cache",
        "set_timing_cache",
    ],
    "IOptimizationProfile": ["set_shape"],
    "ITimingCache": ["serialize"],
    "Runtime": ["__init__", "deserialize_cuda_engine"],
    "ICudaEngine": [
        "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape", "create_execution_context",
    ],
    "IExecutionContext": ["set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3"],
}  # fmt: skip
ATTRIBUTES = {
    "INetworkDefinition": ["num_inputs"],
    "OnnxParser": ["num_errors"],
    "ICudaEngine": ["num_io_tensors"],
    "Runtime": ["engine_host_code_allowed"],
}
ENUMS = {
    "BuilderFlag": ["FP16", "TF32", "VERSION_COMPATIBLE"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "MemoryPoolType": ["WORKSPACE"],
    "TensorIOMode": ["INPUT", "OUTPUT"],
}
Signatures = dict[str, Any]


def installed() -> Any:
    """The module of this machine.

    Raises:
        ImportError: none is installed, or its libraries are missing.
    """
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        return importlib.import_module("tensorrt_bindings")


def signatures_of(module: Any) -> Signatures:
    """What a module, real or fake, has of what we use.

    Returns:
        "methods": name -> overloads -> parameter names, optional ones ending in "?"; "attributes" and "enums".
    """
    methods = {
        f"{kind}.{name}": _overloads(getattr(getattr(module, kind), name), name)
        for kind, names in METHODS.items()
        for name in names
    }
    attributes = [
        f"{kind}.{name}"
        for kind, names in ATTRIBUTES.items()
        for name in names
        if hasattr(getattr(module, kind), name)
    ]
    enums = {
        kind: {
            name: int(getattr(getattr(module, kind), name))
            for name in names
            if hasattr(getattr(module, kind), name)
        }
        for kind, names in ENUMS.items()
    }
    return {"methods": methods, "attributes": attributes, "enums": enums}


def _overloads(method: Any, name: str) -> list[list[str]]:
    try:
        parameters = list(inspect.signature(method).parameters.values())[1:]
    except ValueError:
        # A built-in of the bindings: its parameters are in its docstring only.
        lines = re.findall(rf"^(?:\d+\. )?{name}\((self.*)\)(?: ->.*)?$", method.__doc__, re.MULTILINE)
        return [_parameters(line)[1:] for line in lines]
    return [[p.name + ("?" if p.default is not inspect.Parameter.empty else "") for p in parameters]]


def _parameters(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.partition(":")[0].strip() + ("?" if " = " in part else "") for part in parts]


if __name__ == "__main__":
    module = installed()
    json.dump({module.__version__: signatures_of(module)}, sys.stdout, indent=1)
