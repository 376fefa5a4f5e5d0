"""The decision of a cascade in numpy: mean of the logits so far, exit where the top probability is high enough.

Rows of a batch go through the stages together; those that are sure are answered and drop out. Whole arrays only,
and a batch that is sure as a whole is not copied. The rule is that of `orchestrator/decision/exit_rule.py`,
written again because a baseline must stand without it; a property test in tests/perf/routes holds the two
together.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
OUTPUTS = {
    "probabilities": np.float32,
    "label": np.int64,
    "confidence": np.float32,
    "exit_stage": np.int32,
    "cost": np.float32,
    "status": np.int32,
}


@dataclass(frozen=True)
class BaselinePlan:
    """Which members are asked, the cheapest first, by which tensors, and when a row is sure.

    Thresholds are of every stage but the last; costs of one row, up to and including each stage.
    """

    input: str
    output: str
    members: tuple[str, ...]
    thresholds: tuple[np.float32, ...]
    costs: tuple[np.float32, ...]


def plan_from_config(model_config: str) -> BaselinePlan:
    """The plan written into the parameters of a config.pbtxt, as Triton hands it to a model."""
    config = json.loads(model_config)
    texts = {name: value["string_value"] for name, value in config["parameters"].items()}
    return plan_from_parameters(texts, input_name=config["input"][0]["name"])


def plan_from_parameters(texts: Mapping[str, str], *, input_name: str) -> BaselinePlan:
    """The plan in parameters: members, thresholds and costs with commas between them, and output."""
    words = {name: text.split(",") if text else [] for name, text in texts.items()}
    return BaselinePlan(
        input=input_name,
        output=texts["output"],
        members=tuple(words["members"]),
        thresholds=tuple(np.float32(word) for word in words["thresholds"]),
        costs=tuple(np.cumsum([np.float32(word) for word in words["costs"]], dtype=np.float32)),
    )


def softmax(z: F32) -> F32:
    """Probabilities float32 (n, k) of logits."""
    p: F32 = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def top_of(p: F32) -> tuple[npt.NDArray[np.int64], F32]:
    """The most probable class of each row, (n,), and its probability, (n,)."""
    label = p.argmax(axis=1)
    return label, p[np.arange(len(p)), label]


def columns_of(
    p: F32, label: npt.NDArray[np.int64], confidence: F32, *, stage: int, cost: np.float32
) -> dict[str, npt.NDArray[Any]]:
    """The columns of an answer for rows that exit at one stage."""
    return {
        "probabilities": p,
        "label": label[:, None],
        "confidence": confidence[:, None],
        "exit_stage": np.full((len(p), 1), stage, np.int32),
        "cost": np.full((len(p), 1), cost, np.float32),
        "status": np.zeros((len(p), 1), np.int32),
    }


class Batch:
    """Rows on their way through the stages.

    Attributes:
        open: intp, the rows that still have no answer, in order.
        answers: output name -> (n, k) or (n, 1), complete once nothing is open.
    """

    def __init__(self, plan: BaselinePlan, rows: int) -> None:
        self.plan = plan
        self.open = np.arange(rows)
        self.answers: dict[str, npt.NDArray[Any]] = {}
        self._rows = rows
        self._stage = 0
        self._total: F32 | None = None

    def add(self, logits: F32) -> None:
        """Takes what the next member said of the open rows, float32 (m, k), and answers those that are sure."""
        stage, plan = self._stage, self.plan
        self._stage += 1
        total = logits if self._total is None else self._total + logits
        p = softmax(total if stage == 0 else total / np.float32(stage + 1))
        label, confidence = top_of(p)
        is_last = stage == len(plan.members) - 1
        sure = np.ones(len(p), np.bool_) if is_last else confidence >= plan.thresholds[stage]
        if sure.all():
            self._answer(self.open, p, label, confidence, stage)
            self.open = self.open[:0]
            return
        if sure.any():
            self._answer(self.open[sure], p[sure], label[sure], confidence[sure], stage)
        # Both are copies, so that the memory of the member's response is not kept.
        self.open, self._total = self.open[~sure], total[~sure]

    def _answer(
        self, place: npt.NDArray[np.intp], p: F32, label: npt.NDArray[np.int64], confidence: F32, stage: int
    ) -> None:
        columns = columns_of(p, label, confidence, stage=stage, cost=self.plan.costs[stage])
        if len(place) == self._rows:
            self.answers = columns
            return
        if not self.answers:
            self.answers = {
                name: np.empty((self._rows, columns[name].shape[1]), dtype) for name, dtype in OUTPUTS.items()
            }
        for name, column in columns.items():
            self.answers[name][place] = column
