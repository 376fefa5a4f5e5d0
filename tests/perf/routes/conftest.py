import pytest

from perf.routes.scenario import BenchScenario, bench_scenario
from tests.perf.routes.tiny import TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BenchScenario:
    return bench_scenario(TINY, tmp_path_factory.mktemp("members"))
