"""Runs `python -m export tensorrt` inside NVIDIA's serving image; the compose service `engines` starts it.

The image has TensorRT's libraries, which will load the engine later, but may lack their Python side and has none
of our packages. Both are installed into a folder of the container: our packages, and NVIDIA's bindings of exactly
the release of the libraries, which bring no libraries of their own. So the engine is built by what serves it.

The image's own Python runs this file before anything is installed: standard library only.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TARGET = Path("/tmp/packages")
LOCK = Path("requirements/demo.lock")
# What the project depends on, without its extras.
PACKAGES = (
    "numpy>=1.26,<2",
    "tritonclient[grpc,http]>=2.51",
    "onnx>=1.16",
    "onnxruntime>=1.18",
    "protobuf>=5",
    "typer>=0.12",
    "rich>=13",
)
_MAJORS = (12, 11, 10)


def library_version(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, int, int] | None:
    """Release of the TensorRT library that the loader finds, None where there is none from 10 on."""
    for major in _MAJORS:
        try:
            number = int(load(f"libnvinfer.so.{major}").getInferLibVersion())
        except OSError:
            continue
        return number // 10000, number // 100 % 100, number % 100
    return None


def bindings_for(version: tuple[int, int, int], load: Callable[[str], Any] = ctypes.CDLL) -> list[str]:
    """What to ask pip for, best first: bindings of this very release, or of its minor version."""
    cuda = 13
    try:
        load("libcudart.so.13")
    except OSError:
        cuda = 12
    major, minor, patch = version
    return [f"tensorrt-cu{cuda}-bindings=={major}.{minor}.{rest}*" for rest in (f"{patch}.", "")]


def install(requirements: Sequence[str], *, lock: Path | None = None) -> bool:
    """Installs into the folder, even where the image's Python is marked as externally managed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--target", str(TARGET), "--upgrade", "--root-user-action=ignore"]
    command += ["--constraint", str(lock)] if lock is not None and lock.is_file() else []
    return subprocess.run([*command, *requirements], check=False).returncode == 0


def main(words: Sequence[str]) -> int:
    """Installs what is missing and becomes the export command."""
    sys.stderr.write("installing packages into the container\n")
    if not install(PACKAGES, lock=LOCK):
        return _failed("the packages of the export did not install; the container needs a network to fetch them")
    if not importlib.util.find_spec("tensorrt"):
        version = library_version()
        if version is None:
            return _failed("no libnvinfer of TensorRT 10 or later in this image; use NVIDIA's tritonserver image")
        if not any(install([requirement]) for requirement in bindings_for(version)):
            return _failed(f"no Python bindings of TensorRT {'.'.join(map(str, version))} could be installed")
    command = [sys.executable, "-m", "export", "tensorrt", *words]
    paths = [str(TARGET), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return os.execv(command[0], command)


def _failed(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
