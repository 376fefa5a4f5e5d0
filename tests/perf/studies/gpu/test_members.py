from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import MemberError
from orchestrator.local import sessions
from orchestrator.local.sessions import LocalMembers
from orchestrator.pbtxt import config_from_text
from orchestrator.spec import Manifest, manifest_from_path
from perf.routes.recipes.trained import COMMITTED
from perf.studies.gpu.device import CPU, CUDA, Device
from perf.studies.gpu.members import GpuSetup, gpu_config

MEMBER = "digits_small"


def setup(provider: str, folder: Path, precision: str = "fp16") -> GpuSetup:
    device = Device(provider=provider, active=(), onnxruntime="")
    return GpuSetup(folder=folder, device=device, providers=[], precision=precision, pool=8)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return manifest_from_path(COMMITTED / MEMBER / "manifest.json")


def test_a_member_on_the_gpu_says_so_where_the_server_looks_first(manifest: Manifest, tmp_path: Path) -> None:
    text = gpu_config(manifest, setup("cuda", tmp_path))
    assert "KIND_GPU" in text
    assert "cudnn_conv_algo_search" in text
    assert "tensorrt" not in text


def test_tensorrt_is_asked_for_by_tritons_names_and_keeps_its_engines_in_the_output(
    manifest: Manifest, tmp_path: Path
) -> None:
    text = gpu_config(manifest, setup("tensorrt", tmp_path))
    (entry,) = config_from_text(
        text, subject="a test"
    ).optimization.execution_accelerators.gpu_execution_accelerator
    cache = str(tmp_path / "tensorrt")
    assert entry.name == "tensorrt"
    # Names of Triton's backend; a session in this process has others.
    assert dict(entry.parameters) == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
    }


def test_a_member_is_named_after_its_precision(tmp_path: Path) -> None:
    assert setup("cuda", tmp_path).served("vit") == "vit_fp16"
    assert setup("cuda", tmp_path, "fp32").served("vit") == "vit"


def test_members_refuse_a_provider_that_silently_gave_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # What ONNX Runtime does where CUDA's libraries do not load: a warning in the log and the next provider.
    import onnxruntime

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers=[CPU])
    )
    with pytest.raises(MemberError, match=f"got {CPU}, expected {CUDA}"):
        LocalMembers(COMMITTED, [MEMBER], providers=[(CUDA, {"device_id": "0"}), CPU])
    assert LocalMembers(COMMITTED, [MEMBER], providers=sessions.CPU).classes(MEMBER) == 10
