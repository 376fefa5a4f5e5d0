"""Made-up cascades with known outputs, and a driver that plays a server over them."""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from orchestrator.decision import AnsweredRows, CascadeRun, Policy, arrivals_from_policies, softmax
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage


@dataclass
class Case:
    """A cascade and what each member says of each row: outputs[name] is float32 (n, k)."""

    spec: CascadeSpec
    outputs: dict[str, npt.NDArray[np.float32]]
    rows: int

    def merged(self) -> "Case":
        """The same members as one stage."""
        stage = Stage(members=self.spec.members)
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, stages=(stage,)))


def make_spec(
    sizes: list[int], classes: int, *, combine: str, score: str, rng: np.random.Generator, kinds: bool
) -> CascadeSpec:
    names = iter("abcdefghijklmnop")
    kind = ["logits", "probabilities"] if kinds else ["logits"]
    stages = tuple(
        Stage(
            members=tuple(
                Member(
                    name=next(names),
                    output="logits",
                    output_kind=str(rng.choice(kind)),
                    temperature=float(rng.choice([1.0, 0.5, 1.7])),
                    weight=float(rng.choice([1.0, 1.0, 2.0, 0.3])),
                    cost=float(rng.integers(1, 1000)),
                )
                for _ in range(size)
            )
        )
        for size in sizes
    )
    source = InputSpec(name="x", dtype="FP32", dims=(1,))
    return CascadeSpec(
        name="made_up", inputs=(source,), classes=classes, stages=stages, combine=combine, score=score
    )


def make_case(
    *,
    seed: int,
    sizes: list[int],
    rows: int,
    classes: int,
    combine: str,
    score: str,
    quantile: float,
    low: bool,
    sharpness: float,
    kinds: bool,
) -> Case:
    rng = np.random.default_rng(seed)
    spec = make_spec(sizes, classes, combine=combine, score=score, rng=rng, kinds=kinds)
    outputs = {}
    for member in spec.members:
        # Rounded, so that ties between classes and between scores really happen.
        z = np.round(rng.normal(size=(rows, classes)) * sharpness, 1).astype(np.float32)
        if member.output_kind == "probabilities":
            z = softmax(z)
        outputs[member.name] = z
    case = Case(spec, outputs, rows)
    if len(sizes) == 1:
        return case
    # A threshold that is somebody's exact score, so that "ties exit" is exercised.
    scores = np.sort(answer_all(with_thresholds(case, 0.0)).confidence)
    threshold = float(scores[int(quantile * (len(scores) - 1))])
    return with_thresholds(case, threshold, low=threshold - 0.2 if low else None)


def with_thresholds(case: Case, threshold: float | None, low: float | None = None) -> Case:
    *early, final = case.spec.stages
    stages = [dataclasses.replace(stage, threshold=threshold, low=low) for stage in early]
    final = dataclasses.replace(final, threshold=None, low=None)
    return dataclasses.replace(case, spec=dataclasses.replace(case.spec, stages=(*stages, final)))


def answer_all(
    case: Case, *, batches: list[npt.NDArray[np.intp]] | None = None, limit: int = 64, policy: Policy | None = None
) -> SimpleNamespace:
    """Runs every row through, in the given batches, asking later stages for at most `limit` rows at a time.

    Gives answers in row order, as columns, and how many rows each stage was asked for.
    """
    run = CascadeRun(case.spec, capacity_rows=4)
    parts: list[AnsweredRows] = []
    asked = [0] * len(case.spec.stages)
    source: dict[int, int] = {}
    for batch in batches or [np.arange(case.rows)]:
        arrivals = arrivals_from_policies(
            [0], [len(batch)], policies=[policy or Policy()], now_ns=[0], default_deadline_us=1000
        )
        arrivals.position = np.asarray(batch, np.int64)
        outcome = run.admit(arrivals, [case.outputs[m.name][batch] for m in case.spec.stages[0].members])
        asked[0] += len(batch)
        source.update(zip(outcome.slots.tolist(), batch[outcome.deferred].tolist(), strict=True))
        parts.append(outcome.answers)
    for stage in range(1, len(case.spec.stages)):
        while run.waiting(stage):
            slots = run.next(stage, limit)
            assert 0 < len(slots) <= limit
            asked[stage] += len(slots)
            rows = np.array([source[slot] for slot in slots.tolist()])
            outputs = [case.outputs[m.name][rows] for m in case.spec.stages[stage].members]
            parts.append(run.feed(slots, outputs).answers)
    assert run.rows_in_table == 0
    order = np.argsort(np.concatenate([part.position for part in parts]))
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("position", "probabilities", "label", "confidence", "exit_stage", "cost", "status")
    }
    return SimpleNamespace(**columns, asked_per_stage=asked)
