"""What the embedded server needs of a machine, and whether this one has it.

`machine_here` looks at the machine; the checks only compare, so that tests can describe any machine.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PlatformError, ServingError
from orchestrator.serving.options import MIB

GLIBC_FLOOR = (2, 35)
SHM_FLOOR_BYTES = 64 * MIB  # what docker gives a container; with less, hardly any model runs
SHM = Path("/dev/shm")
_COMPOSE = "serve the same repository with `docker compose up`"
_LIBRARY_FOLDERS = ("/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True, kw_only=True)
class ServingMachine:
    """The properties of a machine that the embedded server depends on.

    Args:
        system, architecture: as `platform` names them, e.g. "Linux" and "x86_64".
        glibc: (major, minor) of the C library; None for others (musl, macOS).
        python: (major, minor) of the interpreter that models run in.
        numpy_version: version of the numpy that models import; None without numpy.
        wheel: folder of the `pytriton` package; None where it is not installed.
        libpython: folder of that interpreter's shared library; None where it has none.
        shm_free_bytes: free shared memory; None without /dev/shm.
    """

    system: str
    architecture: str
    glibc: tuple[int, int] | None
    python: tuple[int, int]
    numpy_version: str | None
    wheel: Path | None
    libpython: Path | None
    shm_free_bytes: int | None

    @property
    def stub(self) -> Path | None:
        """Program that Triton starts for every Python model, built for this interpreter; None without one."""
        if self.wheel is None:
            return None
        version = f"{self.python[0]}.{self.python[1]}"
        path = self.wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
        return path if path.is_file() else None


def machine_here() -> ServingMachine:
    """The machine this runs on."""
    python = sys.version_info[:2]
    return ServingMachine(
        system=platform.system(),
        architecture=platform.machine(),
        glibc=_glibc(),
        python=python,
        numpy_version=_version_of("numpy"),
        wheel=_wheel(),
        libpython=libpython_folder(python, _library_folders()),
        shm_free_bytes=shutil.disk_usage(SHM).free if SHM.is_dir() else None,
    )


def check_machine(machine: ServingMachine, *, shm_needed_bytes: int = 0) -> None:
    """Refuses a machine that the embedded server cannot run on.

    Args:
        machine: the machine.
        shm_needed_bytes: shared memory that the models begin with, at least `SHM_FLOOR_BYTES`.

    Raises:
        PlatformError: the server can never run there.
        ServingError: something is missing that can be installed or freed.
    """
    _check_platform(machine)
    _check_packages(machine)
    _check_interpreter(machine)
    _check_shared_memory(machine, max(shm_needed_bytes, SHM_FLOOR_BYTES))


def _check_platform(machine: ServingMachine) -> None:
    here = f"{machine.system} on {machine.architecture}"
    if machine.system != "Linux" or machine.architecture not in ("x86_64", "AMD64"):
        raise PlatformError("embedded Triton", got=here, expected="Linux on x86_64", fix=_COMPOSE)
    if machine.glibc is None or machine.glibc < GLIBC_FLOOR:
        got = "a C library other than glibc" if machine.glibc is None else f"glibc {_dotted(machine.glibc)}"
        expected = f"glibc {_dotted(GLIBC_FLOOR)} or newer"
        raise PlatformError("embedded Triton", got=got, expected=expected, fix=_COMPOSE)


def _check_packages(machine: ServingMachine) -> None:
    if machine.wheel is None:
        raise ServingError(
            "embedded Triton",
            got="no nvidia-pytriton in this environment",
            expected="nvidia-pytriton 0.7.0",
            fix="pip install 'committee[serve]'",
        )
    version = machine.numpy_version
    if version is None or int(version.split(".")[0]) >= 2:
        # With numpy 2 this release's stub makes every tensor zero bytes long, and all requests would fail with an
        # "input byte size mismatch", which does not tell the cause.
        got = "no numpy" if version is None else f"numpy {version}"
        raise ServingError("embedded Triton", got=got, expected="numpy below 2", fix="pip install 'numpy<2'")


def _check_interpreter(machine: ServingMachine) -> None:
    version = _dotted(machine.python)
    if machine.stub is None:
        folder = machine.wheel / "tritonserver" / "python_backend_stubs" if machine.wheel else None
        known = sorted(path.name for path in folder.iterdir()) if folder and folder.is_dir() else []
        expected = f"one of {', '.join(sorted(known, key=_numbers))}" if known else "a stub for it in the wheel"
        raise PlatformError("embedded Triton", got=f"Python {version}", expected=expected, fix="use one of those")
    if machine.libpython is None:
        raise ServingError(
            "embedded Triton",
            got=f"no libpython{version}.so.1.0",
            expected="the interpreter's shared library",
            fix=f"on Debian or Ubuntu apt-get install libpython{version}, elsewhere build it with --enable-shared",
        )


def _check_shared_memory(machine: ServingMachine, needed_bytes: int) -> None:
    free = machine.shm_free_bytes
    if free is None or free < needed_bytes:
        got = f"no {SHM}" if free is None else f"{free // MIB} MiB free in {SHM}"
        raise ServingError(
            "embedded Triton",
            got=got,
            expected=f"at least {needed_bytes // MIB} MiB",
            fix="remove files left there, or in a container give it more with --shm-size=1g",
        )


def libpython_folder(python: tuple[int, int], folders: Iterable[str | Path]) -> Path | None:
    """The first folder with that Python's shared library, under the name that the stub looks for."""
    name = f"libpython{_dotted(python)}.so.1.0"
    return next((Path(folder) for folder in folders if (Path(folder) / name).is_file()), None)


def _library_folders() -> list[str | Path]:
    # The interpreter's own folders come first: a library of another patch release would load, but compiled modules
    # were not built for it.
    own = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    return [*(folder for folder in own if folder), *_LIBRARY_FOLDERS]


def _glibc() -> tuple[int, int] | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return None
    return _numbers(version)[:2] if name == "glibc" else None  # type: ignore[return-value]


def _wheel() -> Path | None:
    # Looked up without an import, which would load pyzmq and gevent and take a second.
    spec = importlib.util.find_spec("pytriton")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = (Path(place) for place in places)
    return next((path for path in found if (path / "tritonserver" / "bin" / "tritonserver").is_file()), None)


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
