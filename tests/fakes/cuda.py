"""CUDA's driver library with memory of this process instead of a GPU's; same functions, same ctypes arguments."""

import ctypes
from typing import Any

NO_DEVICE = 100


class FakeCudaDriver:
    """What `ctypes.CDLL("libcuda.so.1")` would be.

    Args:
        name: of the GPU.
        capability: its compute capability.
        gpus: how many there are.
        fails: function name -> CUDA error code it returns.
        missing: loading the library fails, as on a machine without a driver.
    """

    def __init__(
        self,
        *,
        name: str = "Fake GPU",
        capability: tuple[int, int] = (9, 0),
        gpus: int = 1,
        fails: dict[str, int] | None = None,
        missing: bool = False,
    ) -> None:
        self._name, self._capability, self._gpus, self._missing = name, capability, gpus, missing
        self._fails = fails or {}
        self.memory: dict[int, Any] = {}

    def load(self, name: str) -> "FakeCudaDriver":
        if self._missing:
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return self

    def __getattribute__(self, name: str) -> Any:
        fails = object.__getattribute__(self, "__dict__").get("_fails", {})
        if name in fails:
            return lambda *_: fails[name]
        return object.__getattribute__(self, name)

    def cuInit(self, flags: Any) -> int:  # noqa: N802
        return 0 if self._gpus else NO_DEVICE

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        return _put(count, self._gpus)

    def cuDeviceGet(self, device: Any, ordinal: Any) -> int:  # noqa: N802
        return _put(device, ordinal.value)

    def cuDeviceGetName(self, text: Any, size: Any, device: Any) -> int:  # noqa: N802
        text.value = self._name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> int:  # noqa: N802
        return _put(value, dict(zip((75, 76), self._capability, strict=True))[attribute.value])

    def cuDriverGetVersion(self, value: Any) -> int:  # noqa: N802
        return _put(value, 13030)

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        return _put(context, 1)

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuStreamCreate(self, stream: Any, flags: Any) -> int:  # noqa: N802
        return _put(stream, 7)

    def cuCtxSynchronize(self) -> int:  # noqa: N802
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        buffer = ctypes.create_string_buffer(size.value)
        self.memory[ctypes.addressof(buffer)] = buffer
        return _put(address, ctypes.addressof(buffer))

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        return 0 if self.memory.pop(address.value, None) is not None else 1

    def cuMemcpyHtoD_v2(self, to: Any, source: Any, size: Any) -> int:  # noqa: N802
        return self._copy(to, source, size, device=to.value)

    def cuMemcpyDtoH_v2(self, to: Any, source: Any, size: Any) -> int:  # noqa: N802
        return self._copy(to, source, size, device=source.value)

    def cuGetErrorName(self, code: Any, text: Any) -> int:  # noqa: N802
        names = {
            1: b"CUDA_ERROR_INVALID_VALUE",
            2: b"CUDA_ERROR_OUT_OF_MEMORY",
            NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
        }
        return _put(text, names.get(code.value))

    def _copy(self, to: Any, source: Any, size: Any, *, device: int) -> int:
        if device not in self.memory or len(self.memory[device]) < size.value:
            return 1
        ctypes.memmove(to.value, source.value, size.value)
        return 0


def _put(reference: Any, value: Any) -> int:
    reference._obj.value = value
    return 0
