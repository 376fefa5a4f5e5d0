"""The device of a run: which provider works on it, on what GPU, and how fast each network runs on it by itself.

ONNX Runtime goes on without a provider whose libraries do not load, and says so in a log line only; that a
provider is "available" means no more than that it was compiled in. So a session is opened, before anything large
is made, and asked which providers it has.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import parser

from orchestrator.errors import MemberError, ServingError
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from perf.harness.machine import NvidiaGpu, first_gpu
from perf.harness.windows import Journal, WindowRecord
from perf.routes.spec import Rows

CUDA, CPU, TENSORRT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"
NAMES = {"cuda": CUDA, "cpu": CPU, "tensorrt": TENSORRT}
# cuDNN's default search tries every algorithm at each new batch size, and a cascade's later stages see all sizes.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}
_SMALL = "or try the command with --small, which needs no GPU"
_INSTALL = f"pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', {_SMALL}"
_LIBRARIES = {
    CUDA: f"pip install 'onnxruntime-gpu[cuda,cudnn]' of the driver's CUDA version, {_SMALL}",
    TENSORRT: "pip install tensorrt and put the folder tensorrt_libs of site-packages into LD_LIBRARY_PATH",
}
_WARM_RUNS = 3

Progress = Callable[[str], None]
OpenSession = Callable[[bytes, Sequence[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the networks run on.

    Args:
        provider: "cuda", "tensorrt" or "cpu".
        active: ONNX Runtime's providers of a session that was opened.
        onnxruntime: its version.
        gpu, driver, memory_mib: of the GPU; "" and 0 where there is none or the driver does not answer.
    """

    provider: str
    active: tuple[str, ...]
    onnxruntime: str
    gpu: str = ""
    driver: str = ""
    memory_mib: int = 0

    @property
    def words(self) -> str:
        """The device in one line."""
        active = f"onnxruntime {self.onnxruntime} with {', '.join(self.active)}"
        if self.provider == "cpu":
            return f"no GPU used, {active}"
        return f"{self.gpu or 'unnamed GPU'}, driver {self.driver or 'unknown'}, {self.memory_mib} MiB, {active}"


def chosen_provider(asked: str, available: Sequence[str], *, small: bool) -> str:
    """The provider a run uses: "cuda", "tensorrt" or "cpu", from one of these, or "auto".

    Raises:
        ServingError: ONNX Runtime was not compiled with it, or networks of full size were asked of a CPU.
    """
    if asked == "auto":
        asked = "cpu" if small and CUDA not in available else "cuda"
    if asked == "cpu" and not small:
        got = "--provider cpu for networks of full size"
        raise ServingError("perf gpu", got=got, expected="a GPU", fix="add --small")
    if NAMES[asked] not in available:
        got = f"onnxruntime with {', '.join(available)}"
        raise ServingError("perf gpu", got=got, expected=NAMES[asked], fix=_INSTALL)
    return asked


def provider_list(provider: str, *, precision: str, cache: Path) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session, each with its options.

    TensorRT keeps engines and timings in the folder `cache`, since an engine takes minutes to build.
    """
    chain = {"tensorrt": (TENSORRT, CUDA), "cuda": (CUDA,), "cpu": ()}[provider]
    tensorrt = {"trt_fp16_enable": str(precision == "fp16"), **_caches(cache, "True")}
    options = {TENSORRT: tensorrt, CUDA: CUDA_OPTIONS}
    return [*((name, {"device_id": "0", **options[name]}) for name in chain), (CPU, {})]


def tensorrt_parameters(precision: str, cache: Path) -> dict[str, str]:
    """TensorRT's options under the names that Triton's ONNX Runtime backend has for them."""
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
    find_gpu: Callable[[], NvidiaGpu | None] = first_gpu,
) -> Device:
    """Opens a small session and says what it runs on; tests hand over functions of their own.

    Raises:
        ServingError: the session fell back to another provider, or cannot run.
    """
    wanted = NAMES[provider]
    fix = _LIBRARIES.get(wanted, "reinstall onnxruntime")
    try:
        session = (open_session or _open)(_product(), providers)
        active = tuple(session.get_providers())
        if wanted in active:
            session.run(None, {"x": np.ones((2, 4), np.float32)})
    # ONNX Runtime's exceptions share no base of their own.
    except Exception as error:
        raise ServingError("perf gpu", got=error, expected=f"{wanted} to run a product", fix=fix) from error
    if wanted not in active:
        got = f"a session that fell back to {', '.join(active)}"
        raise ServingError("perf gpu", got=got, expected=wanted, fix=fix)
    device = Device(provider=provider, active=active, onnxruntime=onnxruntime.__version__)
    gpu = None if provider == "cpu" else find_gpu()
    return device if gpu is None else replace(device, gpu=gpu.name, driver=gpu.driver, memory_mib=gpu.memory_mib)


def _open(model: bytes | str, providers: Sequence[Any]) -> Any:
    if hasattr(onnxruntime, "preload_dlls") and providers[0][0] != CPU:
        onnxruntime.preload_dlls()  # CUDA and cuDNN from pip's packages lie where no loader looks
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


def _product() -> bytes:
    """A product of two matrices, which every provider takes."""
    graph = """<ir_version: 10, opset_import: ["": 18]>
        preflight (float[rows, 4] x) => (float[rows, 4] y) <float[4, 4] w = {%s}> { y = MatMul(x, w) }"""
    return bytes(parser.parse_model(graph % ", ".join(["1.0"] * 16)).SerializeToString())


def key_of(member: str, batch: int) -> str:
    """Key of a network's windows at a batch size."""
    return f"alone/{member}/b{batch}"


