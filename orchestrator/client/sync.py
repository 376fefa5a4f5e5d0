"""The synchronous client without its protocol, and what the asyncio client shares with it: requests, retries."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.utils import np_to_triton_dtype

from orchestrator.client.answers import (
    OutputKinds,
    Rows,
    ServedAnswers,
    answers_from_outputs,
    parameters_from_policy,
)
from orchestrator.client.balancing import BALANCING, Balancer, BalancingPolicy
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.error_mapping import FOREIGN, error_from, with_tls_reason
from orchestrator.decision import Policy
from orchestrator.errors import RefusedError, UnavailableError
from orchestrator.spec.rows import AnyRows, Places, groups_of_one_shape, ready_rows, rows_at
from orchestrator.spec.served_model import ModelInfo, chunks, model_from_json, scores_output, wanted_outputs

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
# The outputs of one request by name, and the number of its rows.
Part = tuple[dict[str, Rows], int]


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long one request may take, and when it is sent again: if the server was unavailable, ever later."""

    timeout_s: float = 30.0  # from the first attempt to the last answer
    retries: int = 3  # further attempts after the first
    first_delay_s: float = 0.05  # pause before the first retry; it doubles each time
    max_delay_s: float = 2.0  # longest pause, before jitter

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


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request: tensors (n, *dims) by name that fit the model, at most its batch limit."""

    model: str
    version: str  # an empty text leaves the choice to the server
    tensors: Mapping[str, Rows]
    places: Places | None  # of its rows among all that are asked about; None where all come in order
    wanted: Sequence[str] | None  # names of outputs; None for all
    parameters: Mapping[str, int | float]

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(next(iter(self.tensors.values())))

    def inputs(self, kind: Callable[..., Any], **options: Any) -> list[Any]:
        """The tensors as objects of tritonclient, gRPC's or HTTP's."""
        sent = []
        for name, array in self.tensors.items():
            sent.append(kind(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            sent[-1].set_data_from_numpy(array, **options)
        return sent


def requests_from_rows(
    info: ModelInfo,
    rows: AnyRows,
    *,
    wanted: Sequence[str] | None,
    parameters: Mapping[str, int | float] | None = None,
    version: int | None = None,
) -> list[Request]:
    """The requests that ask a model about rows: in order, or where lengths differ a length at a time.

    Raises:
        InputError: the rows do not fit the model.
    """
    tensors = ready_rows(info, rows)
    fixed: dict[str, Any] = {"wanted": wanted, "parameters": parameters or {}}
    fixed |= {"model": info.name, "version": _version_text(version)}
    requests = []
    for places, group in groups_of_one_shape(tensors):
        for part in chunks(len(next(iter(group.values()))), info.max_batch_size):
            at = None if places is None else places[part]
            requests.append(Request(tensors=rows_at(group, part), places=at, **fixed))
    return requests


def order_of(requests: Sequence[Request]) -> Places | None:
    """Where each row of the caller stands among the answers to all requests; None where they are in order."""
    places = [request.places for request in requests if request.places is not None]
    return np.argsort(np.concatenate(places)) if places else None


def scores_from_parts(
    parts: Sequence[Part], output: str, *, requests: Sequence[Request]
) -> npt.NDArray[np.float32]:
    """The scores of all requests, float32 (n, k), in the order of the rows."""
    scores = np.concatenate([np.asarray(outputs[output], np.float32) for outputs, _ in parts])
    order = order_of(requests)
    return scores if order is None else scores[order]


class Asker:
    """What a client knows of its servers, and whether it asks again after an error.

    Attributes:
        kinds: whether the models asked so far give logits or probabilities.
        servers: of several servers, what is known of each and its share of the requests; empty where there is one.
    """

    over_grpc = True

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout_s: float,
        retries: int,
        in_flight: int,
        balancing: BalancingPolicy = BALANCING,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self._balancer = Balancer([str(endpoint) for endpoint in endpoints if len(endpoints) > 1], balancing)
        self.servers = self._balancer.servers
        self.kinds = OutputKinds()
        self._retry_policy = RetryPolicy(timeout_s=timeout_s, retries=retries)
        self._in_flight = in_flight
        self._was_answered = False
        self._known: dict[str, ModelInfo] = {}

    def _left_s(self, start_s: float) -> float:
        return self._retry_policy.timeout_s - (time.monotonic() - start_s)

    def _pause_s(self, model: str, error: Exception, attempt: int, start_s: float) -> float:
        """The pause before a failed request is sent again; raises our error where it is not."""
        where = ", ".join(map(str, self.endpoints))
        ours = error_from(error, what=f"model {model} at {where}", endpoints=self.endpoints)
        policy = self._retry_policy
        for endpoint in () if self._was_answered else self.endpoints:
            ours = with_tls_reason(ours, endpoint, over_grpc=self.over_grpc, timeout_s=policy.timeout_s)
        if isinstance(ours, RefusedError):
            # The model may have been replaced by one of another shape, so its metadata is read again.
            for key in [key for key in self._known if key.partition("/")[0] == model]:
                del self._known[key]
            self.kinds.forget(model)
        pause_s = None
        if isinstance(ours, UnavailableError):
            pause_s = policy.delay_s(attempt, elapsed_s=time.monotonic() - start_s, jitter=random.random())
        if pause_s is None:
            raise ours from error
        return pause_s


class SyncClient(Asker):
    """Asks a server, or several of the same models; a context manager. A subclass has the calls of its protocol.

    Args:
        endpoints: of the servers. Subclasses take addresses, see `endpoints_from_addresses`.
        timeout_s: per request, retries included.
        retries: further attempts, where the server is unavailable or ends while it holds the request; asking again
            is safe, as answers change nothing on the server.
        in_flight: parts of one oversize request under way at once.
        balancing: of several servers, when one gets no requests.
    """

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections; the client cannot be used afterwards."""
        raise NotImplementedError

    def ready(self, model: str | None = None) -> bool:
        """Whether the server (and the model) would answer now; False where nobody listens."""
        try:
            return self._ready(model, self._retry_policy.timeout_s)
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
            text = _version_text(version)
            described = self._call(model, lambda left_s: self._metadata(model, text, left_s))
            info = self._known[key] = model_from_json(described, self.config(model))
        return info

    def config(self, model: str) -> dict[str, Any]:
        """The model's configuration as JSON values.

        Raises:
            ClientError: see the leaves.
        """
        return self._call(model, lambda left_s: self._config(model, left_s))

    def infer(self, model: str, rows: AnyRows, *, policy: Policy | None = None) -> ServedAnswers:
        """Answers of a cascade, an ensemble or a plain member.

        Args:
            model: Triton model name.
            rows: (n, *dims) in the model's dtype; more than its batch limit are sent in parts. Of a model with
                several inputs a mapping from each name to such an array; of text also a list of texts.
            policy: request parameters; a deadline counts for each part by itself.

        Raises:
            InputError: the rows do not fit the model.
            ClientError: see the leaves.
        """
        info = self.metadata(model)
        parameters = parameters_from_policy(policy)
        requests = requests_from_rows(info, rows, wanted=wanted_outputs(info), parameters=parameters)
        answers = answers_from_outputs(info, self._asked(requests), kinds=self.kinds)
        return answers.in_order(order_of(requests))

    def ask(
        self, name: str, rows: AnyRows, *, version: int | None = None, output: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Scores of a member as it gives them, float32 (n, k).

        Args:
            name: Triton model name.
            rows: as for `infer`.
            version: of it; None leaves the choice to the server.
            output: the tensor with the scores; None if only one of the model's outputs can be it.

        Raises:
            InputError: the rows do not fit, or the model has no single score output.
            ClientError: see the leaves.
        """
        info = self.metadata(name, version=version)
        output = output or scores_output(info)
        requests = requests_from_rows(info, rows, wanted=(output,), version=version)
        return scores_from_parts(self._asked(requests), output, requests=requests)

    def outputs(self, model: str, rows: AnyRows) -> dict[str, Rows]:
        """All outputs of a model by name, for rows of one shape that fit into one request.

        Raises:
            InputError: the rows do not fit.
            ClientError: see the leaves.
        """
        (request,) = requests_from_rows(self.metadata(model), rows, wanted=None)
        return self._sent(request)[0]

    def _asked(self, requests: Sequence[Request]) -> list[Part]:
        if len(requests) == 1:
            return [self._sent(requests[0])]
        return self._in_order(self._sent, requests)

    def _sent(self, request: Request) -> Part:
        return self._call(request.model, lambda left_s: self._infer(request, left_s)), request.rows

    def _call(self, model: str, action: Callable[[float], T]) -> T:
        """Runs an action with the seconds left, and retries while the server is unavailable and time remains."""
        start_s, attempt = time.monotonic(), 0
        while True:
            try:
                answer = action(self._left_s(start_s))
            except FOREIGN as error:
                pause_s = self._pause_s(model, error, attempt, start_s)
            else:
                self._was_answered = True
                return answer
            self._pause(pause_s)
            attempt += 1

    # The calls of one protocol, each within some seconds; its own exceptions pass.

    def _ready(self, model: str | None, timeout_s: float) -> bool:
        raise NotImplementedError

    def _metadata(self, model: str, version: str, timeout_s: float) -> dict[str, Any]:
        raise NotImplementedError

    def _config(self, model: str, timeout_s: float) -> dict[str, Any]:
        raise NotImplementedError

    def _infer(self, request: Request, timeout_s: float) -> dict[str, Rows]:
        raise NotImplementedError

    def _in_order(self, action: Callable[[Request], T], requests: Sequence[Request]) -> list[T]:
        """Runs the action on every request, several at once; results come in order."""
        raise NotImplementedError

    def _pause(self, seconds: float) -> None:
        """Waits, while other requests go on."""
        raise NotImplementedError


def _version_text(version: int | None) -> str:
    return "" if version is None else str(version)
