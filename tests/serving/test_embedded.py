from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.embedded import (
    Ports,
    command_from,
    environment_from,
    make_backend_directory,
    make_work_folder,
    shell_safe_repository,
)
from orchestrator.serving.machine import ServingMachine
from orchestrator.serving.options import ServeOptions


@pytest.fixture
def machine(tmp_path: Path) -> ServingMachine:
    wheel = tmp_path / "site-packages" / "pytriton"
    python = wheel / "tritonserver" / "backends" / "python"
    stubs = wheel / "tritonserver" / "python_backend_stubs" / "3.11"
    for folder in (python, stubs):
        folder.mkdir(parents=True)
    (python / "libtriton_python.so").write_text("library")
    (python / "triton_python_backend_utils.py").write_text("utils")
    (stubs / "triton_python_backend_stub").write_text("stub")
    (stubs / "triton_python_backend_stub").chmod(0o755)
    return ServingMachine(
        system="Linux",
        architecture="x86_64",
        glibc=(2, 36),
        python=(3, 11),
        numpy_version="1.26.4",
        wheel=wheel,
        libpython=Path("/opt/python/lib"),
        shm_free_bytes=1 << 30,
    )


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


@pytest.mark.parametrize("host", ["::", "::1", "fd00::7"])
def test_the_command_writes_ipv6_addresses_as_each_endpoint_reads_them(machine: ServingMachine, host: str) -> None:
    command = command_from(
        machine,
        ServeOptions(repository=Path("models"), host=host),
        repository=Path("/models"),
        ports=Ports(http=1, grpc=2, metrics=3),
        backends=Path("/b"),
        control_key="secret",
        shm_prefix="mine_",
    )
    wanted = {f"--http-address=ipv6:{host}", f"--grpc-address=[{host}]", f"--metrics-address=ipv6:{host}"}
    assert wanted <= set(command)


def test_the_command_binds_every_endpoint_to_the_host_and_restricts_model_control(machine: ServingMachine) -> None:
    options = ServeOptions(repository=Path("models"), host="127.0.0.1", stop_timeout_s=2.5, shm_bytes=8 << 20)
    command = command_from(
        machine,
        options,
        repository=Path("/models"),
        ports=Ports(http=1, grpc=2, metrics=3),
        backends=Path("/b"),
        control_key="secret",
        shm_prefix="mine_",
    )
    for flag in (
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--http-restricted-api=model-repository:committee-control=secret",
        "--grpc-restricted-protocol=model-repository:committee-control=secret",
        "--exit-timeout-secs=3",
        "--backend-config=python,shm-default-byte-size=8388608",
        "--backend-config=python,shm-region-prefix-name=mine_",
    ):
        assert flag in command


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
