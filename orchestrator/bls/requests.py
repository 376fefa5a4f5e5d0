"""Requests: read and checked, each alone, and kept until they are answered, each exactly once."""

import itertools
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.decision import DEFAULT, PARAMETERS, ForwardedHeaders, Policy, policy_from_parameters
from orchestrator.errors import InputError
from orchestrator.spec import CascadeSpec
from orchestrator.spec.answer import ANSWER_COLUMNS

Rows = npt.NDArray[Any]
Columns = dict[str, Rows]
INVALID, UNAVAILABLE, INTERNAL, CANCELLED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "CANCELLED"
# Nearly every request wants all outputs, and one set for them is cheaper than one each.
ALL_OUTPUTS = frozenset(ANSWER_COLUMNS)
NO_ROWS: Rows = np.zeros(0)
# What bytes that are no UTF-8 become.
_REPLACED = "\ufffd"


@dataclass(slots=True)
class PendingRequest:
    """One request with everything needed to answer it.

    Args:
        token: unique while the model is loaded.
        place: its index in the list `execute` got.
        request: the server's request.
        tensor, rows: its input, valid until it is answered.
        policy: what it asked for.
        is_plain: whether its rows are decided as the plan has it.
        arrived_ns: monotonic clock at entry.
        deadline_ns: when its best answer so far is due, on that clock; None for no deadline.
        wanted: output names to send.
        count: number of rows.
        unanswered: rows without an answer.
        partial_outputs: answers so far, made where not all rows are answered at once.
    """

    token: int
    place: int
    request: Any
    tensor: Any
    rows: Any
    policy: Policy
    is_plain: bool
    arrived_ns: int
    deadline_ns: int | None
    wanted: frozenset[str]
    count: int
    unanswered: int
    partial_outputs: Columns | None = None

    def time_left_ns(self, now_ns: int) -> int | None:
        """Time until the point in Unix time that it named as its deadline; None where it named none."""
        left_us = self.policy.left_us
        return None if left_us is None else self.arrived_ns + left_us * 1000 - now_ns


