"""Files are written whole or not at all; the shim loads over a stand-in for the server's module."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import RepositoryError
from orchestrator.repository.files import (
    MARK,
    SHIM,
    copy_model,
    is_shim,
    new_folder,
    runtime_files,
    sha256_of_path,
    write_all,
)
from orchestrator.repository.render import render
from tests.repository.builders import add_member, snapshot, spec_of

WRITER = """
import sys
from pathlib import Path
from orchestrator.repository.files import write_all
texts = [letter * 300_000 for letter in "ab"]
print("ready", flush=True)
while True:
    for text in texts:
        write_all(Path(sys.argv[1]), {"one": text, "deep/two": text})
"""


def test_files_of_equal_content_keep_their_time(tmp_path: Path) -> None:
    first = write_all(tmp_path, {"a/b.txt": "text", "c": b"bytes"})
    assert [path.name for path in first.written] == ["b.txt", "c"]
    before = (tmp_path / "c").stat().st_mtime_ns
    second = write_all(tmp_path, {"a/b.txt": "other", "c": b"bytes"})
    assert [path.name for path in second.written] == ["b.txt"]
    assert [path.name for path in second.unchanged] == ["c"]
    assert (tmp_path / "c").stat().st_mtime_ns == before


def test_other_users_can_read_what_is_written(tmp_path: Path) -> None:
    write_all(tmp_path, {"a": "text"})
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "delays_s",
    [(0.003,), pytest.param((0.0, 0.001, 0.005, 0.011, 0.02, 0.05), marks=pytest.mark.slow)],
    ids=["once", "often"],
)
def test_a_writer_killed_at_any_time_leaves_whole_files(tmp_path: Path, delays_s: tuple[float, ...]) -> None:
    for delay_s in delays_s:
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for name in ("one", "deep/two"):
            text = (tmp_path / name).read_text()
            assert text in ("a" * 300_000, "b" * 300_000)


def test_a_folder_that_cannot_be_made_is_a_repository_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RepositoryError, match="writing"):
        write_all(tmp_path / "file", {"a": "text"})


def test_a_new_folder_appears_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as building:
        (building / "model").mkdir()
        assert not target.exists()
    assert sorted(path.name for path in target.iterdir()) == [MARK, "model"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_earlier_folder_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as building:
        (building / "a").write_text("first")
    before = snapshot(target)

    def fail() -> None:
        with new_folder(target) as building:
            (building / "a").write_text("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_earlier_rendering_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for word in ("first", "second"):
        with new_folder(target) as building:
            (building / word).write_text(word)
    assert "first" not in snapshot(target)
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis").write_text("years of work")
    for taken in (other, other / "thesis"):
        with pytest.raises(RepositoryError, match="files that no rendering made"), new_folder(taken):
            pass
    assert snapshot(other) == {"thesis": b"years of work"}


def test_a_copied_model_needs_nothing_outside_itself(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 10)
    model = tmp_path / "model"
    (model / "1" / "__pycache__").mkdir(parents=True)
    (model / "1" / "__pycache__" / "x.pyc").write_bytes(b"")
    (model / "1" / "model.onnx").symlink_to(tmp_path / "weights")
    copy_model(model, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == {"1/model.onnx": b"w" * 10}
    assert not (tmp_path / "copy" / "1" / "model.onnx").is_symlink()


def test_a_broken_link_in_a_model_is_a_repository_error(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match=r"copying .*gone"):
        copy_model(model, tmp_path / "copy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_repository_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(RepositoryError, match="Permission denied"):
        sha256_of_path(path)


# -I: nothing from the current folder, the environment or the user's own packages; -S: not even site-packages.
LOAD = """
import importlib, sys, types
sys.path = [p for p in sys.path if "site-packages" not in p]
sys.path += sys.argv[2:]
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
sys.path.append(sys.argv[1])
model = importlib.import_module("1.model")
import orchestrator
print(orchestrator.__file__, model.TritonPythonModel.__name__)
others = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(name for name in others if "cython" not in name and not name.startswith("__")))
"""


def load(folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "-B", "-c", LOAD, str(folder), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def numpy_alone(tmp_path: Path) -> Path:
    """A path on which numpy can be imported and nothing else."""
    alone = tmp_path / "packages"
    alone.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).is_dir():
            (alone / name).symlink_to(installed / name)
    return alone


def test_the_shim_is_short() -> None:
    assert len(SHIM.splitlines()) <= 25


def test_a_standalone_rendering_loads_from_anywhere_with_numpy_and_nothing_else(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    render(spec_of(add_member(repository, "small")), repository, standalone=True)
    moved = tmp_path / "a folder with spaces" / "elsewhere"
    moved.parent.mkdir()
    shutil.move(repository / "cascade", moved)
    shutil.rmtree(repository)
    result = load(moved, numpy_alone(tmp_path))
    assert result.returncode == 0, result.stderr
    where, modules = result.stdout.splitlines()
    assert where == f"{moved / '1' / 'orchestrator' / '__init__.py'} TritonPythonModel"
    assert set(modules.split()) == {"1", "numpy", "orchestrator", "triton_python_backend_utils"}


def test_a_rendering_in_a_checkout_uses_the_package_above_it(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name, data in runtime_files().items():
        path = checkout / "orchestrator" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    repository = checkout / "model_repository"
    render(spec_of(add_member(repository, "small")), repository)
    result = load(repository / "cascade", numpy_alone(tmp_path))
    assert result.stdout.startswith(str(checkout / "orchestrator")), result.stderr


def test_the_runtime_beside_the_shim_wins_over_one_above_it_and_over_an_installed_one(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "installed"):
        (place / "orchestrator" / "bls").mkdir(parents=True)
        for name in ("__init__.py", "bls/__init__.py", "bls/model.py"):
            (place / "orchestrator" / name).write_text("raise RuntimeError('the wrong runtime')\n")
    repository = tmp_path / "repository"
    render(spec_of(add_member(repository, "small")), repository, standalone=True)
    result = load(repository / "cascade", tmp_path / "installed", numpy_alone(tmp_path))
    assert result.stdout.startswith(str(repository / "cascade")), result.stderr


def test_without_a_runtime_anywhere_the_error_says_what_to_do(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    render(spec_of(add_member(repository, "small")), repository)
    result = load(repository / "cascade", numpy_alone(tmp_path))
    assert result.returncode != 0
    assert "No module named 'orchestrator'; render with --standalone" in result.stderr.splitlines()[-1]


def test_a_missing_numpy_is_named_as_such(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    render(spec_of(add_member(repository, "small")), repository, standalone=True)
    result = load(repository / "cascade")
    assert "No module named 'numpy'" in result.stderr.splitlines()[-1]


def test_the_runtime_copied_is_all_of_the_layers_below_the_runtime_and_no_more() -> None:
    tops = {name.partition("/")[0] for name in runtime_files()}
    assert tops == {"__init__.py", "errors.py", "files.py", "probe.py", "spec", "decision", "bls"}


def test_shims_are_told_from_other_python_models(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    assert not is_shim(path)
    path.write_text("class TritonPythonModel: ...\n")
    assert not is_shim(path)
    path.write_text(SHIM)
    assert is_shim(path)
    assert not is_shim(None)
