import shutil
from pathlib import Path

import pytest

from orchestrator.spec import CascadeSpec
from tests.repository.builders import add_member, spec_of
from tests.repository.faults import build


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in order that nobody changes; copying it is ten times quicker than rendering it anew."""
    repository = tmp_path_factory.mktemp("made") / "model_repository"
    build(repository)
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Where one is to be."""
    return tmp_path / "model_repository"


@pytest.fixture
def spec(repository: Path) -> CascadeSpec:
    """Two members, and a cascade of them that is not rendered."""
    return spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2))


@pytest.fixture
def complete(made: Path, tmp_path: Path) -> Path:
    """The one in order, to be spoilt."""
    return shutil.copytree(made, tmp_path / "model_repository")
