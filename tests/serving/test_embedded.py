import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serving.machine import (
    Ports,
    ServingMachine,
    command_from,
    environment_from,
    failure_reasons,
    loaded_models,
    log_tail,
    make_backend_directory,
    make_work_folder,
    shell_safe_repository,
)
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
