"""docs/operations.md has every metric, log line and error of the runtime and of `committee serve`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bls.metrics import HELP

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text()
# Of code, the words only.
PAGE = " ".join(TEXT.replace("`", "").split())
RUNTIME = sorted((ROOT / "orchestrator" / "bls").glob("*.py"))
SERVE = [*sorted((ROOT / "orchestrator" / "serving").glob("*.py")), ROOT / "orchestrator" / "cli" / "serve.py"]
# Calls whose texts people read: of a log, of whoever watches `serve`, and of an error.
TELLING = re.compile(r"^(log|log_\w+|_?tell|_?progress|\w+Error)$")
WORDS = 3


def texts_of(path: Path) -> Iterator[str]:
    """Pieces of at least three words of what a module logs, tells or raises, without its advice."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and TELLING.match(_name(node.func)):
            told = [*node.args, *(one.value for one in node.keywords if one.arg in ("what", "got"))]
            for part in (part for one in told for part in ast.walk(one)):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def strings_of(path: Path) -> Iterator[str]:
    """All texts of a module of the runtime, whose messages are often made far from where they are sent."""
    tree = ast.parse(path.read_text())
    quiet = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    quiet |= {id(node.msg) for node in ast.walk(tree) if isinstance(node, ast.Assert)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in quiet or node.value in HELP.values():
                continue
            yield node.value


def pieces(paths: list[Path]) -> list[str]:
    """What must be on the page of some modules."""
    found = {text for path in paths for text in (strings_of if path in RUNTIME else texts_of)(path)}
    cleaned = {" ".join(text.replace("`", "").split()).strip(" ,;:()'\"") for text in found}
    return sorted(text for text in cleaned if len(text.split()) >= WORDS)


@pytest.mark.parametrize("paths", [RUNTIME, SERVE], ids=["runtime", "serve"])
def test_every_log_line_and_error_is_on_the_page(paths: list[Path]) -> None:
    found = pieces(paths)
    assert len(found) > 10
    assert [text for text in found if text not in PAGE] == []


def test_every_metric_is_on_the_page_and_no_other() -> None:
    named = set(re.findall(r"`(committee_\w+)`", TEXT))
    assert named == set(HELP)


def test_a_line_that_is_not_on_the_page_would_be_found(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('def f(pb, name):\n    pb.log_warn(f"committee: {name} turned into a pumpkin at noon")\n')
    assert [text for text in pieces([module]) if text not in PAGE] == ["turned into a pumpkin at noon"]
