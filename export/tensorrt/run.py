"""An engine on the GPU: opened from its bytes, asked with arrays."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from export.tensorrt.build import logger_of, made
from export.tensorrt.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output: numpy dtype, and dims with -1 for the batch."""

    dtype: str
    dims: tuple[int, ...]


class Engine:
    """An engine ready to be asked; a context manager, since GPU memory is given back at the end.

    Args:
        machine: TensorRT and the GPU.
        data: the serialised engine.
        subject: what to call it in errors.
        host_code: the engine carries code of its own, as version-compatible ones do.

    Raises:
        ExportError: TensorRT does not take it: cut short, of another version, or of another GPU.
    """

    def __init__(self, machine: Machine, data: bytes, *, subject: str, host_code: bool = False) -> None:
        trt, self._gpu, self._subject = machine.trt, machine.gpu, subject
        self._log = logger_of(trt)
        what = f"engine of {subject}"
        self._runtime = made(f"TensorRT's runtime for {subject}", self._log, lambda: trt.Runtime(self._log))
        self._runtime.engine_host_code_allowed = host_code
        self._engine = made(what, self._log, lambda: self._runtime.deserialize_cuda_engine(data))
        self._context = made(what, self._log, lambda: self._engine.create_execution_context())
        self.inputs: dict[str, Port] = {}
        self.outputs: dict[str, Port] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
            port = Port(dtype=dtype, dims=tuple(self._engine.get_tensor_shape(name)))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = port
        self._memory: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address, _ in self._memory.values():
            self._gpu.free(address)
        self._memory.clear()

    def ask(self, rows: npt.NDArray[Any], *, input_name: str, output_name: str) -> npt.NDArray[Any]:
        """An output of one batch.

        Args:
            rows: (n, *dims) in the input's dtype, n within the profile.
            input_name: of this engine.
            output_name: of this engine.

        Raises:
            ExportError: TensorRT refuses the batch or fails.
        """
        what = f"{len(rows)} rows for the engine of {self._subject}"
        made(what, self._log, lambda: self._context.set_input_shape(input_name, tuple(rows.shape)) or None)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self.outputs}
        arrays = {name: np.empty(shape, self.outputs[name].dtype) for name, shape in shapes.items()}
        for name, array in {**arrays, input_name: rows}.items():
            self._context.set_tensor_address(name, self._room(name, array.nbytes))
        self._gpu.upload(self._memory[input_name][0], rows)
        made(what, self._log, lambda: self._context.execute_async_v3(self._gpu.stream) or None)
        self._gpu.download(self._memory[output_name][0], arrays[output_name])
        return arrays[output_name]

    def _room(self, name: str, size_bytes: int) -> int:
        address, size = self._memory.get(name, (0, -1))
        if size < size_bytes:
            if name in self._memory:
                self._gpu.free(self._memory.pop(name)[0])
            address = self._gpu.allocate(size_bytes)
            self._memory[name] = (address, size_bytes)
        return address
