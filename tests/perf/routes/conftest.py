from __future__ import annotations

import pytest

from perf.routes.scenario import Made, made
from tests.perf.routes.tiny import TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(TINY, tmp_path_factory.mktemp("members"))
