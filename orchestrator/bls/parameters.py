"""Reading the parameters of a request, among which Triton may forward its headers."""

from __future__ import annotations

import json
import time
from typing import Any

from orchestrator.decision import DEFAULT, PARAMETERS, ForwardedHeaders, Policy, policy_from_parameters
from orchestrator.spec import CascadeSpec

# What bytes that are no UTF-8 become.
_REPLACED = "\ufffd"


class ParameterReader:
    """Turns the parameters of requests into policies.

    Args:
        spec: the cascade.
    """

    def __init__(self, spec: CascadeSpec) -> None:
        self._stages = len(spec.stages)
        self._gears = 1 if spec.gears is None else 1 + len(spec.gears.cheaper)
        self._headers = ForwardedHeaders(PARAMETERS, spec.header_pattern)

    def read(self, request: Any) -> Policy:
        """What the request asks for, whatever headers came with it.

        Raises:
            InputError: an unknown parameter, or a value of the wrong type or out of range.
            UnicodeDecodeError: a parameter that is no header is not UTF-8.
        """
        try:
            text = request.parameters()
        except UnicodeDecodeError as error:
            return self._policy(self._without_garbled_headers(error))
        if not text or text == "{}":
            return DEFAULT
        return self._policy(json.loads(text))

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
