"""Models of a server that are loaded again because their process has died.

Triton 24.10 never answers a load whose new process dies as well, so every load runs in a thread of its own, and
whoever watches the server goes on watching. Every repair under load leaves threads, memory and a descriptor in
Triton, and so they are counted.
"""

import http.client
import threading
import time
from collections.abc import Callable
from functools import partial

from orchestrator.errors import ServingError
from orchestrator.serving.process import EmbeddedServer
from orchestrator.serving.stubs import Stub

# More repairs than this of one server are not made: it is started again instead.
MOST_REPAIRS = 5
# When a model that did not load is tried again.
_RETRY_S = 3.0
NO_ANSWER = (OSError, http.client.HTTPException, ServingError)


class _Load:
    """One load in a thread; `error` is set where it failed."""

    def __init__(self, load: Callable[[], None], old: frozenset[int]) -> None:
        self.old = old  # process ids from before it
        self.error: Exception | None = None
        self.began_s = time.monotonic()
        self._load = load
        self._thread = threading.Thread(target=self._run, name="repair", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:  # whoever looks at it tells
            self.error = error


class Repairs:
    """Loads models of one server again; `tell` gets a line per change."""

    def __init__(self, server: EmbeddedServer, *, tell: Callable[[str], None]) -> None:
        self._server, self._tell = server, tell
        self._loads: dict[str, _Load] = {}
        # Model that did not load -> when it is tried again, on the monotonic clock.
        self._retry_s: dict[str, float] = {}
        self._made = 0

    @property
    def is_busy(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._loads)

    def hopeless(self, stub: Stub) -> str | None:
        """Why a model whose process has died cannot be loaded again by this server; None where it can."""
        load = self._loads.get(stub.model)
        if self._is_loading(stub.model) if load is None else stub.pid not in load.old:
            return "while the model was loaded, which Triton never finishes"
        return f"after {self._made} repairs, each of which leaves memory" if self._made >= MOST_REPAIRS else None

    def begin(self, name: str) -> None:
        """Has a model loaded again, unless that is going on."""
        if name not in self._loads:
            self._made += 1
            self._retry_s[name] = 0.0

    def look(self) -> None:
        """Begins loads whose time has come, and tells of those that are over."""
        for name in [name for name, load in self._loads.items() if load.is_over]:
            self._settle(name, self._loads.pop(name))
        for name in [name for name, at_s in self._retry_s.items() if at_s <= time.monotonic()]:
            if name not in self._loads:
                self._loads[name] = _Load(partial(self._load, name), self._server.stubs.pids)

    def _load(self, name: str) -> None:
        # Somebody else may have loaded it meanwhile.
        if not self._retry_s[name] or not self._server.control.ready_versions().get(name):
            self._server.reload(name)

    def _settle(self, name: str, load: _Load) -> None:
        if load.error is None:
            del self._retry_s[name]
            self._tell(f"model {name} is loaded again after {time.monotonic() - load.began_s:.1f} s")
            return
        if not self._retry_s[name]:
            self._tell(f"model {name} is not loaded again yet: {load.error}; trying on every {_RETRY_S:g} s")
        self._retry_s[name] = time.monotonic() + _RETRY_S

    def _is_loading(self, name: str) -> bool:
        try:
            states = {one.get("state") for one in self._server.control.index() if one["name"] == name}
        except NO_ANSWER:
            return False
        return "LOADING" in states
