"""One stage's decision as nodes: the answer of every row, and which rows go on.

Rules of this file: the nodes compute what `orchestrator.decision` computes. A row that the decision core refuses
(a member gave it NaN, +inf or nothing but -inf) cannot be refused here: it gets label -1, NaN for probabilities
and confidence, and the degraded bit, and it goes no further.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from export.onefile.deciding import Carried, Glance, Settled, StageNodes
from orchestrator.graphs.pieces import Graph, cleaned, good_rows
from orchestrator.spec import CascadeSpec


def settled_stage(
    g: Graph, spec: CascadeSpec, *, stage: int, logits: Sequence[str], before: Carried
) -> Settled | Glance:
    """Adds the decision of a stage.

    Args:
        g: the graph.
        spec: the cascade.
        stage: which one.
        logits: float32 (n, k) of its members in plan order, before their temperatures.
        before: of the stages before it, for the same rows.
    """
    kind = _kind(spec, stage)
    return kind(g, spec, stage, before).settled(logits)


def _kind(spec: CascadeSpec, stage: int) -> type[StageNodes]:
    if any(one.on_failure == "answer" for one in spec.stages):
        return _Lenient
    alone = len(spec.stages[stage].members) == 1 and (stage == 0 or spec.combine == "last")
    return _Alone if alone and spec.combine != "vote" and spec.score != "agreement" else _Strict


class _Alone(StageNodes):
    """One member and nothing to combine it with: the way every sure row goes, in as few nodes as there can be."""

    def settled(self, logits: Sequence[str]) -> Settled | Glance:
        g = self.g
        z = self.scaled(self.here.members[0], logits[0])
        p = g.op("Softmax", z, axis=1)
        top, at = f"{g.prefix}top", f"{g.prefix}top_at"
        g.nodes.append(helper.make_node("TopK", [p, g.constant([1], np.int64)], [top, at], axis=1))
        answer = {"probabilities": p, "label": at, "confidence": self._score(p, top, at)}
        carried = Carried() if self.spec.combine == "last" else Carried(z, flat=True)

        def closer(inner: Graph) -> Settled:
            return self._closer(inner, top, answer, carried)

        if self.last:
            return closer(g)
        sure = g.op("GreaterOrEqual", answer["confidence"], g.constant(self.threshold))
        # Of bytes: no runtime reduces booleans in this opset. NaN is not sure, and no minimum can lose a 0.
        least = g.op("ReduceMin", g.op("Cast", sure, to=TensorProto.UINT8), keepdims=0)
        return Glance(g.op("Cast", least, to=TensorProto.BOOL), answer, closer)

    def _score(self, p: str, top: str, at: str) -> str:
        if self.spec.score == "max_prob":
            return top
        g = self.g
        return g.op("Where", g.op("IsNaN", top), g.constant(math.nan), self.verdicts.score_of_probabilities(p, at))

    def _closer(self, g: Graph, top: str, answer: dict[str, str], carried: Carried) -> Settled:
        """The part that matters only where some row is not sure, in whichever graph."""
        # Softmax makes one NaN, +inf or nothing but -inf into a row of NaN, so the core's three tests are one.
        bad = g.op("IsNaN", top)
        score = answer["confidence"]
        label = g.op("Where", bad, g.constant(-1, np.int64), answer["label"])
        full = {**answer, "label": label, "status": self.status(g, bad, score=score)}
        return Settled(full, None if self.last else self.unsure(g, score), carried)


class _Strict(StageNodes):
    """Any members, each of which must answer."""

    def settled(self, logits: Sequence[str]) -> Settled:
        g = self.g
        raw = self.stacked(logits)
        good = good_rows(g, raw)
        new = cleaned(g, raw, good)
        z = self.joined(self.before.z, new)
        p, label, score = self.verdict(z, new)
        usable = g.op("Cast", g.over("ReduceMin", good, 1), to=TensorProto.BOOL)
        nan = g.constant(math.nan)
        score = g.op("Where", usable, score, nan)
        answer = {
            "probabilities": g.op("Where", usable, p, nan),
            "label": g.op("Where", usable, label, g.constant(-1, np.int64)),
            "confidence": score,
            "status": self.status(g, g.op("Not", usable), score=score),
        }
        return Settled(answer, None if self.last else self.unsure(g, score), Carried(z))


class _Lenient(StageNodes):
    """Any members, of which those that answered count where the stage allows it (`on_failure: answer`).

    What one member says of one row can be no number while the rest of the batch is; that is the only way in which
    a member fails alone inside one graph.
    """

    def settled(self, logits: Sequence[str]) -> Settled:
        g = self.g
        raw = self.stacked(logits)
        good = good_rows(g, raw)
        new = cleaned(g, raw, good)
        z, all_good = self.joined(self.before.z, new), self.joined(self.before.good, good)
        p, label, score = self.verdict(z, new, good=all_good, new_good=good)
        hurt = g.op("Not", g.op("Cast", g.over("ReduceMin", good, 1), to=TensorProto.BOOL))
        if self.here.on_failure == "answer":
            usable = g.op("Cast", g.over("ReduceMax", good, 1), to=TensorProto.BOOL)
        else:
            usable = g.op("Not", hurt)
        answer = self._answer(p, label, score, usable=usable)
        degraded = hurt
        if self.before.answer:
            # Degraded is the only bit that a row which went on can have.
            degraded = g.op("Or", hurt, g.op("Cast", self.before.answer["status"], to=TensorProto.BOOL))
        answer["status"] = self.status(g, degraded, score=score, usable=usable)
        goes_on = None if self.last else self._goes_on(score, usable, all_good)
        return Settled(answer, goes_on, Carried(z, good=all_good, answer=answer))

    def _answer(self, p: str, label: str, score: str, *, usable: str) -> dict[str, str]:
        """This stage's answer where it has one, else the one before, or none."""
        g = self.g
        nan = g.constant(math.nan)
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

    def _goes_on(self, score: str, usable: str, all_good: str) -> str:
        g = self.g
        unsure = g.op("And", self.unsure(g, score), usable)
        if self.here.on_failure != "answer":
            return unsure
        nobody = g.op("Not", g.op("Cast", g.over("ReduceMax", all_good, 1), to=TensorProto.BOOL))
        return g.op("Or", unsure, nobody)
