"""Made-up pools, and the plain way of finding a plan: try every one of them through replay."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.planner.search import thresholds_from_scores
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage

COSTS = {"a": 1.0, "b": 3.0, "c": 10.0, "d": 24.0}


def made_records(
    seed: int, *, rows: int = 40, classes: int = 3, members: int = 3, costs: dict | None = None
) -> Records:
    """Members that get better with their cost; some share mistakes, as real ones do."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    hard = rng.normal(size=(rows, classes))
    outputs = {}
    names = list(costs or COSTS)[:members]
    for place, name in enumerate(names):
        z = 0.7 * hard + rng.normal(size=(rows, classes))
        z[np.arange(rows), labels] += 1.0 + 0.6 * place
        outputs[name] = (z * (1 + 0.5 * place)).astype(np.float32)
    cost = {name: (costs or COSTS)[name] for name in names}
    return Records(ids=np.arange(rows), labels=labels, outputs=outputs, cost=cost)


def with_outputs(records: Records, **outputs: np.ndarray | None) -> Records:
    """The records with other outputs of some members, None for members that are left out."""
    kept = {name: scores for name, scores in {**records.outputs, **outputs}.items() if scores is not None}
    return dataclasses.replace(records, outputs=kept, cost={name: records.cost[name] for name in kept})


def pool_of(records: Records, **changes: object) -> CascadeSpec:
    """A spec whose stages are the recorded members."""
    members = (Member(name=name, output="logits", cost=records.cost[name]) for name in records.outputs)
    spec = CascadeSpec(
        name="made_up",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(1,)),),
        classes=records.classes,
        stages=tuple(Stage(members=(member,)) for member in members),
    )
    return dataclasses.replace(spec, **changes)


def groupings(members: tuple[Member, ...]) -> Iterator[tuple[tuple[Member, ...], ...]]:
    """Every way to cut a row of members into stages."""
    for marks in itertools.product((False, True), repeat=len(members) - 1):
        stages = [[members[0]]]
        for member, cut in zip(members[1:], marks, strict=True):
            if cut:
                stages.append([])
            stages[-1].append(member)
        yield tuple(map(tuple, stages))


def every_plan(
    base: CascadeSpec, records: Records, *, quantiles: int, max_stages: int = 4, score: str = "max_prob"
) -> Iterator[CascadeSpec]:
    """Every subset in cost order, every grouping into stages, every threshold of the grid."""
    pool = sorted(base.members, key=lambda member: (member.cost, member.name))
    for size in range(1, 1 + min(4, len(pool))):
        for chosen in itertools.combinations(pool, size):
            for stages in groupings(chosen):
                lonely = score == "agreement" and len(stages) > 1 and len(stages[0]) == 1
                if len(stages) > max_stages or lonely:
                    continue
                scored = dataclasses.replace(
                    base, stages=spec_of(base, stages, (None,) * (len(stages) - 1)).stages
                )
                scored = dataclasses.replace(scored, score=score)
                grids = [
                    scores_at(scored, records, stages[: place + 1], quantiles) for place in range(len(stages) - 1)
                ]
                for thresholds in itertools.product(*grids):
                    yield spec_of(scored, stages, thresholds)


def scores_at(
    base: CascadeSpec, records: Records, stages: tuple[tuple[Member, ...], ...], quantiles: int
) -> list[float]:
    """The grid of the last of these stages, from what replay says if none before it ever exits."""
    done = replay(spec_of(base, stages, (None,) * (len(stages) - 1)), records)
    return [float(threshold) for threshold in thresholds_from_scores(done.confidence, quantiles)]


def spec_of(base: CascadeSpec, stages: tuple[tuple[Member, ...], ...], thresholds: tuple) -> CascadeSpec:
    return dataclasses.replace(
        base,
        stages=tuple(
            Stage(members=stage, threshold=threshold)
            for stage, threshold in zip(stages, (*thresholds, None), strict=True)
        ),
    )


def achieved(
    plans: Iterator[CascadeSpec], records: Records, *, good: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[int, float, CascadeSpec]]:
    """Rows of value and mean cost of every plan, by replay."""
    found = []
    for spec in plans:
        done = replay(spec, records)
        stage_cost = np.cumsum([stage.cost for stage in spec.stages])
        found.append((int(good(done.label).sum()), float(stage_cost[done.exit_stage].sum()) / records.rows, spec))
    return found
