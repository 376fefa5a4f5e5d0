"""Models of a server that are loaded again because their process has died.

Triton 24.10 never answers a load whose new process dies as well, so every load runs in a thread of its own, and
whoever watches the server goes on watching. Every repair under load leaves threads, memory and a descriptor in
Triton, and so they are counted.
"""

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.errors import ServingError
from orchestrator.serving.process import EmbeddedServer
from orchestrator.serving.stubs import Stub

# More repairs than this of one server are not made: it is started again instead.
MOST_REPAIRS = 5
# When a model that did not load is tried again.
_RETRY_S = 3.0
# Longest that a load goes on whose process has died, where Triton answers it.
_ANSWER_S = 1.0
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


@dataclass(frozen=True)
class _Suspect:
    """A load whose process has died."""

    what: str
    model: str  # empty where it is unknown
    load: _Load | None  # None where somebody else loads it
    since_s: float


class Repairs:
    """Loads models of one server again; `tell` gets a line per change."""

    def __init__(self, server: EmbeddedServer, *, tell: Callable[[str], None]) -> None:
        self._server, self._tell = server, tell
        self._loads: dict[str, _Load] = {}
        # Model that did not load -> when it is tried again, on the monotonic clock.
        self._retry_s: dict[str, float] = {}
        self._suspects: list[_Suspect] = []
        self._made = 0

    @property
    def is_busy(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._loads)

    @property
    def too_many(self) -> str:
        """Why there are no more repairs; empty where there may be."""
        return f" after {self._made} repairs, each of which leaves memory" if self._made >= MOST_REPAIRS else ""

    def is_of_load(self, stub: Stub, what: str) -> bool:
        """Whether a process has died that a load has started; `look` then says `what` if the load does not end."""
        load = self._loads.get(stub.model) if stub.model else next(iter(self._loads.values()), None)
        if self._is_loading(stub.model) if load is None else stub.pid not in load.old:
            self._suspects.append(_Suspect(what, stub.model, load, time.monotonic()))
            return True
        return False

    def begin(self, name: str) -> None:
        """Has a model loaded again, unless that is going on."""
        if name not in self._loads:
            self._made += 1
            self._retry_s[name] = 0.0

    def look(self) -> str | None:
        """Begins loads whose time has come, tells of those that are over; returns why one never will be."""
        for name in [name for name, load in self._loads.items() if load.is_over]:
            self._settle(name, self._loads.pop(name))
        for name in [name for name, at_s in self._retry_s.items() if at_s <= time.monotonic()]:
            if name not in self._loads:
                self._loads[name] = _Load(partial(self._load, name), self._server.stubs.pids)
        # Where Triton ends a process itself because its model does not load, it answers at once.
        self._suspects = [one for one in self._suspects if self._goes_on(one)]
        now_s = time.monotonic()
        return next((one.what for one in self._suspects if now_s - one.since_s >= _ANSWER_S), None)

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

    def _goes_on(self, suspect: "_Suspect") -> bool:
        return self._is_loading(suspect.model) if suspect.load is None else not suspect.load.is_over

    def _is_loading(self, name: str) -> bool:
        """Whether somebody else loads a model; any, where the name is empty."""
        try:
            index = self._server.control.index()
        except NO_ANSWER:
            return False
        return any(one.get("state") == "LOADING" and name in ("", one["name"]) for one in index)
