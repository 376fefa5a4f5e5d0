"""Triton's repository API, and stopping without losing a request: unloading models in the right order.

On SIGTERM Triton (seen with 24.10) first declares itself not ready, then waits for requests in flight. From then
on it refuses the BLS calls of models ("Server not ready"), so a cascade's deferred rows fail although Triton waits
for them. Unloading works: a model that is being unloaded takes no new request, its running requests finish while
the models that they call are still loaded, and only then the model goes. So models are unloaded, callers before
callees, and when the last one is gone every request has its answer.

SIGTERM comes after that. Alone it has a second fault: an idle keep-alive HTTP connection makes Triton wait for the
whole exit timeout. With no model loaded it does not wait.

Unloading is possible in explicit control mode only. "poll" would drop a model whose folder disappears, but would
also load half-written files while somebody edits them.
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
# Loading gigabytes takes minutes, and Triton answers when the model is loaded.
_LOAD_S = 600.0


def drain_waves(models: Iterable[ModelEntry]) -> list[list[str]]:
    """Names of the models to unload, in waves: no model is called by one of a later wave.

    Models that may call others, ensembles and Python models, come first, then the rest. A cycle goes in one wave.
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
    """Triton's repository API over HTTP, with the header that the server requires."""

    host: str
    port: int
    key: str
    timeout_s: float = 10.0

    def unload(self, names: Iterable[str]) -> None:
        """Starts unloading models; requests that were accepted are still answered."""
        for name in names:
            self._ask("POST", f"/v2/repository/models/{name}/unload")

    def load(self, name: str) -> None:
        """Loads a model, or loads it again from its files; returns when that is done.

        Raises:
            ServingError: the model does not load.
        """
        self._ask("POST", f"/v2/repository/models/{name}/load", timeout_s=_LOAD_S)

    def config(self, name: str) -> dict[str, Any]:
        """The configuration with which a model is served, as JSON values."""
        return dict(self._ask("GET", f"/v2/models/{name}/config"))

    def ready_versions(self) -> dict[str, frozenset[int]]:
        """Model -> numbers of the versions that would answer now."""
        found: dict[str, frozenset[int]] = {}
        for model in self._index():
            ready = {int(model["version"])} if model.get("state") == "READY" else set()
            found[model["name"]] = found.get(model["name"], frozenset()) | ready
        return found

    def states(self) -> dict[str, list[str]]:
        """Model -> load states of its versions, e.g. READY or UNLOADING."""
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
    """Unloads wave after wave, each when the one before has answered all its requests.

    Returns:
        True when every request was answered, False when the deadline, on the monotonic clock, came first.
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
