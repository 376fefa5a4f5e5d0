import ctypes
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cuda import FakeCudaDriver
from tests.fakes.tensorrt import FakeTensorRT
from tests.fakes.tensorrt_signatures import RECORDED, installed, signatures_of
from tests.repository.builders import linear_model

KNOWN: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())


def unlike(fake: dict[str, Any], real: dict[str, Any]) -> list[str]:
    """Where the fake takes what the real module would not, or lacks what it has."""
    faults = [
        f"{name}: the fake takes {ours[0]}, the module {real['methods'][name]}"
        for name, ours in fake["methods"].items()
        if not any(_callable(ours[0], theirs) for theirs in real["methods"][name])
    ]
    faults += [f"{name} is missing" for name in real["attributes"] if name not in fake["attributes"]]
    for kind, members in real["enums"].items():
        if set(members) != set(fake["enums"][kind]):
            faults.append(f"{kind}: {sorted(fake['enums'][kind])} for {sorted(members)}")
    return faults


def _callable(ours: list[str], theirs: list[str]) -> bool:
    """The fake may leave out the module's optional parameters, nothing else."""
    needed = [name for name in theirs if not name.endswith("?")]
    return ours in (theirs, needed)


@pytest.mark.parametrize("version", KNOWN)
def test_the_fake_takes_what_the_bindings_of_a_release_take(version: str) -> None:
    assert unlike(signatures_of(FakeTensorRT(version)), KNOWN[version]) == []


def test_the_fake_takes_what_the_installed_bindings_take() -> None:
    try:
        module = installed()
    except (ImportError, OSError) as error:
        pytest.skip(f"the tensorrt package is not here or does not load: {error}")
    real = signatures_of(module)
    assert unlike(signatures_of(FakeTensorRT(module.__version__)), real) == []
    if module.__version__ in KNOWN:
        assert real == KNOWN[module.__version__]


def test_the_comparison_would_notice_another_parameter_and_a_missing_flag() -> None:
    fake = signatures_of(FakeTensorRT())
    fake["methods"]["Builder.create_network"] = [["kind"]]
    del fake["enums"]["BuilderFlag"]["TF32"]
    faults = unlike(fake, KNOWN["10.16.1.11"])
    assert len(faults) == 2
    assert "create_network" in faults[0]


def test_weak_types_end_with_release_11() -> None:
    assert hasattr(FakeTensorRT("10.16.1.11").BuilderFlag, "FP16")
    assert not hasattr(FakeTensorRT("11.4.0.106").BuilderFlag, "FP16")


def test_a_fake_engine_that_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear_model(0).SerializeToString())
    trt = FakeTensorRT()
    messages: list[str] = []

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def log(self, severity: Any, msg: str) -> None:
            messages.append(msg)

    builder = trt.Builder(Log())
    network = builder.create_network()
    assert trt.OnnxParser(network, Log()).parse_from_file(str(path))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (8, 4))
    assert config.add_optimization_profile(profile) == 0
    data = bytes(builder.build_serialized_network(network, config))
    assert trt.Runtime(Log()).deserialize_cuda_engine(data) is not None
    assert not messages
    assert trt.Runtime(Log()).deserialize_cuda_engine(data[:-1]) is None
    assert messages


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
