"""What the kinds of stages share: the tensors they hand on, and the nodes all of them need."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from onnx import TensorProto, helper

from orchestrator.graphs.combining import CombineNodes, GraphBuilder, bounded, cleaned, usable_rows
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.answer import ABSTAINED, DEGRADED


@dataclass(frozen=True)
class CarriedTensors:
    """Tensors that deferred rows take to the next stage.

    Args:
        z: float32 (n, m, k), cleaned logits of the members asked so far; (n, k) where `flat`; None if not needed.
        flat: only one member was asked, and its logits are neither stacked nor bounded yet.
        good: float32 (n, m, 1), whose answer counts; None where every member's does.
        answer: the answer so far by output name; empty where no later stage falls back on it.
    """

    z: str | None = None
    flat: bool = False
    good: str | None = None
    answer: dict[str, str] = field(default_factory=dict)

    def rows(self, g: GraphBuilder, at: str) -> "CarriedTensors":
        """These tensors for some of the rows, in the graph of a branch."""
        z = None if self.z is None else g.op("Gather", self.z, at, axis=0)
        if z is not None and self.flat:
            z = g.op("Unsqueeze", bounded(g, z), g.constant([1], np.int64))
        good = None if self.good is None else g.op("Gather", self.good, at, axis=0)
        answer = {name: g.op("Gather", value, at, axis=0) for name, value in self.answer.items()}
        return CarriedTensors(z, good=good, answer=answer)


@dataclass(frozen=True)
class GraphDecision:
    """A stage's decision.

    Args:
        answer: tensors by output name, each (n, ...); what one value fits in all rows is left out ("cost" always).
        deferred: bool (n, 1), rows for the next stage; None at the last.
        carried: what those take along.
    """

    answer: dict[str, str]
    deferred: str | None
    carried: CarriedTensors


@dataclass(frozen=True)
class EarlyDecision:
    """The part of a stage's decision that is needed where every row exits, which must cost next to nothing.

    Args:
        all_sure: bool scalar, every row reaches the threshold.
        answer: as in `GraphDecision`, right where all are sure.
        rest: adds the rest of the decision to the graph of the branch in which some row is not sure.
    """

    all_sure: str
    answer: dict[str, str]
    rest: Callable[[GraphBuilder], GraphDecision]


StageDecision = GraphDecision | EarlyDecision


class StageNodes(ABC):
    """The nodes of one stage's decision, which go into `g`; subclasses choose the nodes they need."""

    def __init__(self, g: GraphBuilder, spec: CascadeSpec, stage: int, before: CarriedTensors) -> None:
        self.g = g
        self.spec = spec
        self.stage = stage
        self.before = before
        self.here = spec.stages[stage]
        self.last = stage == len(spec.stages) - 1
        self.so_far = tuple(member for one in spec.stages[: stage + 1] for member in one.members)
        self.combine = CombineNodes(g, combine=spec.combine, score=spec.score, classes=spec.classes)

    @abstractmethod
    def decision(self, logits: Sequence[str]) -> StageDecision:
        """The decision, from float32 (n, k) of the stage's members in plan order before their temperatures."""

    def scaled(self, member: Member, z: str) -> str:
        """Logits over the member's temperature."""
        return z if member.temperature == 1 else self.g.op("Div", z, self.g.constant(member.temperature))

    def stacked(self, logits: Sequence[str]) -> str:
        """Logits of this stage's members over their temperatures, float32 (n, m, k)."""
        g = self.g
        scaled = [self.scaled(member, z) for member, z in zip(self.here.members, logits, strict=True)]
        axis = g.constant([1], np.int64)
        return self.joined(*(g.op("Unsqueeze", z, axis) for z in scaled))

    def joined(self, *parts: str | None) -> str:
        """The given tensors joined to (n, m, k)."""
        given = [part for part in parts if part is not None]
        return given[0] if len(given) == 1 else self.g.op("Concat", *given, axis=1)

    def combined(
        self, z: str, new: str, *, good: str | None = None, new_good: str | None = None
    ) -> tuple[str, ...]:
        """Probabilities (n, k), label (n, 1) and score (n, 1), undefined in rows that no member answered.

        `z` has cleaned logits of all members so far, float32 (n, m, k), `new` those of this stage's members;
        `good` and `new_good` say whose answers count among them, None where all do.
        """
        everything = WeightedMembers(self.g, self.so_far, z, good)
        newest = WeightedMembers(self.g, self.here.members, new, new_good)
        one = newest if self.spec.combine == "last" else everything
        p, ranking = self.combine.combined(one.z, members=len(one.members), weights=one.weights, asked=one.asked)
        label = self.combine.label(ranking)
        if self.spec.score != "agreement":
            return p, label, self.combine.score_of_probabilities(p, label)
        score = self.combine.agreement(label, z=everything.z, weights=everything.weights, asked=everything.asked)
        return p, label, score

    @property
    def threshold(self) -> float:
        """The stage's threshold, infinite for none."""
        return math.inf if self.here.threshold is None else self.here.threshold

    def unsure(self, g: GraphBuilder, score: str) -> str:
        """Neither at or above the threshold, nor in the window below: bool (n, 1). A NaN compares false."""
        below = g.op("Less", score, g.constant(self.threshold))
        if self.here.low is None:
            return below
        return g.op("And", below, g.op("Greater", score, g.constant(self.here.low)))

    def status(self, g: GraphBuilder, degraded: str, *, score: str, usable: str | None = None) -> str:
        """int32 (n, 1) from bool (n, 1); the score counts where it is no NaN and `usable`."""
        bits = g.op("Cast", degraded, to=TensorProto.INT32)
        assert DEGRADED == 1
        if self.here.low is None:
            return bits
        doubtful = g.op("LessOrEqual", score, g.constant(self.here.low))
        if usable is not None:
            doubtful = g.op("And", doubtful, usable)
        abstained = g.op("Mul", g.op("Cast", doubtful, to=TensorProto.INT32), g.constant(ABSTAINED, np.int32))
        return g.op("Add", bits, abstained)


