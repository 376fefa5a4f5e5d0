import dataclasses

import numpy as np
import pytest

from orchestrator.errors import DataError
from orchestrator.planner.candidates import subsets_of, table_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.spec import COMBINES, CascadeSpec, Member, Stage
from tests.planner.builders import made_records, pool_of, with_outputs

SCORES = ("max_prob", "top2_gap", "neg_entropy")


def unusual_pool(records: Records) -> CascadeSpec:
    """Members with temperatures, weights and probabilities as outputs."""
    changes = {"a": {"temperature": 0.7}, "b": {"weight": 2.5}, "c": {"output_kind": "probabilities"}}
    members = (
        Member(name=name, output="o", cost=records.cost[name], **changes.get(name, {})) for name in records.outputs
    )
    return dataclasses.replace(pool_of(records), stages=tuple(Stage(members=(member,)) for member in members))


@pytest.mark.parametrize("combine", COMBINES)
def test_every_subset_gets_the_bits_that_replay_of_it_as_one_stage_gets(combine: str) -> None:
    # More rows than one chunk, so that chunks of different sizes meet.
    records = made_records(4, rows=4500, members=4)
    raw = np.exp(records.outputs["c"])
    records = with_outputs(records, c=raw / raw.sum(axis=1, keepdims=True))
    base = unusual_pool(records)
    table = table_from_records(base, records, combines=(combine,), scores=(*SCORES, "agreement"), workers=3)
    for subset in subsets_of(4)[::3]:
        stage = Stage(members=tuple(table.pool[place] for place in subset))
        for score in (*SCORES, "agreement") if len(subset) > 1 else SCORES:
            spec = dataclasses.replace(base, stages=(stage,), combine=combine, score=score)
            done = replay(spec, records)
            assert np.array_equal(table.label(combine, subset), done.label)
            assert np.array_equal(table.score(combine, score, asked=subset, subset=subset), done.confidence)


def test_a_pool_of_more_than_four_also_gets_the_combination_of_all() -> None:
    costs = dict(zip("abcde", (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
    records = made_records(4, rows=50, members=5, costs=costs)
    base = pool_of(records)
    table = table_from_records(base, records)
    spec = dataclasses.replace(base, stages=(Stage(members=base.members),))
    assert np.array_equal(table.label("mean_logit", (0, 1, 2, 3, 4)), replay(spec, records).label)


def test_progress_ends_at_the_number_of_rows_per_mode() -> None:
    records, told = made_records(4, rows=9000), []
    table_from_records(pool_of(records), records, combines=("vote", "last"), advance=told.append)
    assert sum(told) == 2 * 9000


def test_a_class_that_a_member_rules_out_is_no_failure() -> None:
    records = made_records(4, rows=50)
    scores = records.outputs["b"].copy()
    scores[[3, 7]] = (-np.inf, 0, 0)
    records = with_outputs(records, b=scores)
    assert np.isfinite(table_from_records(pool_of(records), records).scores["mean_logit", "max_prob"]).all()


def test_members_that_were_not_recorded_are_named() -> None:
    records = made_records(4)
    base = pool_of(records)
    records = with_outputs(records, b=None)
    with pytest.raises(DataError, match="no outputs of b"):
        table_from_records(base, records)
