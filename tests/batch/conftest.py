from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch.fixtures import Batching, batching_in


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Batching]:
    with batching_in(tmp_path, capsys) as batching:
        yield batching
