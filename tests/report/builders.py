"""Records of members with rising strength and cost, over classes of different difficulty, and reports of them."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.planner.plan import FrontierPoint
from orchestrator.planner.records import Records
from orchestrator.progress import Advance
from orchestrator.report.page import write_report
from orchestrator.spec import CascadeSpec, Fit, InputSpec, Member, Stage

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
        inputs=(InputSpec(name="x", dtype="FP32", dims=(1,)),),
        classes=classes,
        stages=tuple(
            Stage(members=tuple(member(name) for name in names), threshold=threshold)
            for names, threshold in zip(stages, (*thresholds, None), strict=True)
        ),
        **changes,
    )


def with_facts(spec: CascadeSpec, **extra: Any) -> CascadeSpec:
    """The plan with facts of the planner, such as its guarantee."""
    return dataclasses.replace(spec, fit=dataclasses.replace(spec.fit or made_fit(rows=600), extra=extra))


def made_fit(**changes: Any) -> Fit:
    """What a plan may say of the rows it was chosen on."""
    known = {"data_sha256": "d" * 64, "rows": 400, "split": "made:test", "target": "highest accuracy"}
    known |= {"accuracy": 0.9, "accuracy_ci95": (0.8, 0.95), "exit_share": (0.5, 0.3, 0.2), "mean_cost": 8e6}
    return Fit(**{**known, **changes})


EVIL = """<script>window.pwned=1</script></script>"'><img src=x onerror="window.pwned=2">&amp;$\\frac{1}$"""
FRONTIER = (
    FrontierPoint(members=("tiny",), stages=(("tiny",),), thresholds=(), combine="mean_logit", score="max_prob",
                accuracy=0.5, mean_cost=1e5, worst_cost=1e5),
    FrontierPoint(members=("tiny", "large"), stages=(("tiny",), ("large",)), thresholds=(0.9,), combine="vote",
                score="top2_gap", accuracy=0.7, mean_cost=1e7, worst_cost=3.01e7),
)  # fmt: skip
CERTIFICATE = {
    "statement": "with probability at least 0.95 over the rows drawn, accuracy >= that of large - 0.02",
    "rows": 200, "losses": 3, "gains": 1, "bound": 0.0192, "method": "made up", "reference": "large",
}  # fmt: skip
CALIBRATION = {
    "kept": True, "reason": "it helped",
    "members": {"tiny": {"temperature": 1.5, "ece_before": 0.125, "ece_after": 0.02}},
}  # fmt: skip


class ProgressCounter:
    """Progress that is interrupted before its first step, or counts all steps."""

    def __init__(self, *, interrupts: bool) -> None:
        self.interrupts = interrupts
        self.total = self.steps = 0

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        assert description == "drawing the report"
        if self.interrupts:
            raise KeyboardInterrupt
        self.total = total
        yield self.add

    def add(self, steps: int) -> None:
        self.steps += steps


def write_made(folder: Path, counter: ProgressCounter) -> Path:
    """A report with everything in it."""
    spec = with_facts(made_plan(), guarantee=CERTIFICATE, calibration=CALIBRATION)
    return write_report(folder, spec, made_records(), frontier=FRONTIER, progress=counter.progress)


def write_evil(folder: Path) -> Path:
    """A report in which everything a user names tries to break out of its place."""
    records = made_records(meta={"data": EVIL, "data_sha256": "d" * 64})
    strange = dataclasses.replace(
        records, outputs={**records.outputs, EVIL: records.outputs["small"]}, cost={**records.cost, EVIL: 2e6}
    )
    labels = tuple(f"{EVIL}{number}" for number in range(4))
    spec = made_plan(labels=labels, cost_unit=EVIL, fit=made_fit(rows=300, split=EVIL, target=EVIL))
    frontier = [dataclasses.replace(FRONTIER[0], members=(EVIL,), stages=((EVIL,),), combine=EVIL, score=EVIL)]
    certificate = {"statement": EVIL, "rows": 5, "method": EVIL, "reference": EVIL, EVIL: EVIL}
    calibration = {**CALIBRATION, "reason": EVIL, "members": {EVIL: CALIBRATION["members"]["tiny"]}}
    spec = with_facts(spec, guarantee=certificate, calibration=calibration)
    return write_report(folder, spec, strange, frontier=frontier)
