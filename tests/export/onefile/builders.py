"""Made-up cascades whose members' outputs a test chooses: member i answers its own columns of the input."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper

from orchestrator.decision import CascadeRun, Combiner, Policy, arrivals_from_policies, confidence_score
from orchestrator.spec import COMBINES, SCORES, CascadeSpec, InputSpec, Limits, Member, Stage
from tests.onnx_models import model_of

NAMES = ("probabilities", "label", "confidence", "exit_stage", "cost", "status")


def slicing_member(index: int, classes: int, width: int) -> onnx.ModelProto:
    """logits = x[:, index * k : (index + 1) * k]; every such model uses the same names inside."""
    bounds = {"start": [index * classes], "stop": [(index + 1) * classes], "axis": [1]}
    nodes = [helper.make_node("Slice", ["x", *bounds], ["logits"], name="slice")]
    return member_of(nodes, bounds, width=width, classes=classes)


def member_of(nodes: list[Any], weights: Any, *, width: int, classes: int, **changes: Any) -> onnx.ModelProto:
    """A member float32 (n, width) -> logits (n, classes)."""
    x = [changes.get("batch", "n"), width]
    logits = (changes.get("dtype", TensorProto.FLOAT), ["n", classes])
    return model_of(nodes, {"x": x}, {"logits": logits}, weights, opset=changes.get("opset", 18))


def put(repository: Path, name: str, model: onnx.ModelProto) -> None:
    path = repository / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def put_slicing(repository: Path, spec: CascadeSpec) -> None:
    for index, member in enumerate(spec.members):
        put(repository, member.name, slicing_member(index, spec.classes, spec.input.dims[0]))


def opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers_of(session: onnxruntime.InferenceSession, rows: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(NAMES, session.run(NAMES, {session.get_inputs()[0].name: rows}), strict=True))


def cascade(sizes: list[int], classes: int = 3, **changes: Any) -> CascadeSpec:
    """Members m0, m1, ... in stages of the given sizes, each threshold 0.75."""
    names = iter(f"m{i}" for i in range(sum(sizes)))
    stages = tuple(
        Stage(
            members=tuple(Member(name=next(names), output="logits", cost=float(10**index)) for _ in range(size)),
            threshold=0.75 if index < len(sizes) - 1 else None,
        )
        for index, size in enumerate(sizes)
    )
    source = InputSpec(name="x", dtype="FP32", dims=(sum(sizes) * classes,))
    spec = CascadeSpec(
        name="made_up", inputs=(source,), classes=classes, stages=stages, limits=Limits(max_batch_size=32)
    )
    return dataclasses.replace(spec, **changes)


@st.composite
def specs(draw: st.DrawFn) -> CascadeSpec:
    """Any cascade of 1 to 3 stages; thresholds are given later, by `with_thresholds`."""
    sizes = draw(st.sampled_from([[1], [2], [1, 1], [1, 1], [1, 2], [2, 1], [1, 1, 1], [2, 1, 2]]))
    alone = sizes[0] == 1 and len(sizes) > 1
    failing = st.sampled_from(["error", "error", "answer"]) if draw(st.booleans()) else st.just("error")
    spec = cascade(sizes, draw(st.integers(2, 6)))
    stages = tuple(
        Stage(
            members=tuple(
                dataclasses.replace(
                    member,
                    output_kind=draw(st.sampled_from(["logits", "logits", "probabilities"])),
                    temperature=draw(st.sampled_from([1.0, 1.0, 0.5, 1.7])),
                    weight=draw(st.sampled_from([1.0, 1.0, 2.0, 0.3])),
                    cost=draw(st.sampled_from([0.1, 12.0, 1.5e6])),
                )
                for member in stage.members
            ),
            on_failure=draw(failing),
        )
        for stage in spec.stages
    )
    return dataclasses.replace(
        spec,
        stages=stages,
        combine=draw(st.sampled_from(COMBINES)),
        score=draw(st.sampled_from([s for s in SCORES if not alone or s != "agreement"])),
    )


@dataclass
class Seen:
    """What the decision core sees of every row at one stage, had it been asked so far."""

    score: np.ndarray
    clear: np.ndarray


def seen_by_core(spec: CascadeSpec, outputs: list[np.ndarray]) -> list[Seen]:
    combiner = Combiner(spec)
    accumulator = combiner.empty(len(outputs[0]))
    seen, first = [], 0
    for index, stage in enumerate(spec.stages):
        combiner.add_stage(accumulator, index, outputs[first : first + len(stage.members)])
        first += len(stage.members)
        p, label = combiner.distribution(accumulator)
        score = confidence_score(spec.score, p, label, accumulator.tops, combiner.weights)
        ranked = p
        if spec.combine == "vote" and accumulator.ties is not None:
            most = accumulator.total.max(axis=1, keepdims=True)
            ranked = np.where(accumulator.total == most, accumulator.ties, np.float32(-1))
        two = np.sort(ranked, axis=1)[:, -2:]
        nobody = accumulator.weight == 0
        seen.append(Seen(score, (two[:, 1] - two[:, 0] > 1e-5) | nobody))
    return seen


def with_thresholds(
    spec: CascadeSpec, outputs: list[np.ndarray], *, rng: np.random.Generator, low: bool
) -> CascadeSpec:
    """Thresholds, and windows, midway between scores that rows really have; some stages never exit."""
    stages = []
    for stage, seen in zip(spec.stages, seen_by_core(spec, outputs), strict=True):
        last = len(stages) == len(spec.stages) - 1
        high = None if last or rng.random() < 0.15 else between(seen.score, rng.random())
        floor = between(seen.score, 0.2 * rng.random()) if low and not last else None
        if floor is not None and high is not None and floor >= high:
            floor = None
        stages.append(dataclasses.replace(stage, threshold=high, low=floor))
    return dataclasses.replace(spec, stages=tuple(stages))


def between(scores: np.ndarray, share: float) -> float:
    """A number no score is near to, with about that share of the rows below it."""
    values = np.unique(scores.round(4))
    above = np.searchsorted(values, np.quantile(scores, share).round(4), side="right")
    ends = values[max(0, above - 1) : above + 1]
    return float(ends.mean()) if len(ends) == 2 else float(ends[0]) - 0.01


def decided_by_rounding(spec: CascadeSpec, outputs: list[np.ndarray], tolerance: float) -> np.ndarray:
    """Rows that two right implementations may answer differently: near a threshold, or between two classes."""
    open_ = np.zeros(len(outputs[0]), bool)
    if spec.score == "agreement" or spec.combine == "vote":
        for member, output in zip(spec.members, outputs, strict=True):
            two = np.sort(np.nan_to_num(output), axis=1)[:, -2:]
            with np.errstate(over="ignore"):
                gap = (two[:, 1] - two[:, 0]) / np.maximum(np.abs(two[:, 1]), 1e-30)
            # Equal logits stay equal. The runtime's logarithm gives equal probabilities different last bits,
            # by where they lie in the batch.
            open_ |= (gap < 1e-5) & ((gap > 0) | (member.output_kind == "probabilities"))
    for stage, seen in zip(spec.stages, seen_by_core(spec, outputs), strict=True):
        open_ |= ~seen.clear
        for bound in (stage.threshold, stage.low):
            if bound is not None:
                open_ |= np.abs(seen.score - np.float32(bound)) <= tolerance
    return open_


@dataclass
class Core:
    """What the decision core answers; a row it refuses has label -1, NaN and the degraded bit."""

    answers: dict[str, np.ndarray]
    refused: np.ndarray
    asked: list[np.ndarray]


def core_answers(spec: CascadeSpec, outputs: list[np.ndarray]) -> Core:
    rows = len(outputs[0])
    run = CascadeRun(spec, capacity_rows=4)
    said = {member.name: output for member, output in zip(spec.members, outputs, strict=True)}
    columns = {
        "probabilities": np.full((rows, spec.classes), np.nan, np.float32),
        "label": np.full(rows, -1, np.int64),
        "confidence": np.full(rows, np.nan, np.float32),
        "exit_stage": np.full(rows, -1, np.int32),
        "cost": np.zeros(rows, np.float32),
        "status": np.ones(rows, np.int32),
    }
    refused = np.zeros(rows, bool)
    asked = [np.zeros(rows, bool) for _ in spec.stages]
    arrivals = arrivals_from_policies([0], [rows], policies=[Policy()], now_ns=[0], default_deadline_us=1000)
    outcome = run.admit(arrivals, [said[m.name] for m in spec.stages[0].members])
    given, source = np.arange(rows), np.zeros(0, int)
    for stage in range(len(spec.stages)):
        if stage:
            slots = run.next(stage, rows)
            if not len(slots):
                break
            given = source[slots]
            outcome = run.feed(slots, [said[m.name][given] for m in spec.stages[stage].members])
        asked[stage][given] = True
        for name, column in columns.items():
            column[outcome.answers.position] = getattr(outcome.answers, name)
        refused[given[outcome.failures.row]] = True
        place = np.zeros(run.capacity_rows, int)
        place[: len(source)] = source
        place[outcome.slots] = given[outcome.deferred]
        source = place
    return Core(columns, refused, asked)
