"""What the source tree looks like: modules, lines, imports, class names and where each shared fact is written.

Everything is read from the syntax tree; nothing is imported, so optional packages need not be installed.
"""

import ast
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ("orchestrator", "export", "perf")


@dataclass(frozen=True)
class Fact:
    """A mechanism or figure that only `homes` may write, and the pattern that betrays a copy of it."""

    name: str
    pattern: str
    homes: tuple[str, ...]


# Subclasses of nn.Module and the like, which the server or a library demands by that very name.
NAMES_OF_OTHERS = {"TritonPythonModel"}

FACTS = (
    Fact(
        "hash of a file",
        r"file_digest|sha256\([^)]*read_bytes|iter\(lambda: \w+\.read",
        # The second is copied into model folders, where nothing of ours is at hand.
        ("orchestrator/files.py", "export/deriving/served/model.py"),
    ),
    Fact("atomic write", r"os\.fsync|os\.replace\(|mkstemp\(", ("orchestrator/files.py",)),
    Fact("arrays of records.npz", r"f\"outputs/", ("orchestrator/planner/records.py",)),
    Fact("text of config.pbtxt", r"text_format\.\w+\(", ("orchestrator/pbtxt",)),
    Fact("processor count", r"sched_getaffinity|os\.cpu_count", ("orchestrator/spec/processor.py",)),
    Fact(
        "columns of an answer",
        r"\"label\",\s*\"confidence\"",
        ("orchestrator/spec/answer.py", "perf/routes/baselines/"),
    ),
    Fact("spread evenly", r"linspace\(0, [^,]*- 1", ("orchestrator/spec/shares.py",)),
)


def modules(*packages: str) -> list[Path]:
    """Every Python file of the packages, sorted; files in models of a repository are copies of these."""
    found = ((ROOT / package, path) for package in packages or LIBRARY for path in (ROOT / package).rglob("*.py"))
    return sorted(path for package, path in found if "model_repository" not in path.relative_to(package).parts)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def name_of(path: Path) -> str:
    """Dotted module name; a package has the name of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def class_names_used_twice(packages: tuple[str, ...] = LIBRARY) -> dict[str, list[str]]:
    """Public class names that more than one module defines, with those modules."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules(*packages):
        for node in ast.walk(parsed(path)):
            if (
                isinstance(node, ast.ClassDef)
                and not node.name.startswith("_")
                and node.name not in NAMES_OF_OTHERS
            ):
                found[node.name].append(name_of(path))
    return {name: places for name, places in sorted(found.items()) if len(places) > 1}


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """Modules of the tree that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return found & known


def import_circle(packages: tuple[str, ...] = LIBRARY) -> list[str]:
    """The first circle of modules that import each other, late imports included; empty where there is none."""
    paths = {name_of(path): path for path in modules(*packages)}
    graph = {name: imported_modules(path, set(paths)) - {name} for name, path in paths.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def late_imports(path: Path) -> Iterator[int]:
    """Line numbers of imports inside functions that no comment explains.

    A comment counts on the line itself, above the first import of the block, or on the first import of the block.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for function in ast.walk(parsed(path)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in blocks_of(function):
            start, end = block[0].lineno, block[-1].end_lineno or block[-1].lineno
            if not any("#" in line for line in lines[start - 2 : end]):
                yield from (node.lineno for node in block)


def blocks_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[list[ast.stmt]]:
    """Runs of imports that follow each other anywhere in a function, without those of functions inside it."""
    for parent in [function, *walk_inside(function)]:
        for field in ("body", "orelse", "finalbody"):
            run: list[ast.stmt] = []
            for node in [*(getattr(parent, field, None) or []), None]:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    run.append(node)
                elif run:
                    yield run
                    run = []


def walk_inside(function: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            yield child
            yield from walk_inside(child)


def places_of(fact: Fact) -> list[str]:
    """Files outside a fact's homes whose code has its pattern."""
    found = []
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(fact.homes) and re.search(fact.pattern, path.read_text(encoding="utf-8")):
            found.append(place)
    return found
