"""The public API: its names, that they cost nothing until used, and the examples of docs/python.md and README."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from tests.servers import running_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = sorted(orchestrator._PLACES)


def examples(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there_and_explained_and_is_no_submodule(name: str) -> None:
    assert callable(getattr(orchestrator, name))
    assert f"`{name}`" in PAGE
    assert not (ROOT / "orchestrator" / name).exists()
    assert not (ROOT / "orchestrator" / f"{name}.py").exists()


def test_every_name_stands_in_an_example() -> None:
    used = {word for example in examples(PAGE) for word in re.findall(r"\w+", example)}
    assert set(NAMES) - used == {"read_records"}, "records from a file are shown where the file is described"


def test_the_stub_for_type_checkers_has_the_same_names() -> None:
    tree = ast.parse((ROOT / "orchestrator/__init__.pyi").read_text(encoding="utf-8"))
    imported = {
        (alias.asname or alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assigned = {
        node.targets[0].id: node.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
    }
    listed = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
              and node.targets[0].id == "__all__"]  # fmt: skip
    assert listed == [NAMES]
    assert sorted((imported - set(assigned.values())) | set(assigned)) == NAMES


def test_a_star_import_and_dir_give_the_public_names() -> None:
    names: dict[str, Any] = {}
    exec("from orchestrator import *", names)
    assert sorted(set(names) - {"__builtins__"}) == NAMES
    assert sorted(dir(orchestrator)) == sorted([*NAMES, "__version__"])


def test_paths_may_be_text_lists_may_be_rows_and_a_wrong_reference_is_one_line(tmp_path: Path) -> None:
    told = {"a": [[0.0, 1.0], [2.0, 0.0]], "b": [[0.0, 3.0], [4.0, 0.0]]}
    records = orchestrator.Records(ids=[1, 2], labels=[1, 0], outputs=told, cost={"a": 1.0, "b": 2.0})
    spec = orchestrator.read_plan(str(ROOT / "model_repository/digits_cascade/1/cascade.json"))
    assert orchestrator.check(str(ROOT / "model_repository"))
    with pytest.raises(orchestrator.CommitteeError, match="no such file"):
        orchestrator.read_records(str(tmp_path / "nothing.npz"))
    with pytest.raises(orchestrator.CommitteeError, match="not recorded"):
        orchestrator.evaluate(spec, records, reference="nobody")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        orchestrator.nothing  # noqa: B018


def test_the_package_and_the_runtime_import_with_numpy_alone() -> None:
    """In a fresh interpreter that refuses every other package, as the server's stub has none."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        head = name.partition(".")[0]
        if head not in sys.stdlib_module_names and head not in ("numpy", "orchestrator"):
            raise ModuleNotFoundError(f"{name} is not there", name=name)
import numpy
sys.meta_path.insert(0, Refuse())
import orchestrator.bls.model
from orchestrator import Policy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.triton
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "model_repository", tmp_path / "model_repository")
    with running_server(tmp_path / "model_repository") as server:
        monkeypatch.chdir(tmp_path)
        for text in (README, PAGE):
            names: dict[str, Any] = {}
            for example in examples(text):
                # A busy machine may take longer than the deadline shown.
                text_run = example.replace("127.0.0.1:8001", server.grpc_address).replace("50_000", "20_000_000")
                exec(compile(text_run, "example", "exec"), names)
    printed = capsys.readouterr().out
    assert "['small']" in printed
    assert "True ()" in printed
    assert "3" in printed.splitlines()[-1]
