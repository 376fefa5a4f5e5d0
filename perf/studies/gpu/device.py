"""The device of a run, looked at before anything large is made: which provider works, and on what GPU.

ONNX Runtime goes on without a provider whose libraries do not load, and says so in a log line only. So a session
is opened and asked what it really has; that a provider is "available" means it was compiled in.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from orchestrator.errors import ServingError

CUDA, CPU, TENSORRT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"
NAMES = {"cuda": CUDA, "cpu": CPU, "tensorrt": TENSORRT}
# The usual search tries every algorithm for every new batch size, and a cascade's later stages see all sizes.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}
_SMALL = "or try the command with --small, which needs no GPU"
_INSTALL = f"pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', {_SMALL}"
_LIBRARIES = {
    CUDA: f"pip install 'onnxruntime-gpu[cuda,cudnn]' of the driver's CUDA version, {_SMALL}",
    TENSORRT: "pip install tensorrt and put the folder tensorrt_libs of site-packages into LD_LIBRARY_PATH",
}
_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")

OpenSession = Callable[[bytes, Sequence[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the networks run on.

    Args:
        provider: "cuda", "tensorrt" or "cpu".
        active: ONNX Runtime's providers of a session that was opened.
        onnxruntime: its version.
        gpu: name, "" where there is none or nvidia-smi does not say.
        driver: version of the GPU's driver.
        memory_mib: of the GPU, 0 where it is not known.
    """

    provider: str
    active: tuple[str, ...]
    onnxruntime: str
    gpu: str = ""
    driver: str = ""
    memory_mib: int = 0

    @property
    def words(self) -> str:
        """One line."""
        active = f"onnxruntime {self.onnxruntime} with {', '.join(self.active)}"
        if self.provider == "cpu":
            return f"no GPU used, {active}"
        return f"{self.gpu or 'unnamed GPU'}, driver {self.driver or 'unknown'}, {self.memory_mib} MiB, {active}"

    def as_json(self) -> dict[str, Any]:
        """As results.json holds it."""
        return {**asdict(self), "active": list(self.active)}


def chosen_provider(asked: str, available: Sequence[str], *, small: bool) -> str:
    """The provider a run uses: "cuda", "tensorrt" or "cpu".

    Args:
        asked: one of these, or "auto".
        available: ONNX Runtime's, those it was compiled with.
        small: small networks, for which a CPU will do.

    Raises:
        ServingError: it is not there, or networks of this size were asked of a CPU.
    """
    if asked == "auto":
        asked = "cpu" if small and CUDA not in available else "cuda"
    if asked == "cpu" and not small:
        raise ServingError(
            "perf gpu", got="--provider cpu for networks of full size", expected="a GPU", fix="add --small"
        )
    if NAMES[asked] not in available:
        raise ServingError(
            "perf gpu", got=f"onnxruntime with {', '.join(available)}", expected=NAMES[asked], fix=_INSTALL
        )
    return asked


def provider_list(provider: str, *, precision: str, cache: Path) -> list[tuple[str, dict[str, str]]]:
    """What a session is opened with.

    Args:
        provider: "cuda", "tensorrt" or "cpu".
        precision: "fp16" or "fp32".
        cache: folder that TensorRT keeps its engines in.
    """
    chain = {"tensorrt": (TENSORRT, CUDA), "cuda": (CUDA,), "cpu": ()}[provider]
    options = {TENSORRT: tensorrt_options(precision, cache), CUDA: CUDA_OPTIONS}
    return [*((name, {"device_id": "0", **options[name]}) for name in chain), (CPU, {})]


def tensorrt_options(precision: str, cache: Path) -> dict[str, str]:
    """What a session is given; engines and timings are kept, since building them takes minutes per network."""
    return {"trt_fp16_enable": str(precision == "fp16"), **_caches(cache, "True")}


def tensorrt_parameters(precision: str, cache: Path) -> dict[str, str]:
    """The same under the names that Triton's ONNX Runtime backend has for them."""
    return {"precision_mode": precision.upper(), **_caches(cache, "1")}


def _caches(cache: Path, yes: str) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": yes,
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": yes,
        "trt_timing_cache_path": str(cache),
    }


def preflight(
    provider: str,
    providers: Sequence[Any],
    *,
    open_session: OpenSession | None = None,
    ask_driver: Callable[[], str] | None = None,
) -> Device:
    """Opens a small session and says what it really runs on.

    Args:
        provider: "cuda", "tensorrt" or "cpu".
        providers: as `provider_list` gives them.
        open_session: model and providers -> session; a test hands over its own.
        ask_driver: gives nvidia-smi's lines, one GPU each.

    Raises:
        ServingError: the session fell back to another provider, or cannot run.
    """
    wanted = NAMES[provider]
    try:
        session = (open_session or _open)(_model(), providers)
        active = tuple(session.get_providers())
        if wanted in active:
            session.run(None, {"x": np.ones((2, 4), np.float32)})
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        raise ServingError(
            "perf gpu", got=error, expected=f"{wanted} to run a product", fix=_fix(wanted)
        ) from error
    if wanted not in active:
        raise ServingError(
            "perf gpu",
            got=f"a session that fell back to {', '.join(active)}",
            expected=wanted,
            fix=_fix(wanted),
        )
    gpu = ("", "", 0) if provider == "cpu" else _gpu_from((ask_driver or _ask_driver)())
    return Device(
        provider=provider,
        active=active,
        onnxruntime=onnxruntime.__version__,
        gpu=gpu[0],
        driver=gpu[1],
        memory_mib=gpu[2],
    )


def _fix(provider: str) -> str:
    return _LIBRARIES.get(provider, "reinstall onnxruntime")


def _open(model: bytes, providers: Sequence[Any]) -> Any:
    if hasattr(onnxruntime, "preload_dlls") and providers[0][0] != CPU:
        onnxruntime.preload_dlls()  # CUDA and cuDNN from pip's packages lie where no loader looks
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def _model() -> bytes:
    """A product of two matrices, which every provider takes."""
    shape: list[str | int | None] = ["rows", 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "preflight",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("w", TensorProto.FLOAT, (4, 4), [1.0] * 16)],
    )
    model: onnx.ModelProto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def _ask_driver() -> str:
    # nvidia-smi does not heed the variable by itself; CUDA's device 0 is the first it names.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    command = [*_QUERY, *(["-i", first] if first else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _gpu_from(lines: str) -> tuple[str, str, int]:
    """Name, driver and MiB of the first GPU; empty where nothing was said."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines.splitlines())]
    if not rows or len(rows[0]) != 3:
        return "", "", 0
    name, driver, memory = rows[0]
    return name, driver, int(memory) if memory.isdigit() else 0
