"""Facts about Triton: its releases, its backends and their files, and which versions of a model it serves.

Plain values go in and out, no protobuf, so that the code inside the server can use this module too.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Releases that code elsewhere depends on.
IS_READY_SINCE = "26.03"  # a Python model's own is_ready() is asked
# What docker-compose.yml runs: the first release whose dynamic batcher neither starves requests (26.08) nor uses a
# queue after it was freed (26.11).
PINNED = "26.11"
EMBEDDED = "24.10"  # what nvidia-pytriton carries


class Runtime(NamedTuple):
    """What a version of ONNX Runtime reads, measured by opening models with its wheel.

    That is the highest ONNX file version, and the highest released operator set of the default domain.
    """

    ir_version: int
    opset: int


# From the `ort_version` of build.py at each release branch of triton-inference-server/server; 26.09 from its
# pull request 8966. No source that could be read in November 2026 says what 26.10 and 26.11 carry.
_ONNXRUNTIME = {
    "1.19.2": ("24.10", "24.11"),
    "1.20.1": ("24.12", "25.01", "25.02"),
    "1.21.0": ("25.03", "25.04"),
    "1.22.0": ("25.05", "25.06", "25.07"),
    "1.23.0": ("25.08", "25.09"),
    "1.23.1": ("25.10",),
    "1.23.2": ("25.11", "25.12", "26.01"),
    "1.24.1": ("26.02",),
    "1.24.2": ("26.03",),
    "1.24.4": ("26.04", "26.05", "26.06"),
    "1.27.0": ("26.07",),
    "1.28.0": ("26.08",),
    "1.30.0": ("26.09",),
    None: ("26.10", "26.11"),
}
# What is read -> minor versions of ONNX Runtime
_READS = {
    Runtime(10, 21): ("1.19", "1.20"),
    Runtime(10, 22): ("1.21", "1.22"),
    Runtime(11, 23): ("1.23",),
    Runtime(13, 25): ("1.24",),
    Runtime(13, 26): ("1.27", "1.28", "1.29", "1.30", "1.31"),
    Runtime(14, 28): ("1.32",),
}
# Release, by year and month -> version of ONNX Runtime in NVIDIA's image; None where no public source names it
RELEASES = {name: version for version, names in _ONNXRUNTIME.items() for name in names}

# File that a backend loads unless the configuration names another -> Triton backend, in the order in which Triton
# looks for them where the configuration names no backend.
ONNX_RUNTIME = "onnxruntime"
BACKEND_OF_FILE = {
    "model.onnx": ONNX_RUNTIME,
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
    "model.py": "python",
    "model.savedmodel": "tensorflow",
    "model.graphdef": "tensorflow",
    "model.xml": "openvino",
    "model.dali": "dali",
}
ENSEMBLE = "ensemble"  # who runs Triton's own pipelines
# What older configurations name instead of a backend -> Triton backend
_BACKEND_OF_PLATFORM = {
    "onnxruntime_onnx": ONNX_RUNTIME,
    "tensorrt_plan": "tensorrt",
    "pytorch_libtorch": "pytorch",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
# Batch limit that Triton gives an ONNX model whose configuration leaves its tensors out.
COMPLETED_BATCH = 4
ANY_VERSION = -1  # the `model_version` that means the newest one that is loaded
_VERSION = re.compile("[1-9][0-9]{0,17}")  # the name of a version folder


def backend_of(backend: str, platform: str) -> str:
    """Who runs a model whose configuration has these two words; empty where both are."""
    return backend or _BACKEND_OF_PLATFORM.get(platform, platform)


def usual_file(backend: str) -> str | None:
    """The file that a backend loads unless the configuration names another; None for an unknown backend."""
    return next((file for file, name in BACKEND_OF_FILE.items() if name == backend), None)


def runtime_of(version: str) -> Runtime | None:
    """What a version of ONNX Runtime reads; None for a version that was not tried."""
    minor = ".".join(version.split(".")[:2])
    return next((reads for reads, minors in _READS.items() if minor in minors), None)


def image_runtimes() -> tuple[str, ...]:
    """The ONNX Runtime versions inside images, as far as known, oldest first."""
    return tuple(version for version in _ONNXRUNTIME if version is not None)


def releases_with(version: str) -> tuple[str, ...]:
    """Names of the releases whose image carries that version of ONNX Runtime, oldest first."""
    return _ONNXRUNTIME.get(version, ())


def releases_that_read(*, ir_version: int, opset: int) -> tuple[str, ...]:
    """Releases whose ONNX Runtime is known to read such a file (`opset` of the default domain), oldest first."""

    def reads(version: str) -> bool:
        most = runtime_of(version)
        return most is not None and most.ir_version >= ir_version and most.opset >= opset

    return tuple(name for version in filter(reads, image_runtimes()) for name in releases_with(version))


def stated_instances(config: Mapping[str, Any]) -> int | None:
    """How many requests a model runs at once; None where its configuration (JSON values) leaves that open."""
    groups = config.get("instance_group", ())
    counts = [int(group.get("count", 0)) * max(1, len(group.get("gpus", ()))) for group in groups]
    return sum(counts) if counts and all(counts) else None


def served_versions(policy: Mapping[str, Any], present: Iterable[int]) -> tuple[int, ...]:
    """The versions of a model that Triton loads, ascending; a request without a version gets the last one.

    Args:
        policy: `version_policy` of its configuration as JSON values: {"latest": {"num_versions": 1}}, {"all": {}}
            or {"specific": {"versions": [1]}}; empty means the newest alone.
        present: numbers of its version folders.
    """
    numbers = sorted(set(present))
    if "all" in policy:
        return tuple(numbers)
    if "specific" in policy:
        wanted = {int(number) for number in policy["specific"].get("versions", ())}
        return tuple(number for number in numbers if number in wanted)
    count = int(policy.get("latest", {}).get("num_versions", 1))
    return tuple(numbers[-count:]) if count > 0 else ()


def versions_in(folder: Path) -> tuple[int, ...]:
    """Numbers of a model's version folders, ascending; none where the folder is missing.

    Triton ignores folders whose name begins with 0 or is no number.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return ()
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return tuple(sorted(int(name) for name in names if _VERSION.fullmatch(name)))


def mentioned_models(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The models among `names` that a model may call: those whose names occur in its own text files.

    Nothing declares which models a Python model calls, but it must have their names from somewhere: its code, a
    cascade.json, a parameter. A name that occurs there for another reason costs a needless copy or waiting order.

    Raises:
        OSError: a file cannot be read.
    """
    files = [path for ending in ("py", "json", "pbtxt") for path in folder.glob(f"**/*.{ending}")]
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file())
    return tuple(name for name in names if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", text))
