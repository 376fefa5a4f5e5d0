import numpy as np
import pytest

from export.tensorrt.machine import Gpu
from orchestrator.errors import ExportError
from tests.fakes.cuda import FakeCudaDriver


def test_a_gpu_has_a_name_a_capability_and_the_drivers_cuda() -> None:
    gpu = Gpu(FakeCudaDriver(name="NVIDIA L4", capability=(8, 9)).load)
    assert (gpu.name, gpu.compute_capability, gpu.cuda_version) == ("NVIDIA L4", "8.9", "13.3")
    assert gpu.stream


def test_rows_come_back_as_they_went_even_from_a_view() -> None:
    driver = FakeCudaDriver()
    gpu = Gpu(driver.load)
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    back = np.empty(rows.shape, np.float32)
    address = gpu.allocate(rows.nbytes)
    gpu.upload(address, rows)
    gpu.download(address, back)
    assert np.array_equal(back, rows)
    gpu.free(address)
    assert not driver.memory


@pytest.mark.parametrize(
    ("driver", "got"),
    [
        (FakeCudaDriver(missing=True), r"no NVIDIA driver \(libcuda\.so\.1 cannot be opened\)"),
        (FakeCudaDriver(gpus=0), "CUDA_ERROR_NO_DEVICE from cuInit"),
        (FakeCudaDriver(fails={"cuDevicePrimaryCtxRetain": 2}), "CUDA_ERROR_OUT_OF_MEMORY from cuDevicePrimary"),
        (FakeCudaDriver(fails={"cuDeviceGetName": 4711}), "CUDA error 4711 from cuDeviceGetName"),
    ],
)
def test_what_is_missing_or_fails_is_named(driver: FakeCudaDriver, got: str) -> None:
    with pytest.raises(ExportError, match=got):
        Gpu(driver.load)


def test_memory_that_is_not_there_is_an_error() -> None:
    gpu = Gpu(FakeCudaDriver(fails={"cuMemAlloc_v2": 2}).load)
    with pytest.raises(ExportError, match="CUDA_ERROR_OUT_OF_MEMORY from cuMemAlloc"):
        gpu.allocate(8)
