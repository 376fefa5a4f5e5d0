from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.tensorrt.engine import EngineOptions
from export.tensorrt.machine import Gpu, tensorrt_host
from export.tensorrt.member import MOUNTED, compose_command
from orchestrator.errors import ExportError, SpecError
from tests.fakes.cuda import FakeCudaDriver

TRT = SimpleNamespace(__version__="10.16.1.11")


def packages(**known: Any) -> Any:
    def load(name: str) -> Any:
        found = known.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, Exception):
            raise found
        return found

    return load


def no_gpu() -> Any:
    raise ExportError("GPU", got="no NVIDIA driver")


def test_the_package_or_its_bindings_alone_will_do() -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        machine = tensorrt_host("engine of m", fix="", load=packages(**{name: TRT}), gpu=lambda: "gpu")
        assert (machine.trt, machine.gpu) == (TRT, "gpu")


@pytest.mark.parametrize(
    ("load", "got"),
    [
        (packages(), "got no package tensorrt, expected"),
        (packages(tensorrt=OSError("libnvinfer.so.10: no such file")), "does not load .*libnvinfer"),
        (packages(tensorrt=ImportError("libcudart.so.12: no such file")), "does not load .*libcudart"),
        (packages(tensorrt=TRT), "got no NVIDIA driver, expected"),
    ],
)
def test_what_is_missing_is_one_line_with_the_way_out(load: Any, got: str) -> None:
    with pytest.raises(ExportError, match=rf"engine of m: .*{got}") as caught:
        tensorrt_host("engine of m", fix="run that", load=load, gpu=no_gpu)
    assert str(caught.value).endswith("; run that")


def test_the_compose_command_repeats_every_option_and_mounts_another_output(tmp_path: Path) -> None:
    options = EngineOptions(
        min_rows=2, opt_rows=3, max_rows=4, precision="fp16", tf32=True, version_compatible=True, workspace_mib=9
    )
    new = tmp_path / "new"
    command = compose_command("m", options, repository=MOUNTED, output=new, name="fast", user="1000:1000")
    assert command == (
        f"mkdir -p {new} && docker compose run --rm -v {new}:/output engines m --min 2 --opt 3 --max 4 "
        "--precision fp16 --tf32 --version-compatible --workspace-mib 9 --output /output --name fast"
    )
    there = compose_command("m", options, repository=MOUNTED, output=tmp_path, name="fast", user="1000:1000")
    assert there.startswith("docker compose run ")


SIZES = st.integers(min_value=1, max_value=300)


@given(st.tuples(SIZES, SIZES, SIZES).map(sorted))
def test_batches_to_compare_hold_the_profiles_ends_and_stay_inside_it(sizes: list[int]) -> None:
    low, opt, high = sizes
    batches = EngineOptions(min_rows=low, opt_rows=opt, max_rows=high).batches
    assert list(batches) == sorted(set(batches))
    assert {low, opt, high} <= set(batches)
    assert (batches[0], batches[-1]) == (low, high)


@given(st.tuples(SIZES, SIZES, SIZES))
def test_a_profile_out_of_order_is_refused(sizes: tuple[int, int, int]) -> None:
    low, opt, high = sizes
    if low <= opt <= high:
        EngineOptions(min_rows=low, opt_rows=opt, max_rows=high)
        return
    with pytest.raises(SpecError, match="TensorRT options: "):
        EngineOptions(min_rows=low, opt_rows=opt, max_rows=high)


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        EngineOptions(min_rows=0, opt_rows=1, max_rows=-1, precision="bf16", workspace_mib=0)
    assert set(caught.value.faults) == {"min_rows", "max_rows", "precision", "workspace_mib"}


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
