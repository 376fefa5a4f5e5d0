from pathlib import Path

import pytest

from tests.report.builders import ProgressCounter, write_evil, write_made


@pytest.fixture(scope="session")
def counter() -> ProgressCounter:
    """The steps of progress that writing the report reported."""
    return ProgressCounter(interrupts=False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, counter: ProgressCounter) -> Path:
    """The folder of a written report; drawing takes seconds, so all tests share one."""
    return write_made(tmp_path_factory.mktemp("report") / "made" / "here", counter).parent


@pytest.fixture(scope="session")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report whose names try to break out of their places."""
    return write_evil(tmp_path_factory.mktemp("evil")).parent
