"""Logits or probabilities: decided by a member's graph and by its values on the rows of its parity."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from orchestrator.errors import ExportError
from orchestrator.graphs.ending import LOGITS, PROBABILITIES, SIGMOID, ending_of
from orchestrator.spec.output_kind import EXCLUSIVE, OUTPUT_KINDS, ScoreEvidence

AUTO = "auto"
CHOICES = (AUTO, *OUTPUT_KINDS)
Rows = npt.NDArray[Any]
Reference = Callable[[Rows], npt.NDArray[np.float32]]


class ObservedReference:
    """A model whose scores are collected as evidence while it is asked.

    Args:
        ask: (n, *dims) -> float32 (n, k).
    """

    def __init__(self, ask: Reference) -> None:
        self._ask = ask
        self.evidence = ScoreEvidence()

    def __call__(self, rows: Rows) -> npt.NDArray[np.float32]:
        """The scores of rows."""
        scores = self._ask(rows)
        if scores.ndim == 2:
            self.evidence = self.evidence.with_scores(scores)
        return scores


def output_kind_of(model: onnx.ModelProto, evidence: ScoreEvidence, *, asked: str, subject: str) -> str:
    """The kind of a member's only output.

    Values decide wherever they can: rows that differ and are all distributions are probabilities, whatever gives
    them. The graph decides where they cannot, as for a head that answers every row alike.

    Args:
        model: its graph.
        evidence: its scores on many rows.
        asked: "auto", or the kind that the user names.
        subject: the source, for messages.

    Returns:
        "logits" or "probabilities".

    Raises:
        ExportError: it is neither, or not what the user names.
    """
    ending, operator = ending_of(model.graph, model.graph.output[0].name) or (None, "")
    _require_exclusive(ending, operator, evidence, asked=asked, subject=subject)
    kind = _kind_found(ending, evidence)
    # A layer without bounds may give distributions, as a regression on one-hot targets does, and a constant head
    # may be either: then the user is believed.
    either = evidence.adds_up and (ending == LOGITS or (ending is None and not evidence.varies))
    if asked in (AUTO, kind) or either:
        return kind if asked == AUTO else asked
    because = f"a graph that ends in {operator}, and {evidence}" if ending == kind else str(evidence)
    raise ExportError(
        f"{subject} `output_kind` {asked}",
        got=because,
        expected="values from 0 to 1 that add up to 1" if asked == PROBABILITIES else "logits",
        fix=f"leave the option out, they are {kind}",
    )


def _kind_found(ending: str | None, evidence: ScoreEvidence) -> str:
    if ending == PROBABILITIES:
        return PROBABILITIES
    # Equal rows are no evidence: a bias may happen to add up to 1. Behind a layer without bounds, the sums have to
    # agree better than the scores do.
    conclusive = evidence.sums_agree if ending == LOGITS else evidence.varies
    return evidence.kind if conclusive else LOGITS


def _require_exclusive(
    ending: str | None, operator: str, evidence: ScoreEvidence, *, asked: str, subject: str
) -> None:
    """Raises ExportError for sigmoids, percentages, and rows from 0 to 1 that do not add up."""
    _require_upright(ending, evidence, asked=asked, subject=subject)
    if ending == SIGMOID and not _is_pair(evidence):
        raise ExportError(
            f"{subject} output",
            got=f"a graph that ends in {operator}, sigmoids of classes by themselves ({evidence})",
            expected=f"a softmax over all classes, or logits: {EXCLUSIVE}",
            fix="export a network trained for exclusive classes; of a yes-or-no one two columns, 1 - p and p",
        )
    if ending == PROBABILITIES and not evidence.adds_up:
        raise ExportError(
            f"{subject} output",
            got=f"a graph that ends in {operator}, but {evidence}",
            expected="rows that add up to 1: a softmax over the classes, the last axis",
            fix="export it again with the softmax over the classes, or without it",
        )
    parts = evidence.low >= 0 and evidence.low_sum > 1 and evidence.sums_agree
    if ending is None and parts and asked != LOGITS:
        raise ExportError(
            f"{subject} output",
            got=f"{evidence}, as percentages do",
            expected="rows that add up to 1, or logits",
            fix="divide them by that, or say `output_kind` logits if they are logits all the same",
        )
    shares = evidence.in_unit_interval and evidence.varies and not evidence.adds_up
    if ending is None and shares and asked != LOGITS:
        raise ExportError(
            f"{subject} output",
            got=f"{evidence}, as sigmoids give",
            expected=f"rows that add up to 1, or logits: {EXCLUSIVE}",
            fix="say `output_kind` logits if these are logits of exclusive classes all the same",
        )


def _require_upright(ending: str | None, evidence: ScoreEvidence, *, asked: str, subject: str) -> None:
    """Raises ExportError for -log p, whose largest is the least likely class, and for scaled p such as 2p - 1."""
    if evidence.is_negative_log:
        raise ExportError(
            f"{subject} output",
            got=f"{evidence}, negative log-probabilities: exp(-score) adds up to 1",
            expected="logits, log-probabilities or probabilities, whose largest is the likeliest class",
            fix="export it again without the last minus sign",
        )
    parts = evidence.low >= 0 and evidence.low_sum > 1
    if ending is None and evidence.adds_up_otherwise and not parts and asked != LOGITS:
        raise ExportError(
            f"{subject} output",
            got=f"{evidence}, as shifted or scaled probabilities do",
            expected="rows that add up to 1, or logits",
            fix="export the probabilities themselves, or say `output_kind` logits if they are logits all the same",
        )


def _is_pair(evidence: ScoreEvidence) -> bool:
    """Whether two sigmoids are those of x and -x, which together are a softmax."""
    return evidence.classes == 2 and evidence.adds_up and evidence.varies