class PendingRequests:
    """Requests without an answer. Whoever pops one answers it, so each is answered exactly once.

    `add` and `pop` are single operations of a dict, which threads see as a whole, and need no lock. The clock's
    thread walks through the deadlines that are watched: a watched request is popped under the scheduler's lock.
    """

    def __init__(self) -> None:
        self._by_token: dict[int, PendingRequest] = {}
        self._deadlines_ns: dict[int, int] = {}  # by token

    def __contains__(self, request: PendingRequest) -> bool:
        return request.token in self._by_token

    def __len__(self) -> int:
        return len(self._by_token)

    def get(self, token: int) -> PendingRequest | None:
        """The request, if it still waits."""
        return self._by_token.get(token)

    def all(self) -> list[PendingRequest]:
        """Every request that waits."""
        return list(self._by_token.values())

    def add(self, request: PendingRequest) -> None:
        """Keeps a request until it is popped."""
        self._by_token[request.token] = request

    def pop(self, request: PendingRequest) -> bool:
        """Takes a request out, which is then the caller's to answer; False where somebody else has done so."""
        if request.deadline_ns is not None:
            self._deadlines_ns.pop(request.token, None)
        return self._by_token.pop(request.token, None) is not None

    def watch_deadlines(self, requests: Iterable[PendingRequest]) -> None:
        """From now on `late` names these when their time has come."""
        for request in requests:
            if request in self and request.deadline_ns is not None:
                self._deadlines_ns[request.token] = request.deadline_ns

    @property
    def next_deadline_ns(self) -> int | None:
        """The earliest deadline watched, on the monotonic clock."""
        return min(self._deadlines_ns.values(), default=None)

    def late(self, now_ns: int) -> list[PendingRequest]:
        """Requests whose deadline has come; each is named once, and still waits."""
        tokens = [token for token, deadline_ns in self._deadlines_ns.items() if deadline_ns <= now_ns]
        for token in tokens:
            del self._deadlines_ns[token]
        return [self._by_token[token] for token in tokens if token in self._by_token]


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A request that cannot be taken.

    Args:
        place: its index in the list `execute` got.
        message: one line for the client.
        code: name of the server's error code.
    """

    place: int
    message: str
    code: str = INVALID


class RequestReader:
    """Checks and reads requests.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec) -> None:
        self._pb = pb_utils
        self._input = spec.input
        self._dtype = np.dtype(spec.input.numpy_dtype)
        self._rejects_non_finite = spec.input.non_finite == "reject" and self._dtype.kind == "f"
        self._stages = len(spec.stages)
        self._gears = 1 if spec.gears is None else 1 + len(spec.gears.cheaper)
        self._headers = ForwardedHeaders(PARAMETERS, spec.header_pattern)
        self._tokens = itertools.count()

    def read_all(self, requests: Sequence[Any]) -> tuple[list[PendingRequest], Rows, list[RefusedRequest]]:
        """Valid requests, all their rows (n, *dims), and the others: a bad request never harms its neighbours."""
        now_ns = time.monotonic_ns()
        batch: list[PendingRequest] = []
        refused: list[RefusedRequest] = []
        for place, request in enumerate(requests):
            try:
                batch.append(self._read(request, place, now_ns=now_ns))
            except InputError as error:
                refused.append(RefusedRequest(place, str(error)))
            except UnicodeDecodeError:
                refused.append(RefusedRequest(place, str(InputError("request", got="bytes that are not UTF-8"))))
            except Exception as error:  # raising would fail the whole batch, and the server would keep it
                refused.append(RefusedRequest(place, f"cascade failed: {type(error).__name__}: {error}", INTERNAL))
        rows = merged([one.rows for one in batch]) if batch else NO_ROWS
        # One look at all rows; which of them are bad is only asked where one is.
        if not batch or self._is_finite(rows):
            return batch, rows, refused
        faults = [self._non_finite_fault(one.rows) for one in batch]
        refused += [RefusedRequest(one.place, fault) for one, fault in zip(batch, faults, strict=True) if fault]
        batch = [one for one, fault in zip(batch, faults, strict=True) if fault is None]
        return batch, merged([one.rows for one in batch]) if batch else NO_ROWS, refused

    def count_rows(self, request: Any) -> int:
        """Rows of a request, whatever is wrong with it; 0 where that cannot be told."""
        try:
            tensor = self._pb.get_input_tensor_by_name(request, self._input.name)
            shape = () if tensor is None else tensor.as_numpy().shape
        except Exception:  # a tensor of text, say, that is no UTF-8
            return 0
        return int(shape[0]) if shape else 0

    def policy_of(self, request: Any) -> Policy:
        """What a request asks for, whatever headers came with it.

        Raises:
            InputError: an unknown parameter, or a value of the wrong type or out of range.
            UnicodeDecodeError: a parameter that is no header is not UTF-8.
        """
        try:
            text = request.parameters()
        except UnicodeDecodeError as error:
            return self._policy(self._without_garbled_headers(error))
        if not text or text == "{}":
            return DEFAULT  # by far the usual case, and the same object for all: the fast path asks for it by `is`
        return self._policy(json.loads(text))

    def _read(self, request: Any, place: int, *, now_ns: int) -> PendingRequest:
        policy = self.policy_of(request)
        tensor, rows = self._rows_of(request)
        names = request.requested_output_names()
        wanted = ALL_OUTPUTS if len(names) in (0, len(ALL_OUTPUTS)) else frozenset(names)
        is_plain = policy is DEFAULT or policy.is_plain
        deadline_ns = None if policy.deadline_us is None else now_ns + policy.deadline_us * 1000
        token, count = next(self._tokens), len(rows)
        # By place, because names take a microsecond longer, and every request pays it.
        return PendingRequest(
            token, place, request, tensor, rows, policy, is_plain, now_ns, deadline_ns, wanted, count, count
        )

    def _rows_of(self, request: Any) -> tuple[Any, Rows]:
        """The request's tensor as it came, which is forwarded without a copy, and a view of it, (n, *dims)."""
        name, dims = self._input.name, self._input.dims
        tensor = self._pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            raise InputError(f"input {name}", got="no such tensor in the request", expected=f"{name} {dims}")
        rows = tensor.as_numpy()
        if rows.dtype != self._dtype:
            raise InputError(f"input {name}", got=f"dtype {rows.dtype}", expected=self._input.dtype)
        if rows.shape[1:] != dims:
            expected = f"[n, {', '.join(map(str, dims))}]"
            raise InputError(f"input {name}", got=f"shape {list(rows.shape)}", expected=expected)
        if len(rows) == 0:
            raise InputError(f"input {name}", got="an empty batch", expected="at least one row")
        return tensor, rows

    def _is_finite(self, rows: Rows) -> bool:
        # Two reductions and no temporary: NaN wins a maximum, and each infinity is one of the extremes.
        return not self._rejects_non_finite or (
            math.isfinite(np.maximum.reduce(rows, axis=None)) and math.isfinite(np.minimum.reduce(rows, axis=None))
        )

    def _non_finite_fault(self, rows: Rows) -> str | None:
        """Which of a request's rows (n, *dims) are not finite, None where all are."""
        if self._is_finite(rows):
            return None
        bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        got = f"NaN or infinity in {len(bad)} of {len(rows)} rows, first row {bad[0]}"
        fix = "mend or leave out those rows, or plan with non_finite set to pass"
        return str(InputError(f"input {self._input.name}", got=got, expected="finite numbers", fix=fix))

    def _policy(self, parameters: dict[str, object]) -> Policy:
        now_us = time.time_ns() // 1000
        return policy_from_parameters(parameters, self._stages, self._gears, now_us=now_us, headers=self._headers)

    def _without_garbled_headers(self, error: UnicodeDecodeError) -> dict[str, object]:
        """The parameters but for headers, which may hold any bytes; the server's error has the whole text."""
        try:
            parameters = json.loads(error.object.decode("utf-8", "replace"))
        except ValueError:
            raise error from None
        own = self._headers.without(parameters)
        if any(_REPLACED in f"{name}{value}" for name, value in own.items()):
            raise error
        return own


def merged(parts: Sequence[Rows]) -> Rows:
    """One batch of several requests' rows."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
