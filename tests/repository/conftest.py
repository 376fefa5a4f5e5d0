import shutil
from pathlib import Path

import pytest

from tests.repository.faults import build


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in order that nobody changes; copying it is ten times quicker than rendering it anew."""
    repository = tmp_path_factory.mktemp("made") / "model_repository"
    build(repository)
    return repository


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return shutil.copytree(made, tmp_path / "model_repository")
