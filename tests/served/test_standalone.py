"""A standalone rendering, moved to an empty directory, served where no `orchestrator` can be imported."""

import asyncio
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.repository.builders import render_output
from tests.served.asking import ask, client_of, joined
from tests.served.fixtures import COMMITTED, Offline, ServedRepository
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(90)]


def bare_environment(folder: Path) -> Path:
    """An environment with numpy, and ONNX Runtime for the members' stand-in backend; returns its python.

    Both are links to what is installed here, so making it takes no time and no network.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for module in (np, onnxruntime):
        package = Path(str(module.__file__)).parent
        for name in (package.name, f"{package.name}.libs"):
            if (package.parent / name).is_dir():
                (packages / name).symlink_to(package.parent / name)
    return folder / "bin" / "python3"


def stubs_below(pid: int) -> dict[str, int]:
    """Model name -> process id of the server's Python models."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except (OSError, ValueError):  # a process that ended meanwhile
            continue
        models = [Path(word).parents[1].name for word in words if word.endswith("model.py")]
        if models and parent == pid:
            found[models[0]] = int(entry.name)
    return found


def test_it_answers_as_the_replay_from_an_empty_directory_with_numpy_alone(
    testbed: ServedRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = testbed.specs["digits_cascade"]
    render_output(COMMITTED, tmp_path / "made", cascades=[spec], standalone=True)
    moved = tmp_path / "empty" / "models"
    moved.parent.mkdir()
    shutil.move(tmp_path / "made", moved)
    python = bare_environment(tmp_path / "bare")
    # The server's Python models take their packages from the interpreter that starts it, and "" may be on their
    # path, which is the working directory.
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(moved.parent)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    lookup = "import numpy, importlib.util as u; assert u.find_spec('orchestrator') is None, 'found'"
    subprocess.run([str(python), "-c", lookup], check=True, timeout=30)

    async def asked(address: str) -> None:
        batches = np.array_split(np.arange(len(testbed.images)), 40)
        async with client_of(address) as client:
            parts = [await ask(client, spec.name, testbed.images[rows]) for rows in batches]
        offline = Offline(spec, testbed.records)
        assert offline.wrong(joined(parts), np.arange(len(testbed.images))).tolist() == []

    with running_server(moved) as server:
        asyncio.run(asked(server.grpc_address))
        stub = stubs_below(server.pid)[spec.name]
        maps = Path(f"/proc/{stub}/maps").read_text()
        folder = Path(f"/proc/{stub}/cwd").readlink()
    # The cascade's own process has loaded numpy's libraries and no other package's.
    assert "numpy" in maps
    for package in ("onnxruntime", "torch", "google", "tritonclient"):
        assert package not in maps
    assert not (folder / "orchestrator").exists()
    used = list((moved / spec.name / "1" / "orchestrator").rglob("__pycache__/*.pyc"))
    assert any(path.name.startswith("scheduler.") for path in used)
