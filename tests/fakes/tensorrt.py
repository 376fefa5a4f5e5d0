"""The part of the tensorrt module that building and running an engine takes, with ONNX Runtime as the engine.

Names, parameters and enum members are held against the real bindings in test_tensorrt.py. As there, calls return
None, False or -1 and tell the logger why. An engine's bytes carry a checksum, its profile and the path of the ONNX
file, which ONNX Runtime then runs on memory at the addresses it is given.
"""

import ctypes
import enum
import hashlib
import json
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime

MAGIC = b"fake engine "
CACHE = b"fake timings "


class FakeTensorRT:
    """Stands where the module would.

    Args:
        version: of TensorRT; from 11 on, types are those of the ONNX file and the flags for others are gone.
        parser_errors: (operator, node, text) of what the parser refuses.
        build_error: what the builder logs before it returns nothing.
        interrupt: the build ends with KeyboardInterrupt.
        cut: bytes missing at the end of the built engine.
        noise: added to every output.
        output: another name for the engine's output.
        gpu: False where no builder can be made.
    """

    def __init__(
        self,
        version: str = "10.16.1.11",
        *,
        parser_errors: list[tuple[str, str, str]] | None = None,
        build_error: str | None = None,
        interrupt: bool = False,
        cut: int = 0,
        noise: float = 0.0,
        output: str | None = None,
        gpu: bool = True,
    ) -> None:
        self.__version__ = version
        self.parser_errors, self.build_error, self.interrupt = parser_errors or [], build_error, interrupt
        self.cut, self.noise, self.output, self.gpu = cut, noise, output, gpu
        self.builds: list[dict[str, Any]] = []
        self.asked: list[int] = []
        self.weak = int(version.partition(".")[0]) < 11
        flags = ["TF32", "VERSION_COMPATIBLE", *(["FP16"] if self.weak else [])]
        self.BuilderFlag = enum.IntEnum("BuilderFlag", flags, start=0)
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": int(self.weak)}
        )
        self.MemoryPoolType = MemoryPoolType
        self.TensorIOMode = TensorIOMode
        self.ILogger = ILogger
        for kind in _OF_A_MODULE:
            # As in a module, its classes know the rest of it.
            setattr(self, kind.__name__, type(kind.__name__, (kind,), {"trt": self}))

    def nptype(self, trt_type: np.dtype[Any]) -> Any:
        """The fake's own dtypes are numpy's already."""
        return trt_type.type


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ILogger:
    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class _HostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


class ParserError:
    def __init__(self, operator: str, name: str, text: str) -> None:
        self._facts = (operator, name, text)

    def node_operator(self) -> str:
        return self._facts[0]

    def node_name(self) -> str:
        return self._facts[1]

    def desc(self) -> str:
        return self._facts[2]


class ITimingCache:
    trt: ClassVar[FakeTensorRT]

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> _HostMemory:
        return _HostMemory(self.data or CACHE + self.trt.__version__.encode())


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not _within(min, opt, max):
            raise ValueError("Shape provided for min is inconsistent with other shapes")
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class IBuilderConfig:
    trt: ClassVar[Any]

    def __init__(self) -> None:
        self.set_flags = {self.trt.BuilderFlag.TF32}
        self.profiles: list[IOptimizationProfile] = []
        self.workspace: int | None = None
        self.cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.set_flags.add(self.trt.BuilderFlag(flag))

    def clear_flag(self, flag: Any) -> None:
        self.set_flags.discard(self.trt.BuilderFlag(flag))

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile.shapes:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return self.trt.ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.data not in (b"", CACHE + self.trt.__version__.encode()) and not ignore_mismatch:
            return False
        self.cache = cache
        return True


class INetworkDefinition:
    def __init__(self, strongly_typed: bool) -> None:
        self.strongly_typed = strongly_typed
        self.path = ""
        self.inputs: list[_Tensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]


