"""A fused prefix answers the leading stages in one call, and nothing else about a cascade changes with it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.decision import softmax
from orchestrator.errors import SpecError
from orchestrator.spec import (
    CascadeSpec,
    FusedPrefix,
    InputSpec,
    Limits,
    Member,
    Stage,
    cascade_from_json,
    json_from_cascade,
)
from tests.bls.fixtures import K, ask_all, loaded, two_stages
from tests.fakes.triton import FakeTriton, Request

NAMES = ("first", "second", "third")
PREFIX = FusedPrefix(name="prefix", stages=2, max_batch_size=8)


def spec(fused_prefix: FusedPrefix | None = PREFIX) -> CascadeSpec:
    """Three stages; a row holds what each of the three members says."""
    members = (
        Member(name=name, output="logits", cost=10.0**at, max_batch_size=8) for at, name in enumerate(NAMES)
    )
    stages = tuple(Stage(members=(one,), threshold=at) for one, at in zip(members, (0.8, 0.9, None), strict=True))
    source = InputSpec(name="x", dtype="FP32", dims=(3 * K,))
    return two_stages(inputs=(source,), stages=stages, fused_prefix=fused_prefix, limits=Limits())


def part(index: int, rows: np.ndarray) -> np.ndarray:
    return rows[:, index * K : (index + 1) * K]


def sure(z: np.ndarray, threshold: float) -> np.ndarray:
    return softmax(z).max(axis=1) >= threshold


def prefix_gives(rows: np.ndarray) -> dict[str, np.ndarray]:
    second = part(1, rows).copy()
    second[sure(part(0, rows), 0.8)] = np.nan
    return {"first": part(0, rows), "second": second}


def fake(**changes: object) -> FakeTriton:
    members = {name: lambda rows, i=i: part(i, rows) for i, name in enumerate(NAMES)}
    return FakeTriton({**members, "prefix": prefix_gives, **changes})


def random_rows(seed: int, n: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, 3 * K)) * 3).astype(np.float32)


def answered(
    tmp_path: Path, server: FakeTriton, plan: CascadeSpec, parts: list[np.ndarray], **policy: float
) -> list:
    with loaded(tmp_path, server, plan) as model:
        return ask_all(model, [Request({"x": rows}, parameters=policy) for rows in parts])


POLICIES = st.sampled_from(
    [{}, {"min_stage": 1}, {"min_stage": 2}, {"max_stage": 0}, {"max_stage": 1}, {"threshold_shift": 0.15},
     {"threshold_shift": -0.2}]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), policy=POLICIES)
def test_every_answer_is_the_one_without_a_fused_prefix(
    tmp_path: Path, seed: int, sizes: list[int], policy: dict
) -> None:
    parts = [random_rows(seed + i, n) for i, n in enumerate(sizes)]
    with_prefix = answered(tmp_path, fake(), spec(), parts, **policy)
    without = answered(tmp_path, fake(), spec(fused_prefix=None), parts, **policy)
    for one, other in zip(with_prefix, without, strict=True):
        for name in ("label", "exit_stage", "cost", "status", "confidence", "probabilities"):
            np.testing.assert_array_equal(one.column(name), other.column(name), err_msg=name)


def rows_leaving_at(*stages: int) -> np.ndarray:
    """Rows that exit at the given stages; each is sure of the class of its stage's number."""
    rows = np.zeros((len(stages), 3 * K), np.float32)
    for row, stage in zip(rows, stages, strict=True):
        row[stage * K + stage] = 9
    return rows


def test_a_batch_that_the_fused_prefix_settles_is_a_plain_list_after_one_call(tmp_path: Path) -> None:
    server = fake()
    with loaded(tmp_path, server, spec()) as model:
        answers = model.execute([Request({"x": rows_leaving_at(1, 0)}), Request({"x": rows_leaving_at(0, 1, 1)})])
    assert answers is not None
    assert server.asked == [("prefix", 5)]
    assert answers[0].column("label")[:, 0].tolist() == [1, 0]
    assert answers[1].column("exit_stage")[:, 0].tolist() == [0, 1, 1]
    assert answers[1].column("cost")[:, 0].tolist() == [1, 11, 11]


def test_only_rows_beyond_the_fused_prefix_reach_a_member(tmp_path: Path) -> None:
    server = fake()
    (answer,) = answered(tmp_path, server, spec(), [rows_leaving_at(2, 0, 1, 2)])
    assert answer.column("exit_stage")[:, 0].tolist() == [2, 0, 1, 2]
    assert answer.column("label")[:, 0].tolist() == [2, 0, 1, 2]
    assert server.asked[0] == ("prefix", 4)
    assert {name for name, _ in server.asked[1:]} == {"third"}
    assert sum(n for _, n in server.asked[1:]) == 2


def test_the_fused_prefix_is_forwarded_to_and_asked_in_parts(tmp_path: Path) -> None:
    server, request = fake(), Request({"x": rows_leaving_at(0, 1)})
    with loaded(tmp_path, server, spec()) as model:
        model.execute([request])
    assert server.forwarded[0] is request.tensors["x"]
    server = fake()
    answered(tmp_path, server, spec(), [rows_leaving_at(*[0, 1] * 10)])
    assert server.asked == [("prefix", 8), ("prefix", 8), ("prefix", 4)]


def broken(rows: np.ndarray) -> dict[str, np.ndarray]:
    raise RuntimeError("no memory")


@pytest.mark.parametrize(
    "says", [broken, lambda rows: {"first": part(0, rows)}, lambda rows: {"first": rows, "second": rows}]
)
def test_a_fused_prefix_that_fails_is_stepped_over(tmp_path: Path, says: object) -> None:
    server = fake(prefix=says)
    (answer,) = answered(tmp_path, server, spec(), [rows_leaving_at(2, 0, 1)])
    assert answer.column("exit_stage")[:, 0].tolist() == [2, 0, 1]
    assert ("first", 3) in server.asked


def test_what_the_fused_prefix_decided_is_counted_as_if_the_members_had(tmp_path: Path) -> None:
    counted = []
    for prefix in (PREFIX, None):
        server = fake()
        answered(tmp_path, server, spec(fused_prefix=prefix), [rows_leaving_at(2, 0, 1, 1)])
        names = {f"committee_{name}_total" for name in ("exits", "deferred", "cost", "rows")}
        counted.append({key: m.value for key, m in server.metrics.items() if key[0] in names})
    assert counted[0] == counted[1]
    assert len(counted[0]) >= 6


def test_a_plan_with_a_fused_prefix_is_read_back_and_a_wrong_one_is_refused() -> None:
    assert cascade_from_json(json_from_cascade(spec())) == spec()
    assert "fused_prefix" not in json_from_cascade(spec(fused_prefix=None))
    for prefix, says in (
        (FusedPrefix(name="prefix", stages=4), "got 4 stages, expected at most 3"),
        (FusedPrefix(name="first", stages=2), "a model of its own"),
    ):
        with pytest.raises(SpecError, match=says):
            spec(fused_prefix=prefix)
    with pytest.raises(SpecError, match="stages"):
        FusedPrefix(name="prefix", stages=1)
