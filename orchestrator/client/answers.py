"""Answers and request parameters, the same for all clients and protocols."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import PARAMETERS, Policy, softmax
from orchestrator.errors import InputError, ServerFaultError
from orchestrator.spec.answer import ANSWER_COLUMNS, DEGRADED, STATUS_BITS
from orchestrator.spec.output_kind import EXCLUSIVE, PARAMETER, ScoreEvidence
from orchestrator.spec.served_model import ModelInfo, scores_output

Rows = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ServedAnswers:
    """Answers to n rows, in the order of the request.

    A row that a plain member or a native ensemble could not answer (its output was not finite) has label -1,
    NaN for probabilities and confidence, and the degraded bit; a cascade refuses such a row instead.
    """

    probabilities: npt.NDArray[np.float32]  # (n, k)
    label: npt.NDArray[np.int64]  # (n,) as all others
    confidence: npt.NDArray[np.float32]
    exit_stage: npt.NDArray[np.int32]  # 0 where the model has no stages
    cost: npt.NDArray[np.float32]  # in the plan's cost unit, 0 where the model states none
    status: npt.NDArray[np.int32]  # see `STATUS_BITS`

    def __len__(self) -> int:
        return len(self.label)

    def in_order(self, order: npt.NDArray[np.int64] | None) -> "ServedAnswers":
        """The answers in another order of the rows; None leaves them as they are."""
        if order is None:
            return self
        return ServedAnswers(**{name: column[order] for name, column in vars(self).items()})


def status_words(status: int) -> str:
    """The names of the bits that are set, joined by commas; empty for a status of 0."""
    return ", ".join(word for bit, word in STATUS_BITS.items() if status & bit)


def parameters_from_policy(policy: Policy | None) -> dict[str, int | float]:
    """The request parameters in which a policy differs from the server's defaults.

    Raises:
        InputError: a whole number too large for the protocol.
    """
    values = dataclasses.asdict(policy or Policy())
    defaults = dataclasses.asdict(Policy())
    # The policy's `left_us` is no request parameter: the server computes it from a deadline.
    wanted = {name: value for name, value in values.items() if name in PARAMETERS and value != defaults[name]}
    for name, value in wanted.items():
        if isinstance(value, int) and abs(value) >= 2**63:  # parameters are sent as int64
            raise InputError(f"request parameter {name}", got=value, expected="a whole number that fits 64 bits")
    return {name: float(value) if name == "threshold_shift" else int(value) for name, value in wanted.items()}


class OutputKinds:
    """Whether served models give logits or probabilities: by their configurations, else by the values seen so far.

    Values of all earlier requests to the model count, because a few rows of logits may look like distributions by
    chance.
    """

    def __init__(self) -> None:
        self._seen: dict[str, ScoreEvidence] = {}

    def of(self, info: ModelInfo, scores: Sequence[npt.NDArray[np.float32]]) -> str:
        """The kind of a model's scores, these included; each part is float32 (n, k)."""
        if info.answers_itself:
            return "probabilities"
        seen = self._seen.get(info.name, ScoreEvidence())
        for part in scores:
            seen = seen.with_scores(part)
        self._seen[info.name] = seen
        return info.output_kind or seen.kind

    def forget(self, model: str) -> None:
        """Drops the values seen of a model, which may have been replaced."""
        self._seen.pop(model, None)

    def note(self, info: ModelInfo) -> str | None:
        """What is doubtful about how a model's scores were taken; None where nothing is."""
        seen = self._seen.get(info.name)
        if seen is None or not seen.rows:
            return None
        where = f"parameter {PARAMETER} of its configuration"
        if info.output_kind is None:
            doubt = f" or neither, as sigmoids: {EXCLUSIVE}" if seen.in_unit_interval and not seen.adds_up else ""
            return f"{info.name} has no {where}: its scores are taken for {seen.kind} by their values{doubt}"
        if seen.contradicts(info.output_kind):
            return f"{info.name} gives {seen}, which are no {info.output_kind} as {where} says"
        return None


def answers_from_outputs(
    info: ModelInfo, parts: Sequence[tuple[Mapping[str, Rows], int]], *, kinds: OutputKinds
) -> ServedAnswers:
    """Answers from the outputs of a model: of all answer columns, or of scores alone.

    Args:
        info: the model that was asked.
        parts: for each request its outputs by name, each with a batch axis, and the number of rows it had.
        kinds: the client's record of what its models' scores are.

    Raises:
        ServerFaultError: an output is missing or has another number of rows.
    """
    scores = [_scores(info, outputs, rows) for outputs, rows in parts]
    logits = kinds.of(info, scores) == "logits"
    answers = []
    for (outputs, rows), part in zip(parts, scores, strict=True):
        given = _from_scores(part, logits=logits)
        for name, column in ANSWER_COLUMNS.items():
            if name in outputs and not column.is_vector:
                values = outputs[name]
                if values.size != rows:
                    raise _wrong_shape(info, name, values, f"[{rows}, 1]")
                given[name] = values.reshape(rows).astype(column.numpy_dtype, copy=False)
        answers.append(ServedAnswers(**given))
    return joined(answers)


def _scores(info: ModelInfo, outputs: Mapping[str, Rows], rows: int) -> npt.NDArray[np.float32]:
    name = scores_output(info)
    if name not in outputs:
        raise ServerFaultError(f"model {info.name}", got=f"no output {name} in the response", expected=name)
    scores = np.asarray(outputs[name], np.float32)
    if scores.shape[:1] != (rows,) or scores.ndim != 2:
        raise _wrong_shape(info, name, scores, f"[{rows}, classes]")
    return scores


def _wrong_shape(info: ModelInfo, output: str, values: Rows, expected: str) -> ServerFaultError:
    what = f"model {info.name} output {output}"
    return ServerFaultError(what, got=f"shape {list(values.shape)}", expected=expected)


def _from_scores(scores: npt.NDArray[np.float32], *, logits: bool) -> dict[str, Rows]:
    rows = len(scores)
    # The maximum is not finite for NaN, +inf and a row of -inf alike, all of which count as failures.
    good = np.isfinite(np.max(scores, axis=1))
    p = softmax(np.where(good[:, None], scores, np.float32(0))) if logits else scores
    if not good.all():
        p = np.where(good[:, None], p, np.float32(np.nan))
    return {
        "probabilities": p,
        "label": np.where(good, np.argmax(scores, axis=1), -1).astype(np.int64),
        "confidence": np.max(p, axis=1),
        "exit_stage": np.zeros(rows, np.int32),
        "cost": np.zeros(rows, np.float32),
        "status": np.where(good, 0, DEGRADED).astype(np.int32),
    }


def joined(parts: Sequence[ServedAnswers]) -> ServedAnswers:
    """Several `ServedAnswers` joined in order."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(ServedAnswers)]
    return ServedAnswers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
