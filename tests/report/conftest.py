from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.builders import Told, write_evil, write_made


@pytest.fixture(scope="session")
def told() -> Told:
    """What that report told of its progress."""
    return Told(interrupts=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, told: Told) -> Path:
    """A report as it is written; drawing takes seconds, so there is one."""
    return write_made(tmp_path_factory.mktemp("report") / "made" / "here", told).parent


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with names that try to break out of their places."""
    return write_evil(tmp_path_factory.mktemp("evil")).parent
