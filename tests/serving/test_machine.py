import dataclasses
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import PlatformError, ServingError
from orchestrator.serving.machine import (
    GLIBC_FLOOR,
    SHM_FLOOR_BYTES,
    ServingMachine,
    check_machine,
    command_from,
    environment_from,
    failure_reasons,
    libpython_folder,
    loaded_models,
    log_tail,
    machine_here,
    make_backend_directory,
    make_work_folder,
    shell_safe_repository,
)
from orchestrator.serving.options import MIB, Ports, ServeOptions


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> ServingMachine:
    """A machine with everything."""
    wheel = tmp_path_factory.mktemp("site-packages") / "pytriton"
    triton = wheel / "tritonserver"
    stubs = [triton / "python_backend_stubs" / version for version in ("3.8", "3.10", "3.11")]
    python = triton / "backends" / "python"
    for path in (
        *(folder / "triton_python_backend_stub" for folder in stubs),
        python / "libtriton_python.so",
        python / "triton_python_backend_utils.py",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
    return ServingMachine(
        system="Linux",
        architecture="x86_64",
        glibc=(2, 36),
        python=(3, 11),
        numpy_version="1.26.4",
        wheel=wheel,
        libpython=Path("/opt/python/lib"),
        shm_free_bytes=1024 * MIB,
        open_files=1024,
    )


def test_a_machine_with_everything_passes(machine: ServingMachine) -> None:
    check_machine(machine)


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
        (
            {"open_files": 64},
            ServingError,
            "at most 64 open files, expected at least 256; raise the limit: ulimit -n",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    machine: ServingMachine, change: dict[str, Any], kind: type[Exception], expected: str
) -> None:
    with pytest.raises(kind, match=expected) as caught:
        check_machine(dataclasses.replace(machine, **change))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@given(st.tuples(st.integers(2, 3), st.integers(0, 60)))
def test_exactly_the_versions_of_glibc_from_the_floor_on_pass(
    machine: ServingMachine, version: tuple[int, int]
) -> None:
    machine = dataclasses.replace(machine, glibc=version)
    if version >= GLIBC_FLOOR:
        check_machine(machine)
    else:
        with pytest.raises(PlatformError):
            check_machine(machine)


@given(free=st.integers(0, 4096), needed=st.integers(0, 4096))
def test_shared_memory_must_hold_the_floor_and_what_the_models_begin_with(
    machine: ServingMachine, free: int, needed: int
) -> None:
    machine = dataclasses.replace(machine, shm_free_bytes=free * MIB)
    if free * MIB >= max(needed * MIB, SHM_FLOOR_BYTES):
        check_machine(machine, shm_needed_bytes=needed * MIB)
    else:
        with pytest.raises(ServingError, match="shm-size"):
            check_machine(machine, shm_needed_bytes=needed * MIB)


# Limits before and after, as the process itself sees them.
LIMITED = """
import resource, sys
from orchestrator.serving.machine import allow_open_files
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allow_open_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 800, 800), (300, 800, 300), (64, 64, 64)])
def test_a_limit_of_open_files_that_is_too_low_is_raised_as_far_as_may_be(
    soft: int, hard: int, after: int
) -> None:
    words = [sys.executable, "-c", LIMITED, str(soft), str(hard)]
    assert int(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout) == after


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


def test_the_backend_directory_holds_python_and_the_stand_in_side_by_side(
    machine: ServingMachine, tmp_path: Path
) -> None:
    folder = make_backend_directory(machine, tmp_path / "backends")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "python/libtriton_python.so",
        "python/triton_python_backend_utils.py",
        "python/triton_python_backend_stub",
        "onnxruntime/model.py",
        "onnxruntime/session_settings.py",
    }
    assert os.access(folder / "python" / "triton_python_backend_stub", os.X_OK)
    # Triton refuses a library that lies outside its backend's folder, which is what a link to it does.
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_the_environment_finds_the_wheels_libraries_and_this_interpreter_first(machine: ServingMachine) -> None:
    base = {"PATH": "/usr/bin", "LD_LIBRARY_PATH": "/mine", "PYTHONHOME": "/elsewhere", "KEPT": "yes"}
    environment = environment_from(machine, base, repository=Path("/models"), hide_gpus=False)
    assert machine.wheel is not None
    libraries = environment["LD_LIBRARY_PATH"].split(":")
    assert libraries == [str(machine.wheel.parent / "nvidia_pytriton.libs"), "/opt/python/lib", "/mine"]
    assert environment["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["KEPT"] == "yes"
    assert environment["COMMITTEE_MODEL_REPOSITORY"] == "/models"
    assert "PYTHONHOME" not in environment
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert base["PATH"] == "/usr/bin"


def test_gpus_are_hidden_when_asked(machine: ServingMachine) -> None:
    environment = environment_from(machine, {}, repository=Path("/models"), hide_gpus=True)
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"


def command(machine: ServingMachine, **changes: Any) -> list[str]:
    return command_from(
        machine,
        ServeOptions(repository=Path("models"), **changes),
        repository=Path("/models"),
        ports=Ports(http=1, grpc=2, metrics=3),
        backends=Path("/b"),
        control_key="secret",
        shm_prefix="mine_",
    )


@pytest.mark.parametrize("host", ["::", "::1", "fd00::7"])
def test_the_command_writes_ipv6_addresses_as_each_endpoint_reads_them(machine: ServingMachine, host: str) -> None:
    wanted = {f"--http-address=ipv6:{host}", f"--grpc-address=[{host}]", f"--metrics-address=ipv6:{host}"}
    assert wanted <= set(command(machine, host=host))


def test_the_command_has_addresses_for_names(machine: ServingMachine) -> None:
    wanted = {"--http-address=127.0.0.1", "--grpc-address=[::]", "--metrics-address=ipv6:::"}
    assert wanted <= set(command(machine, host="::", http_host="localhost"))
    names = {f"--{endpoint}-address=127.0.0.1" for endpoint in ("http", "grpc", "metrics")}
    assert names <= set(command(machine, host="localhost"))


def test_the_command_binds_every_endpoint_to_the_host_and_restricts_model_control(machine: ServingMachine) -> None:
    words = """
        --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1
        --http-port=1 --grpc-port=2 --metrics-port=3 --exit-timeout-secs=3
        --http-restricted-api=model-repository,logging,trace:committee-control=secret
        --grpc-restricted-protocol=model-repository,logging,trace:committee-control=secret
        --backend-config=python,shm-default-byte-size=8388608
        --backend-config=python,shm-region-prefix-name=mine_
    """
    assert set(words.split()) <= set(command(machine, host="127.0.0.1", stop_timeout_s=2.5, shm_bytes=8 << 20))


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20))
def test_a_shell_takes_the_repositorys_path_as_one_word_whatever_its_name(name: str) -> None:
    work = make_work_folder()
    try:
        repository = work / f"r{name}"
        repository.mkdir()
        (repository / "model").mkdir()
        path = shell_safe_repository(repository, work)
        assert shlex.quote(str(path)) == str(path)
        assert (path / "model").is_dir()
    finally:
        for folder in (work / f"r{name}" / "model", work / f"r{name}"):
            folder.rmdir()
        (work / "repository").unlink(missing_ok=True)
        work.rmdir()


def test_a_plain_path_is_used_as_it_is(tmp_path: Path) -> None:
    assert shell_safe_repository(tmp_path, tmp_path) == tmp_path.resolve()


# Lines of real logs, shortened.
LOG = r"""
W1124 21:57:25.720882 15322 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1124 21:57:25.721043 15322 server.cc:241] "CudaDriverHelper has not been initialized."
I1124 21:57:25.722000 15322 model_lifecycle.cc:472] "loading: bad:1"
I1124 21:57:25.774422 15332 pb_stub.cc:298]  Failed to initialize Python stub for auto-complete: no such thing
E1124 21:57:25.785100 15322 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ModuleNotFoundError: No module named 'x'\n\nAt:\n  /r/bad/1/model.py(1): <module>\n"
E1124 21:57:25.852091 15322 model_lifecycle.cc:642] "failed to load 'worse' version 2: Internal: TritonModelException: worse: two\nlines\n\nAt:\n  /b/model.py(143): _refuse\n"
I1124 21:57:26.112091 15322 model_lifecycle.cc:839] "successfully loaded 'good'"
I1124 21:57:25.852120 15322 model_lifecycle.cc:777] "failed to load 'bad'"
+-------+---------+
| Model | Version |
+-------+---------+
error: creating server: Internal - failed to load all models
"""  # noqa: E501 - a log's lines are as long as they are


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "triton.log"
    file.write_text(LOG)
    return file


def test_each_model_at_fault_is_named_once_with_what_is_wrong_and_not_where(path: Path) -> None:
    assert failure_reasons(path) == [
        "model bad: ModuleNotFoundError: No module named 'x'",
        "model worse: two lines",
    ]


def test_a_model_whose_folder_cannot_be_used_is_named(path: Path) -> None:
    path.write_text("E1124 21:57:25.1 15322 manager.cc:1] \"Poll failed for model directory 'odd': no version\"")
    assert failure_reasons(path) == ["model odd: no version"]


def test_without_a_model_at_fault_the_servers_own_errors_are_the_reason(path: Path) -> None:
    path.write_text(
        'E1124 21:57:25.721043 15322 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        "E1124 21:57:46.51 15378 main.cc:257] \"failed to start HTTP service: '127.0.0.1:1' already in use \"\n"
    )
    assert failure_reasons(path) == ["failed to start HTTP service: '127.0.0.1:1' already in use"]


def test_the_tail_holds_what_models_print_and_leaves_the_chatter_out(path: Path) -> None:
    with path.open("a") as file:
        file.write("terminate called\n  what(): bad luck\n")
    tail = log_tail(path, 10)
    assert tail[-2:] == ["terminate called", "  what(): bad luck"]
    assert "Failed to initialize" in tail[0]
    assert len(tail) == 3
    assert log_tail(path, 1) == tail[-1:]


def test_loaded_models_are_those_that_said_so(path: Path) -> None:
    assert loaded_models(path) == {"good"}


def test_no_log_says_nothing(tmp_path: Path) -> None:
    for path in (None, tmp_path / "nowhere"):
        assert log_tail(path, 5) == []
        assert failure_reasons(path) == []
        assert loaded_models(path) == set()
