"""What a machine has for engines: the tensorrt package and a GPU. The only place that imports the package."""

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
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
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, ctypes.c_int(len(text)), self._device)
        self.name = text.value.decode()
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


# The second name is that of NVIDIA's bindings alone, which load the installed TensorRT libraries.
PACKAGES = ("tensorrt", "tensorrt_bindings")


@dataclass(frozen=True)
class TensorrtHost:
    """The tensorrt module and the GPU it builds for."""

    trt: Any
    gpu: Any


def tensorrt_host(
    subject: str, *, fix: str, load: Callable[[str], Any] = importlib.import_module, gpu: Callable[[], Any] = Gpu
) -> TensorrtHost:
    """The package and the GPU of this machine; `fix` says what to do on one that lacks either.

    Raises:
        ExportError: one of them is missing.
    """
    expected = "the tensorrt package and an NVIDIA GPU"
    trt, faults = None, []
    for name in PACKAGES:
        try:
            trt = load(name)
            break
        # A package whose libraries are missing or of another version counts as missing.
        except (ImportError, OSError) as error:
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == name
            faults.append(f"no package {name}" if is_missing else f"a package {name} that does not load ({error})")
    if trt is None:
        raise ExportError(subject, got=faults[0], expected=expected, fix=fix)
    try:
        return TensorrtHost(trt, gpu())
    except ExportError as error:
        raise ExportError(subject, got=error.got, expected=expected, fix=fix) from error