class WeightedMembers:
    """Members to combine, and their weights; nodes are added when they are first needed."""

    def __init__(self, g: GraphBuilder, members: Sequence[Member], z: str, good: str | None) -> None:
        self.g = g
        self.members = members
        self.z = z
        self._good = good

    @cached_property
    def weights(self) -> str:
        """(n, m, 1), or (1, m, 1) where every member counts in every row."""
        weights = self.g.constant([[[member.weight] for member in self.members]])
        return weights if self._good is None else self.g.op("Mul", self._good, weights)

    @cached_property
    def asked(self) -> str:
        """Sum of the weights, (n, 1) or (1, 1)."""
        if self._good is not None:
            return self.g.over("ReduceSum", self.weights, 1)
        return self.g.constant([[np.sum([member.weight for member in self.members], dtype=np.float32)]])


def add_stage_decision(
    g: GraphBuilder, spec: CascadeSpec, *, stage: int, logits: Sequence[str], before: CarriedTensors
) -> StageDecision:
    """Adds a stage's decision from float32 (n, k) logits of its members in plan order, before temperatures."""
    alone = len(spec.stages[stage].members) == 1 and (stage == 0 or spec.combine == "last")
    kind: type[StageNodes] = _Strict
    if any(one.on_failure == "answer" for one in spec.stages):
        kind = _Lenient
    elif alone and spec.combine != "vote" and spec.score != "agreement":
        kind = _Alone
    return kind(g, spec, stage, before).decision(logits)


class _Alone(StageNodes):
    """One member and nothing to combine it with, in as few nodes as possible: most rows exit here."""

    def decision(self, logits: Sequence[str]) -> StageDecision:
        g = self.g
        z = self.scaled(self.here.members[0], logits[0])
        p = g.op("Softmax", z, axis=1)
        top, at = f"{g.prefix}top", f"{g.prefix}top_at"
        g.nodes.append(helper.make_node("TopK", [p, g.constant([1], np.int64)], [top, at], axis=1))
        score = top
        if self.spec.score != "max_prob":
            other = self.combine.score_of_probabilities(p, at)
            score = g.op("Where", g.op("IsNaN", top), g.constant(math.nan), other)
        answer = {"probabilities": p, "label": at, "confidence": score}
        carried = CarriedTensors() if self.spec.combine == "last" else CarriedTensors(z, flat=True)
        rest = partial(self._rest, top=top, answer=answer, carried=carried)
        if self.last:
            return rest(g)
        sure = g.op("GreaterOrEqual", score, g.constant(self.threshold))
        # As bytes, since no runtime reduces booleans in this opset. A NaN score compares false, so it is not sure.
        least = g.op("ReduceMin", g.op("Cast", sure, to=TensorProto.UINT8), keepdims=0)
        return EarlyDecision(g.op("Cast", least, to=TensorProto.BOOL), answer, rest)

    def _rest(self, g: GraphBuilder, top: str, answer: dict[str, str], carried: CarriedTensors) -> GraphDecision:
        """The part of the decision that is needed where some row is not sure."""
        # Softmax turns a NaN, a +inf or a row of -inf into a row of NaN, so one test replaces the core's three.
        bad = g.op("IsNaN", top)
        score = answer["confidence"]
        label = g.op("Where", bad, g.constant(-1, np.int64), answer["label"])
        full = {**answer, "label": label, "status": self.status(g, bad, score=score)}
        return GraphDecision(full, None if self.last else self.unsure(g, score), carried)


