"""The shim over a stand-in for the server's module, in processes of their own: it changes sys.path."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from orchestrator.repository.files import SHIM, is_shim, runtime_files
from orchestrator.repository.render import render
from tests.repository.builders import add_member, spec_of

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
    assert tops == {"__init__.py", "errors.py", "files.py", "spec", "decision", "bls"}


def test_shims_are_told_from_other_python_models(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    assert not is_shim(path)
    path.write_text("class TritonPythonModel: ...\n")
    assert not is_shim(path)
    path.write_text(SHIM)
    assert is_shim(path)
    assert not is_shim(None)
