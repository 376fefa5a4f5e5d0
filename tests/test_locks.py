"""The locks pin what pyproject.toml asks for, once for each Python that they are for."""

import re
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.spec.documents import text_of_file

ROOT = Path(__file__).parents[1]
PYPROJECT = text_of_file(ROOT / "pyproject.toml", "pyproject.toml")
EXTRAS = {
    "demo.lock": ("serve", "demo"),
    "dev.lock": ("serve", "demo", "export", "tabular", "plan", "batch", "perf", "dev"),
}
PYTHONS = {"demo.lock": ("3.10", "3.11", "3.12"), "dev.lock": ("3.11", "3.12")}


def pins(lock: str, python: str) -> list[tuple[str, str]]:
    """Names and versions of what a lock has installed on Linux by a Python."""
    lines = (ROOT / "requirements" / lock).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and line[0] != "#"]
    chosen = [one for one in found if one.marker is None or one.marker.evaluate({"python_version": python})]
    return [(canonicalize_name(one.name), str(one.specifier).removeprefix("==")) for one in chosen]


def asked(name: str, python: str) -> list[Requirement]:
    """What a list of pyproject.toml asks a Python for; Python 3.10 itself reads no TOML."""
    (block,) = re.findall(rf"^{name} = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)
    found = [Requirement(text) for text in re.findall(r'"([^"]+)"', re.sub("#.*", "", block))]
    return [one for one in found if one.marker is None or one.marker.evaluate({"python_version": python})]


def test_it_is_known_which_pythons_there_are() -> None:
    assert 'requires-python = ">=3.10,<3.13"' in PYPROJECT


@pytest.mark.parametrize(("lock", "python"), [(lock, one) for lock, found in PYTHONS.items() for one in found])
def test_each_python_gets_one_version_of_everything_that_is_asked_for(lock: str, python: str) -> None:
    found = pins(lock, python)
    assert [name for name, count in Counter(name for name, _ in found).items() if count > 1] == []
    versions = dict(found)
    wanted = [one for name in ("dependencies", *EXTRAS[lock]) for one in asked(name, python)]
    # `make setup` installs torch by itself, before the lock.
    wanted = [one for one in wanted if one.name != "torch"]
    assert len(wanted) > 10
    wrong = [str(one) for one in wanted if versions.get(canonicalize_name(one.name), "") not in one.specifier]
    assert wrong == []


def test_what_both_locks_have_is_of_one_version() -> None:
    small, large = (dict(pins(lock, "3.12")) for lock in ("demo.lock", "dev.lock"))
    assert small == {name: large[name] for name in small}