class _Strict(StageNodes):
    """Several members, all of which must answer (`on_failure: error`)."""

    def decision(self, logits: Sequence[str]) -> GraphDecision:
        g = self.g
        raw = self.stacked(logits)
        good = usable_rows(g, raw)
        new = cleaned(g, raw, good)
        z = self.joined(self.before.z, new)
        p, label, score = self.combined(z, new)
        usable = g.op("Cast", g.over("ReduceMin", good, 1), to=TensorProto.BOOL)
        nan = g.constant(math.nan)
        score = g.op("Where", usable, score, nan)
        answer = {
            "probabilities": g.op("Where", usable, p, nan),
            "label": g.op("Where", usable, label, g.constant(-1, np.int64)),
            "confidence": score,
            "status": self.status(g, g.op("Not", usable), score=score),
        }
        return GraphDecision(answer, None if self.last else self.unsure(g, score), CarriedTensors(z))


class _Lenient(StageNodes):
    """Several members; where a stage says `on_failure: answer`, those that answered decide.

    What one member says of one row can be no number while the rest of the batch is; that is the only way in which
    a member fails alone inside one graph.
    """

    def decision(self, logits: Sequence[str]) -> GraphDecision:
        g = self.g
        raw = self.stacked(logits)
        good = usable_rows(g, raw)
        new = cleaned(g, raw, good)
        z, all_good = self.joined(self.before.z, new), self.joined(self.before.good, good)
        p, label, score = self.combined(z, new, good=all_good, new_good=good)
        failed = g.op("Not", g.op("Cast", g.over("ReduceMin", good, 1), to=TensorProto.BOOL))
        usable = self._any_of(good) if self.here.on_failure == "answer" else g.op("Not", failed)
        answer = self._answer(p, label, score, usable=usable)
        degraded = failed
        if self.before.answer:
            # A deferred row can have no other bit than degraded.
            degraded = g.op("Or", failed, g.op("Cast", self.before.answer["status"], to=TensorProto.BOOL))
        answer["status"] = self.status(g, degraded, score=score, usable=usable)
        deferred = None if self.last else self._deferred(score, usable, all_good)
        return GraphDecision(answer, deferred, CarriedTensors(z, good=all_good, answer=answer))

    def _answer(self, p: str, label: str, score: str, *, usable: str) -> dict[str, str]:
        """This stage's answer where it has one, else that of the stage before, or none."""
        g, nan = self.g, self.g.constant(math.nan)
        none = {"probabilities": nan, "label": g.constant(-1, np.int64), "confidence": nan}
        lenient = self.here.on_failure == "answer"
        fallback = self.before.answer if lenient and self.before.answer else none
        answer = {
            name: g.op("Where", usable, value, fallback[name])
            for name, value in (("probabilities", p), ("label", label), ("confidence", score))
        }
        stage = g.constant([[self.stage]], np.int32)
        if lenient and self.before.answer:
            answer["exit_stage"] = g.op("Where", usable, stage, self.before.answer["exit_stage"])
        else:
            answer["exit_stage"] = g.filled(g.op("Shape", label), np.int32(self.stage))
        return answer

    def _any_of(self, good: str) -> str:
        return self.g.op("Cast", self.g.over("ReduceMax", good, 1), to=TensorProto.BOOL)

    def _deferred(self, score: str, usable: str, all_good: str) -> str:
        unsure = self.g.op("And", self.unsure(self.g, score), usable)
        if self.here.on_failure != "answer":
            return unsure
        return self.g.op("Or", unsure, self.g.op("Not", self._any_of(all_good)))
