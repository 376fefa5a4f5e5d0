"""The runtime needs Python and numpy: it runs inside a server where nothing else is installed."""

import subprocess
import sys
from pathlib import Path

from orchestrator.repository.files import runtime_files

SCRIPT = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {"orchestrator", "numpy", *sys.stdlib_module_names}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import orchestrator.bls.model
print(orchestrator.bls.model.__file__)
"""


def test_what_a_standalone_rendering_copies_is_imported_with_numpy_alone(tmp_path: Path) -> None:
    for name, content in runtime_files().items():
        (tmp_path / "orchestrator" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "orchestrator" / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "orchestrator/bls/model.py")
