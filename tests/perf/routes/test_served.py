"""Every route on the real server gives the answers of the replay."""

import asyncio
import dataclasses
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import tritonclient.grpc as triton

from orchestrator.decision import AnsweredRows, Policy
from orchestrator.errors import ClientError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from perf.harness.server_probe import Statistics, counted_between
from perf.harness.windows import messages_per_request
from perf.load.closed import window_from_stages
from perf.routes.baselines.deciding import OUTPUTS
from perf.routes.rendering import render_scenario
from perf.routes.scenario import BenchScenario
from perf.routes.spec import IN_PROCESS, BenchRepository, BenchRows
from tests.servers import running_server

pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]
EXACT = ("label", "exit_stage", "cost", "status")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    address: str
    repository: BenchRepository
    made: BenchScenario
    rows: BenchRows
    records: Records

    def batches(self) -> list[slice]:
        """Batches of 1 to 8 rows."""
        ends = np.cumsum(np.random.default_rng(0).integers(1, 9, size=len(self.rows.rows)))
        edges = [0, *ends[ends < len(self.rows.rows)].tolist(), len(self.rows.rows)]
        return [slice(*pair) for pair in itertools.pairwise(edges)]

    def ask(self, model: str, *, alone: bool = False) -> dict[str, np.ndarray]:
        """All rows, sixteen requests under way at a time, or one by one."""
        parts = [slice(row, row + 1) for row in range(len(self.rows.rows))] if alone else self.batches()
        with triton.InferenceServerClient(self.address) as client, ThreadPoolExecutor(1 if alone else 16) as pool:

            def one(part: slice) -> dict[str, np.ndarray]:
                rows = self.rows.rows[part]
                tensor = triton.InferInput("image", list(rows.shape), "FP32")
                tensor.set_data_from_numpy(rows)
                result = client.infer(model, [tensor])
                return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

            answers = list(pool.map(one, parts))
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


@pytest.fixture(scope="module")
def bench(tiny: BenchScenario, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    repository = render_scenario(tiny, tmp_path_factory.mktemp("served") / "repository")
    rows = tiny.rows_for(reach=(1, 0.4, 0.2), rows=401, seed=0)
    names = tiny.recipe.scenario.members
    local = LocalMembers(tiny.repository, names)
    records = Records(
        ids=np.arange(len(rows.rows)),
        labels=None,
        outputs={name: local.ask(name, rows.rows) for name in names},
        cost={name: local.cost(name) for name in names},
    )
    with running_server(repository.folder) as server:
        yield Bench(address=server.grpc_address, repository=repository, made=tiny, rows=rows, records=records)


def require_equal(got: dict[str, np.ndarray], expected: AnsweredRows, names: tuple[str, ...] = EXACT) -> None:
    assert set(got) == set(OUTPUTS)
    for name, dtype in OUTPUTS.items():
        assert got[name].dtype == dtype, name
    for name in names:
        np.testing.assert_array_equal(got[name][:, 0], getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(got["probabilities"], expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(got["confidence"][:, 0], expected.confidence, atol=1e-5)


@pytest.mark.parametrize(
    "route", ["tutorial", "tutorial_4", "concatenate_1", "concatenate_4", "onefile", "committee", IN_PROCESS]
)
def test_a_cascade_answers_as_its_replay(bench: Bench, route: str) -> None:
    expected = replay(bench.made.spec, bench.records)
    np.testing.assert_array_equal(expected.exit_stage, bench.rows.exit_stage)
    require_equal(bench.ask(route), expected)


def test_the_pass_through_answers_as_a_cascade_held_at_its_first_stage(bench: Bench) -> None:
    expected = replay(bench.made.spec, bench.records, Policy(max_stage=0))
    require_equal(bench.ask("pass_through"), expected, ("label", "exit_stage", "cost"))


def test_the_ensemble_answers_as_a_cascade_sent_to_its_last_stage(bench: Bench) -> None:
    expected = replay(bench.made.spec, bench.records, Policy(min_stage=2))
    require_equal(bench.ask("ensemble"), expected, ("label", "status"))


def test_members_alone_say_what_they_say_in_this_process(bench: Bench) -> None:
    for index, name in enumerate(bench.repository.scenario.members):
        route = bench.repository.routes[f"member_{index}"]
        assert route.model == name
        np.testing.assert_allclose(bench.ask(name)["logits"], bench.records.outputs[name], atol=1e-4)


def test_a_client_that_drives_the_cascade_from_threads_sees_the_same_exits(bench: Bench) -> None:
    assert bench.repository.sync_client is not None
    with bench.repository.sync_client(bench.address) as ask, ThreadPoolExecutor(16) as pool:
        stages = list(pool.map(lambda part: ask(bench.rows.rows[part]), bench.batches()))
    np.testing.assert_array_equal(np.concatenate(stages), bench.rows.exit_stage)


def test_a_client_that_drives_the_cascade_from_one_loop_sees_the_same_exits(bench: Bench) -> None:
    async def everything() -> list[np.ndarray]:
        assert bench.repository.asyncio_client is not None
        async with bench.repository.asyncio_client(bench.address) as ask:
            return await asyncio.gather(*(ask(bench.rows.rows[part]) for part in bench.batches()))

    stages = asyncio.run(everything())
    np.testing.assert_array_equal(np.concatenate(stages), bench.rows.exit_stage)


def test_a_client_driven_cascade_that_is_refused_says_which_member(bench: Bench) -> None:
    assert bench.repository.sync_client is not None
    with bench.repository.sync_client(bench.address) as ask, pytest.raises(ClientError, match="cnn_small"):
        ask(bench.rows.rows[:1, :1])


def test_a_lone_request_is_a_batch_a_call_of_each_stage_it_reaches_and_where_it_is_deferred_an_answer(
    bench: Bench,
) -> None:
    counted = {}
    with closing(Statistics(bench.address)) as statistics:
        for name in ("committee", IN_PROCESS, "tutorial", "concatenate_1"):
            before = statistics.counts()
            stages = bench.ask(name, alone=True)["exit_stage"]
            window = window_from_stages(np.ones(len(stages)), stages, 1.0, 1)
            route = bench.repository.routes[name]
            counted[name] = messages_per_request(route, counted_between(before, statistics.counts()), window)
    reach = bench.rows.reach(len(bench.repository.scenario.members))
    # Both cascades ask every member one row each few seconds, to see that it is still as planned: those calls are
    # counted with whatever route is measured then, and are few beside the least that a route could add, 0.4.
    expected = {
        "committee": 2 + 2 * sum(reach) + reach[1],
        IN_PROCESS: 2 + 2 * sum(reach[1:]) + reach[1],
        "tutorial": 2 + 2 * sum(reach),
        "concatenate_1": 2 + 2 * sum(reach),
    }
    assert {name: found - expected[name] for name, found in counted.items()} == pytest.approx(
        dict.fromkeys(expected, 0), abs=0.1
    )
    client = bench.repository.routes["client_sync"]
    assert messages_per_request(client, {}, window) is None
