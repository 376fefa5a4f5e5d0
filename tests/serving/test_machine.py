import dataclasses
import platform
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PlatformError, ServingError
from orchestrator.serving.machine import (
    GLIBC_FLOOR,
    SHM_FLOOR_BYTES,
    ServingMachine,
    check_machine,
    libpython_folder,
    machine_here,
)
from orchestrator.serving.options import MIB


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> ServingMachine:
    wheel = tmp_path_factory.mktemp("wheel") / "pytriton"
    for version in ("3.8", "3.10", "3.11"):
        folder = wheel / "tritonserver" / "python_backend_stubs" / version
        folder.mkdir(parents=True)
        (folder / "triton_python_backend_stub").touch()
    return ServingMachine(
        system="Linux",
        architecture="x86_64",
        glibc=(2, 36),
        python=(3, 11),
        numpy_version="1.26.4",
        wheel=wheel,
        libpython=Path("/usr/lib"),
        shm_free_bytes=1024 * MIB,
    )


def test_a_machine_with_everything_passes(good: ServingMachine) -> None:
    check_machine(good)


@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        ({"system": "Darwin", "architecture": "arm64"}, PlatformError, "Darwin on arm64.*docker compose up"),
        ({"architecture": "aarch64"}, PlatformError, "Linux on aarch64.*docker compose up"),
        ({"glibc": (2, 34)}, PlatformError, r"glibc 2\.34, expected glibc 2\.35 or newer; .*docker compose up"),
        ({"glibc": None}, PlatformError, "other than glibc.*docker compose up"),
        ({"wheel": None}, ServingError, r"no nvidia-pytriton.*pip install 'committee\[serve\]'"),
        ({"numpy_version": "2.4.0"}, ServingError, "numpy 2.4.0, expected numpy below 2"),
        ({"python": (3, 14)}, PlatformError, r"Python 3\.14, expected one of 3\.8, 3\.10, 3\.11"),
        ({"libpython": None}, ServingError, r"no libpython3\.11\.so.*apt-get install libpython3\.11"),
        (
            {"shm_free_bytes": 10 * MIB},
            ServingError,
            "10 MiB free in /dev/shm, expected at least 64 MiB.*shm-size",
        ),
        ({"shm_free_bytes": None}, ServingError, "no /dev/shm"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    good: ServingMachine, change: dict[str, object], kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        check_machine(dataclasses.replace(good, **change))  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@given(st.tuples(st.integers(2, 3), st.integers(0, 60)))
def test_exactly_the_versions_of_glibc_from_the_floor_on_pass(
    good: ServingMachine, version: tuple[int, int]
) -> None:
    machine = dataclasses.replace(good, glibc=version)
    if version >= GLIBC_FLOOR:
        check_machine(machine)
    else:
        with pytest.raises(PlatformError):
            check_machine(machine)


@given(free=st.integers(0, 4096), needed=st.integers(0, 4096))
def test_shared_memory_must_hold_the_floor_and_what_the_models_begin_with(
    good: ServingMachine, free: int, needed: int
) -> None:
    machine = dataclasses.replace(good, shm_free_bytes=free * MIB)
    if free * MIB >= max(needed * MIB, SHM_FLOOR_BYTES):
        check_machine(machine, shm_needed_bytes=needed * MIB)
    else:
        with pytest.raises(ServingError, match="shm-size"):
            check_machine(machine, shm_needed_bytes=needed * MIB)


def test_the_interpreters_own_library_goes_before_another_of_the_same_version(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("nothing", "other", "own", "system")]
    for folder, library in zip(
        folders, ("x.so", "libpython3.10.so.1.0", *2 * ("libpython3.11.so.1.0",)), strict=True
    ):
        folder.mkdir()
        (folder / library).touch()
    assert libpython_folder((3, 11), folders) == tmp_path / "own"
    assert libpython_folder((3, 12), folders) is None


def test_this_machine_is_described_as_it_is() -> None:
    machine = machine_here()
    assert machine.system == platform.system()
    assert machine.python == sys.version_info[:2]
    if platform.libc_ver()[0] == "glibc":
        assert machine.glibc is not None
        assert platform.libc_ver()[1].startswith(f"{machine.glibc[0]}.{machine.glibc[1]}")
    if machine.wheel is not None:
        assert (machine.wheel / "tritonserver" / "bin" / "tritonserver").is_file()
    assert "pytriton" not in sys.modules, "looking for the wheel must not import it"
