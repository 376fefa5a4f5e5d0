"""The first GPU through CUDA's driver library: its name, and memory to run an engine on.

The driver library is on every machine that can run an engine and its calls have kept their form since CUDA 4,
while the Python packages for CUDA come in one flavour per CUDA version. TensorRT uses the device's primary
context, so memory taken here is memory it can read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import ExportError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


class Gpu:
    """The first visible GPU, its primary context made current in this thread.

    Args:
        load: what opens a shared library; a test hands over its own.

    Raises:
        ExportError: no driver, or no GPU, with the reason in `got`.
    """

    def __init__(self, load: Callable[[str], Any] = ctypes.CDLL) -> None:
        try:
            self._library = load(LIBRARY)
        except OSError as error:
            raise ExportError("GPU", got=f"no NVIDIA driver ({LIBRARY} cannot be opened)") from error
        self._call("cuInit", ctypes.c_uint(0))
        if self._integer("cuDeviceGetCount") < 1:
            raise ExportError("GPU", got="no NVIDIA GPU that this process may use")
        self._device = ctypes.c_int(0)
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))
        self.name = self._name()
        major, minor = (
            self._integer("cuDeviceGetAttribute", ctypes.c_int(one), self._device) for one in (_MAJOR, _MINOR)
        )
        self.compute_capability = f"{major}.{minor}"
        version = self._integer("cuDriverGetVersion")
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        # A stream that waits for copies; on the default one TensorRT synchronises more than it has to.
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        self.stream = int(stream.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """Address of new device memory."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size_bytes, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, rows: npt.NDArray[Any]) -> None:
        """Copies an array to the device."""
        rows = np.ascontiguousarray(rows)
        pointer = ctypes.c_void_p(rows.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), pointer, ctypes.c_size_t(rows.nbytes))

    def download(self, address: int, into: npt.NDArray[Any]) -> None:
        """Waits for the device and fills a contiguous array from it."""
        self._call("cuCtxSynchronize")
        pointer = ctypes.c_void_p(into.ctypes.data)
        self._call("cuMemcpyDtoH_v2", pointer, ctypes.c_uint64(address), ctypes.c_size_t(into.nbytes))

    def _name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, ctypes.c_int(len(text)), self._device)
        return text.value.decode()

    def _integer(self, function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *arguments)
        return int(value.value)

    def _call(self, function: str, *arguments: Any) -> None:
        code = int(getattr(self._library, function)(*arguments))
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(text))
        reason = text.value.decode() if text.value else f"CUDA error {code}"
        raise ExportError("GPU", got=f"{reason} from {function}")
