"""Stopping without losing a request: in which order models go.

On SIGTERM Triton (seen with 24.10) first declares itself not ready and only then waits for requests in flight.
A model that asks others through BLS is refused from that moment ("Server not ready"), so a cascade's deferred
rows die half way although Triton waits for them politely. Unloading does it right: a model that is being
unloaded takes no new request, its running ones finish while everything they call still stands, and only then
it goes. So models are unloaded, callers before callees; when the last is gone every request has its answer.

SIGTERM comes after that. On its own it has a second fault: an idle keep-alive HTTP connection makes it wait
for the whole exit timeout. With nothing loaded there is nothing left to wait for.

Unloading exists in explicit control mode only. "poll" would drop a model whose folder disappears, but it
would also reload half-written files while somebody edits them.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ServingError
from orchestrator.serving.embedded import CONTROL_HEADER
from orchestrator.serving.scan import ModelEntry
from orchestrator.spec.triton import ENSEMBLE

_POLL_S = 0.05
# Loading gigabytes takes minutes, and the answer comes when it is done.
_LOAD_S = 600.0


def drain_waves(models: Iterable[ModelEntry]) -> list[list[str]]:
    """Names of the models to unload, wave after wave: nobody in a wave is called by a later one.

    First all that may call others, ensembles and Python models; then the rest. A cycle goes in one wave.
    """
    all_models = tuple(models)
    callers = {model.name: model for model in all_models if model.backend in ("python", ENSEMBLE)}
    rest = sorted(model.name for model in all_models if model.name not in callers)
    waves = []
    while callers:
        called = {name for model in callers.values() for name in model.calls}
        wave = sorted(name for name in callers if name not in called) or sorted(callers)
        waves.append(wave)
        for name in wave:
            del callers[name]
    return [*waves, rest] if rest else waves


@dataclass(frozen=True, kw_only=True)
class RepositoryControl:
    """Triton's repository API over HTTP, with the header it was told to ask for."""

    host: str
    port: int
    key: str
    timeout_s: float = 10.0

    def unload(self, names: Iterable[str]) -> None:
        """Starts unloading; requests already accepted go on."""
        for name in names:
            self._ask("POST", f"/v2/repository/models/{name}/unload")

    def load(self, name: str) -> None:
        """Loads a model, again from its files where it is loaded already; returns when that is done.

        Raises:
            ServingError: it does not load.
        """
        self._ask("POST", f"/v2/repository/models/{name}/load", timeout_s=_LOAD_S)

    def config(self, name: str) -> dict[str, Any]:
        """The configuration a model is served with, as JSON values."""
        return dict(self._ask("GET", f"/v2/models/{name}/config"))

    def ready_versions(self) -> dict[str, frozenset[int]]:
        """Numbers of the versions that would answer now, by model."""
        found: dict[str, frozenset[int]] = {}
        for model in self._index():
            ready = {int(model["version"])} if model.get("state") == "READY" else set()
            found[model["name"]] = found.get(model["name"], frozenset()) | ready
        return found

    def states(self) -> dict[str, list[str]]:
        """Load states of every model's versions, e.g. READY or UNLOADING."""
        found: dict[str, list[str]] = {}
        for model in self._index():
            found.setdefault(model["name"], []).append(model.get("state", "UNAVAILABLE"))
        return found

    def _index(self) -> list[dict[str, str]]:
        return list(self._ask("POST", "/v2/repository/index"))

    def _ask(self, method: str, path: str, *, timeout_s: float | None = None) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s or self.timeout_s)
        try:
            sent = "{}" if method == "POST" else None
            connection.request(method, path, body=sent, headers={CONTROL_HEADER: self.key})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                got = f"{response.status} {body.decode(errors='replace')}"
                raise ServingError(f"Triton refused {path}", got=got)
            return json.loads(body) if body else None
        finally:
            connection.close()


def drain(control: RepositoryControl, waves: Iterable[Iterable[str]], *, deadline_s: float) -> bool:
    """Unloads wave after wave, each once the one before has answered everything.

    Args:
        control: the running server.
        waves: from `drain_waves`.
        deadline_s: on the monotonic clock, when to give up.

    Returns:
        True when every request was answered, False when the deadline came first.
    """
    for wave in waves:
        names = list(wave)
        control.unload(names)
        while True:
            states = control.states()
            if all(state == "UNAVAILABLE" for name in names for state in states.get(name, [])):
                break
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
    return True
