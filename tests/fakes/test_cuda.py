from __future__ import annotations

import ctypes

import pytest

from tests.fakes.cuda import FakeCudaDriver


def test_memory_is_copied_in_and_out_and_not_beyond_its_end() -> None:
    driver = FakeCudaDriver()
    address, source, target = (
        ctypes.c_uint64(),
        ctypes.create_string_buffer(b"rows", 4),
        ctypes.create_string_buffer(4),
    )
    assert driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(4)) == 0
    pointers = [ctypes.c_void_p(ctypes.addressof(buffer)) for buffer in (source, target)]
    assert driver.cuMemcpyHtoD_v2(address, pointers[0], ctypes.c_size_t(4)) == 0
    assert driver.cuMemcpyDtoH_v2(pointers[1], address, ctypes.c_size_t(4)) == 0
    assert target.raw == b"rows"
    assert driver.cuMemcpyHtoD_v2(address, pointers[0], ctypes.c_size_t(5)) != 0
    assert driver.cuMemFree_v2(address) == 0
    assert driver.cuMemFree_v2(address) != 0


def test_a_call_told_to_fail_fails() -> None:
    assert FakeCudaDriver(fails={"cuInit": 2}).cuInit(0) == 2
    with pytest.raises(OSError, match="cannot open"):
        FakeCudaDriver(missing=True).load("libcuda.so.1")