class OnnxParser:
    trt: ClassVar[FakeTensorRT]

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self.network = network
        self.errors = [ParserError(*facts) for facts in self.trt.parser_errors]

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]

    def parse_from_file(self, model: str) -> bool:
        self.network.path = model
        self.network.inputs = [_Tensor(value) for value in onnx.load(model).graph.input]
        return not self.errors


class Builder:
    trt: ClassVar[Any]

    def __init__(self, logger: ILogger) -> None:
        if not self.trt.gpu:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        strong = 1 << self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self.trt.INetworkDefinition(bool(flags & strong) or not self.trt.weak)

    def create_builder_config(self) -> IBuilderConfig:
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return self.trt.IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> _HostMemory | None:
        if self.trt.interrupt:
            raise KeyboardInterrupt
        if self.trt.build_error is not None:
            self.logger.log(ILogger.Severity.ERROR, self.trt.build_error)
            self.logger.log(ILogger.Severity.WARNING, "a warning, which is no reason")
            return None
        facts = {
            "path": network.path,
            "flags": sorted(flag.name for flag in config.set_flags),
            "strongly_typed": network.strongly_typed,
            "workspace": config.workspace,
            "profile": config.profiles[0].shapes,
            "timings": config.cache.data.decode() if config.cache else None,
        }
        self.trt.builds.append(facts)
        body = json.dumps(facts).encode()
        data = MAGIC + hashlib.sha256(body).digest() + body
        return _HostMemory(data[: len(data) - self.trt.cut])


class Runtime:
    trt: ClassVar[Any]
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        head = len(MAGIC) + 32
        body = serialized_engine[head:]
        if serialized_engine[:head] != MAGIC + hashlib.sha256(body).digest():
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion failed: the plan is cut short")
            return None
        facts = json.loads(body)
        if "VERSION_COMPATIBLE" in facts["flags"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.Severity.ERROR, "host code is not allowed")
            return None
        return self.trt.ICudaEngine(facts, self.logger)


class ICudaEngine:
    trt: ClassVar[Any]

    def __init__(self, facts: dict[str, Any], logger: ILogger) -> None:
        self.facts, self.logger = facts, logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(facts["path"], options, providers=["CPUExecutionProvider"])
        graph = onnx.load(facts["path"], load_external_data=False).graph
        self.input, self.output = graph.input[0].name, self.trt.output or graph.output[0].name
        self.tensors = {self.input: _Tensor(graph.input[0]), self.output: _Tensor(graph.output[0])}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return self.tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def create_execution_context(self) -> "IExecutionContext":
        return self.trt.IExecutionContext(self)


class IExecutionContext:
    trt: ClassVar[FakeTensorRT]

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.facts["profile"][name]
        if not _within(low, shape, high):
            text = f"shape {shape} is outside the profile"
            self.engine.logger.log(ILogger.Severity.ERROR, text)
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0]
        return self.shapes.get(name, (batch, *self.engine.tensors[name].shape[1:]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        ((name, shape),) = self.shapes.items()
        self.trt.asked.append(shape[0])
        dtype = self.engine.tensors[name].dtype
        size = int(np.prod(shape)) * dtype.itemsize
        rows = np.frombuffer(ctypes.string_at(self.addresses[name], size), dtype).reshape(shape)
        (out,) = self.engine.session.run(None, {name: rows})
        out = out + np.asarray(self.trt.noise, out.dtype)
        ctypes.memmove(self.addresses[self.engine.output], out.ctypes.data, out.nbytes)
        return True


def _within(low: Any, size: Any, high: Any) -> bool:
    return all(a <= b <= c for a, b, c in zip(low, size, high, strict=True))


_OF_A_MODULE = (
    ParserError,
    ITimingCache,
    IOptimizationProfile,
    IBuilderConfig,
    INetworkDefinition,
    OnnxParser,
    Builder,
    Runtime,
    ICudaEngine,
    IExecutionContext,
)