def measure_alone(
    repository: Path,
    members: Sequence[str],
    *,
    batches: Sequence[int],
    rounds: int,
    seconds: float,
    providers: Sequence[Any],
    rows_at: Callable[[Sequence[int]], Rows],
    journal: Journal,
    progress: Progress,
) -> dict[str, str]:
    """Runs every member by itself in this process, at every batch size; gives key -> why it could not be measured.

    Input and output stay on the device, so that nothing but the network is timed. Windows, `rounds` per batch size
    and `seconds` long, go into the journal; those it holds already are not measured again.
    """
    rows, failures = rows_at(range(min(batches))), {}
    for member in members:
        left = [batch for batch in batches if len(journal.of(key_of(member, batch))) < rounds]
        if not left:
            continue
        progress(f"{member} alone: opening")
        manifest = manifest_from_path(repository / member / MANIFEST)
        session = _opened(repository / member / manifest.file, manifest, providers)
        for batch in left:
            key = key_of(member, batch)
            progress(f"{member} alone, {batch} rows at a time")
            try:
                run = _bound(session, manifest, np.resize(rows, (batch, *rows.shape[1:])), providers)
                for number in range(len(journal.of(key)) + 1, rounds + 1):
                    journal.add(_window(run, key, batch=batch, round_number=number, seconds=seconds))
            # Too large a batch for the device's memory is the usual reason; smaller ones count all the same.
            except Exception as error:
                failures[key] = " ".join(str(error).split())[:300]
    return failures


def best_rows_per_s(journal: Journal, member: str, batches: Sequence[int]) -> float | None:
    """A network's rows/s at its best batch size, median over rounds; None where nothing was measured."""
    medians = [
        float(np.median([one["rows_per_s"] for one in records]))
        for batch in batches
        if (records := journal.of(key_of(member, batch)))
    ]
    return max(medians, default=None)


def _opened(path: Path, manifest: Manifest, providers: Sequence[Any]) -> Any:
    session = _open(str(path), providers)
    first = providers[0][0]
    if first not in session.get_providers():
        raise MemberError(f"member {manifest.name}", got=", ".join(session.get_providers()), expected=first)
    return session


def _bound(session: Any, manifest: Manifest, rows: Rows, providers: Sequence[Any]) -> Callable[[], None]:
    """A call that runs the network once and returns when the device is done."""
    place = "cpu" if providers[0][0] == CPU else "cuda"
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(rows, place, 0)
    binding.bind_ortvalue_input(manifest.input.name, value)
    binding.bind_output(manifest.output.name, place, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _window(run: Callable[[], None], key: str, *, batch: int, round_number: int, seconds: float) -> WindowRecord:
    for _ in range(_WARM_RUNS):
        run()
    times, start = [], time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        run()
        times.append(time.perf_counter() - now)
    spent = time.perf_counter() - start
    return {
        "key": key,
        "round": round_number,
        "attempt": 0,
        "why": "",
        "requests": len(times),
        "seconds": spent,
        "requests_per_s": len(times) / spent,
        "rows_per_s": batch * len(times) / spent,
        **{f"p{percent}_ms": 1000 * float(np.percentile(times, percent)) for percent in (50, 95, 99)},
    }
