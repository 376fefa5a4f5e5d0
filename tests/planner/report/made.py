"""Records with a known look: members of rising strength and cost, classes that differ in difficulty."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.planner.records import Records
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage

COSTS = {"tiny": 1e5, "small": 8e5, "medium": 4e6, "large": 3e7}
STRENGTH = {"tiny": 1.4, "small": 2.2, "medium": 3.0, "large": 3.8}


def made_records(
    seed: int = 0, *, rows: int = 600, classes: int = 4, labelled: bool = True, meta: dict[str, Any] | None = None
) -> Records:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    # Rows share their difficulty, as images do: what is hard for one member is hard for all.
    ease = rng.gamma(2.0, 0.5, rows) * (1.3 - 0.6 * labels / classes)
    shared = rng.normal(size=(rows, classes))
    outputs = {}
    for name, strength in STRENGTH.items():
        z = 0.8 * shared + 0.8 * rng.normal(size=(rows, classes))
        z[np.arange(rows), labels] += strength * ease
        outputs[name] = (2.0 * z).astype(np.float32)
    return Records(
        ids=np.arange(rows),
        labels=labels if labelled else None,
        outputs=outputs,
        cost=dict(COSTS),
        meta={"data": "made:test", "data_sha256": "d" * 64} if meta is None else meta,
    )


def member(name: str) -> Member:
    return Member(name=name, output="logits", cost=COSTS[name])


def made_plan(
    stages: tuple[tuple[str, ...], ...] = (("tiny",), ("small", "medium"), ("large",)),
    thresholds: tuple[float | None, ...] = (0.93, 0.8),
    *,
    classes: int = 4,
    **changes: Any,
) -> CascadeSpec:
    return CascadeSpec(
        name="made_up",
        input=InputSpec(name="x", dtype="FP32", dims=(1,)),
        classes=classes,
        stages=tuple(
            Stage(members=tuple(member(name) for name in names), threshold=threshold)
            for names, threshold in zip(stages, (*thresholds, None), strict=True)
        ),
        **changes,
    )
