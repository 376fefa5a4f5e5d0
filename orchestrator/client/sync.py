"""The synchronous client without its protocol: checking rows, splitting them into requests, retrying, ordering."""

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.client.answers import (
    OutputKinds,
    Rows,
    ServedAnswers,
    answers_from_outputs,
    parameters_from_policy,
)
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.error_mapping import FOREIGN, error_from, with_tls_reason
from orchestrator.decision import Policy
from orchestrator.errors import RefusedError, UnavailableError
from orchestrator.spec.served_model import (
    ModelInfo,
    TensorInfo,
    check_rows,
    chunks,
    model_from_json,
    scores_output,
    wanted_outputs,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
Wanted = Sequence[str] | None
Parameters = Mapping[str, int | float]
Outputs = dict[str, Rows]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one request may take, and when it is sent again: if the server was unavailable, ever more slowly.

    Args:
        timeout_s: from the first attempt to the last answer.
        retries: further attempts after the first.
        first_delay_s: pause before the first retry; it doubles each time.
        max_delay_s: longest pause, before jitter.
    """

    timeout_s: float = 30.0
    retries: int = 3
    first_delay_s: float = 0.05
    max_delay_s: float = 2.0

    def delay_s(self, attempt: int, *, elapsed_s: float, jitter: float) -> float | None:
        """The pause after a failed attempt, or None to give up.

        Args:
            attempt: 0 for the first.
            elapsed_s: since the first attempt began.
            jitter: uniform in [0, 1). It makes the pause 0.5 to 1.5 times as long, so that clients which failed
                together do not retry together.
        """
        if attempt >= self.retries:
            return None
        pause = min(self.max_delay_s, self.first_delay_s * 2.0**attempt) * (0.5 + jitter)
        return None if elapsed_s + pause >= self.timeout_s else pause


class Transport(Protocol):
    """The calls of one protocol, whose exceptions pass."""

    endpoint: Endpoint
    over_grpc: bool

    def ready(self, model: str | None, *, timeout_s: float) -> bool:
        """Whether the server (and the model) is ready."""
        ...

    def metadata(self, model: str, *, version: str, timeout_s: float) -> dict[str, Any]:
        """The model's metadata as JSON values; an empty version leaves the choice to the server."""
        ...

    def config(self, model: str, *, timeout_s: float) -> dict[str, Any]:
        """The model's configuration as JSON values."""
        ...

    def infer(
        self,
        model: str,
        rows: Rows,
        *,
        version: str,
        tensor: TensorInfo,
        wanted: Wanted,
        parameters: Parameters,
        timeout_s: float,
    ) -> Outputs:
        """The wanted outputs of one request; an empty version leaves the choice to the server."""
        ...

    def in_order(self, action: Callable[[slice], T], parts: Sequence[slice], *, in_flight: int) -> list[T]:
        """Runs the action on every part, several at once, and returns the results in order."""
        ...

    def pause(self, seconds: float) -> None:
        """Waits, while other parts go on."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...


class SyncClient:
    """Asks one server; usable as a context manager.

    Args:
        transport: the calls of a protocol.
        timeout_s: per request, retries included.
        retries: further attempts, on UNAVAILABLE only.
        in_flight: chunks of one oversize request under way at once.

    Attributes:
        kinds: whether the models asked so far give logits or probabilities.
    """

    def __init__(self, transport: Transport, *, timeout_s: float, retries: int, in_flight: int) -> None:
        self._transport = transport
        self._retry_policy = RetryPolicy(timeout_s=timeout_s, retries=retries)
        self._in_flight = in_flight
        self._was_answered = False
        self._known: dict[str, ModelInfo] = {}
        self.kinds = OutputKinds()

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; the client cannot be used afterwards."""
        self._transport.close()

    def ready(self, model: str | None = None) -> bool:
        """Whether the server (and the model) would answer now; False where nobody listens."""
        try:
            return self._transport.ready(model, timeout_s=self._retry_policy.timeout_s)
        except FOREIGN:
            return False

    def metadata(self, model: str, *, version: int | None = None) -> ModelInfo:
        """The model's tensors and batch limit, cached until the server refuses a request to it.

        Args:
            model: Triton model name.
            version: of it; None leaves the choice to the server.

        Raises:
            ClientError: see the leaves.
        """
        key = model if version is None else f"{model}/{version}"
        info = self._known.get(key)
        if info is None:
            described = self._call(
                model,
                lambda left_s: self._transport.metadata(model, version=_version_text(version), timeout_s=left_s),
            )
            info = self._known[key] = model_from_json(described, self.config(model))
        return info

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration as JSON values.

        Raises:
            ClientError: see the leaves.
        """
        return self._call(model, lambda left_s: self._transport.config(model, timeout_s=left_s))

    def infer(self, model: str, rows: Rows, *, policy: Policy | None = None) -> ServedAnswers:
        """Answers of a cascade, an ensemble or a plain member.

        Args:
            model: Triton model name.
            rows: (n, *dims) in the model's dtype; more than its batch limit are sent in parts.
            policy: request parameters; a deadline counts for each part by itself.

        Raises:
            InputError: the rows do not fit the model.
            ClientError: see the leaves.
        """
        info = self.metadata(model)
        parameters = parameters_from_policy(policy)
        wanted = wanted_outputs(info)
        parts = self._ask_parts(info, rows, wanted=wanted, parameters=parameters)
        return answers_from_outputs(info, parts, kinds=self.kinds)

    def ask(
        self, name: str, rows: Rows, *, version: int | None = None, output: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Scores of a member as it gives them, float32 (n, k).

        Args:
            name: Triton model name.
            rows: (n, *dims).
            version: of it; None leaves the choice to the server.
            output: the tensor with the scores; None if only one of the model's outputs can be it.

        Raises:
            InputError: the rows do not fit, or the model has no single score output.
            ClientError: see the leaves.
        """
        info = self.metadata(name, version=version)
        output = output or scores_output(info)
        parts = self._ask_parts(info, rows, wanted=(output,), parameters={}, version=version)
        return np.concatenate([np.asarray(outputs[output], np.float32) for outputs, _ in parts])

    def _ask_parts(
        self, info: ModelInfo, rows: Rows, *, wanted: Wanted, parameters: Parameters, version: int | None = None
    ) -> list[tuple[Outputs, int]]:
        tensor = check_rows(info, rows)
        fixed: dict[str, Any] = {
            "version": _version_text(version),
            "tensor": tensor,
            "wanted": wanted,
            "parameters": parameters,
        }

        def ask(part: slice) -> tuple[Outputs, int]:
            chunk = rows[part]
            outputs = self._call(
                info.name, lambda left_s: self._transport.infer(info.name, chunk, timeout_s=left_s, **fixed)
            )
            return outputs, len(chunk)

        parts = chunks(len(rows), info.max_batch_size)
        if len(parts) == 1:
            return [ask(parts[0])]
        return self._transport.in_order(ask, parts, in_flight=self._in_flight)

    def _call(self, model: str, action: Callable[[float], T]) -> T:
        """Runs an action with the seconds left, and retries while the server is unavailable and time remains."""
        start = time.monotonic()
        for attempt in itertools.count():
            elapsed_s = time.monotonic() - start
            try:
                return self._translated(model, action, self._retry_policy.timeout_s - elapsed_s)
            except UnavailableError:
                elapsed_s = time.monotonic() - start
                pause_s = self._retry_policy.delay_s(attempt, elapsed_s=elapsed_s, jitter=random.random())
                if pause_s is None:
                    raise
            self._transport.pause(pause_s)
        raise AssertionError("unreachable: the loop ends by return or raise")

    def _translated(self, model: str, action: Callable[[float], T], left_s: float) -> T:
        endpoint = self._transport.endpoint
        try:
            answer = action(left_s)
        except FOREIGN as error:
            ours = error_from(error, what=f"model {model} at {endpoint}", endpoint=endpoint)
            if not self._was_answered:
                over_grpc, timeout_s = self._transport.over_grpc, self._retry_policy.timeout_s
                ours = with_tls_reason(ours, endpoint, over_grpc=over_grpc, timeout_s=timeout_s)
            if isinstance(ours, RefusedError):
                # The model may have been replaced by one of another shape, so its metadata is read again.
                for key in [key for key in self._known if key.partition("/")[0] == model]:
                    del self._known[key]
                self.kinds.forget(model)
            raise ours from error
        self._was_answered = True
        return answer


def _version_text(version: int | None) -> str:
    """The version as the protocol wants it; an empty text leaves the choice to the server."""
    return "" if version is None else str(version)
