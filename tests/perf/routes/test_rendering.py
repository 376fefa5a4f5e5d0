from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import config_from_path
from orchestrator.repository.check import check
from perf.routes.recipes import RECIPES
from perf.routes.rendering import render_scenario
from perf.routes.scenario import BenchScenario
from perf.routes.spec import BenchRepository, routes_of

# The targets are about these.
COMPARED = {
    "member_0", "member_1", "member_2", "largest_2", "pass_through", "tutorial", "tutorial_4", "concatenate_1",
    "concatenate_4", "client_sync", "client_asyncio", "ensemble", "onefile", "committee",
    "committee_in_process",
}  # fmt: skip


INSTANCES = {"pass_through": 1, "tutorial": 1, "tutorial_4": 4, "concatenate_1": 1, "concatenate_4": 4}


@pytest.fixture(scope="module")
def rendered(tiny: BenchScenario, tmp_path_factory: pytest.TempPathFactory) -> BenchRepository:
    return render_scenario(tiny, tmp_path_factory.mktemp("rendered") / "repository")


def test_every_route_the_targets_name_is_there() -> None:
    assert set(routes_of(RECIPES["three_cnn"].scenario)) == COMPARED
    assert {"three_cnn", "efficientnet", "digits"} <= set(RECIPES)
    assert [name for name, recipe in RECIPES.items() if recipe.scenario.imposed] == ["three_cnn", "efficientnet"]


def test_the_repository_is_sound(rendered: BenchRepository) -> None:
    report = check(rendered.folder)
    assert report, report.faults
    models = {route.model for route in rendered.routes.values() if route.model is not None}
    assert models <= {path.name for path in rendered.folder.iterdir()}


def test_baselines_differ_from_committee_in_name_batch_limit_instances_and_plan_alone(
    rendered: BenchRepository,
) -> None:
    ours = MessageToDict(config_from_path(rendered.folder / "committee" / "config.pbtxt"))
    for name, count in INSTANCES.items():
        theirs = MessageToDict(config_from_path(rendered.folder / name / "config.pbtxt"))
        assert theirs.pop("instanceGroup") == [{"kind": "KIND_CPU", "count": count}]
        assert theirs.pop("maxBatchSize") == 64
        expected = {**ours, "name": name}
        added = {"members", "thresholds", "costs", "output"}
        assert set(theirs.pop("parameters")) == added | set(expected.pop("parameters"))
        del expected["instanceGroup"], expected["maxBatchSize"]
        assert theirs == expected
        assert rendered.routes[name].instances == count


def test_the_largest_with_an_instance_per_core_is_otherwise_the_largest(rendered: BenchRepository) -> None:
    name = rendered.scenario.members[-1]
    one, two = (
        MessageToDict(config_from_path(rendered.folder / each / "config.pbtxt")) for each in (name, "largest_2")
    )
    assert two.pop("instanceGroup") == [{**one.pop("instanceGroup")[0], "count": 2}]
    assert two == {**one, "name": "largest_2"}
    files = [(rendered.folder / each / "1" / "model.onnx").read_bytes() for each in (name, "largest_2")]
    assert files[0] == files[1]


def test_every_model_that_computes_runs_one_thread_in_one_instance_without_a_queue_delay(
    rendered: BenchRepository,
) -> None:
    for name in (*rendered.scenario.members, "onefile", "ensemble_mean"):
        config = config_from_path(rendered.folder / name / "config.pbtxt")
        assert [group.count for group in config.instance_group] == [1], name
        assert config.parameters["intra_op_thread_count"].string_value == "1", name
        assert config.HasField("dynamic_batching"), name
        assert config.dynamic_batching.max_queue_delay_microseconds == 0, name


def test_rendering_replaces_an_earlier_one_and_nothing_else(tiny: BenchScenario, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    render_scenario(tiny, folder)
    (folder / "tutorial" / "1" / "model.py").write_text("")
    render_scenario(tiny, folder)
    assert (folder / "tutorial" / "1" / "model.py").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(RepositoryError, match="other"):
        render_scenario(tiny, other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
