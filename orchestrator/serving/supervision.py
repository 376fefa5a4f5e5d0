"""Keeps an embedded server whole: models whose process has died come back, and so does the server itself.

Triton 24.10 starts no process of a Python model again and goes on saying that the model is ready. Unloading and
loading it brings a new one, and the requests that Triton itself has handed over then fail. A cascade's process may
also have kept requests for later stages, which nobody answers any more. Then the server is ended, so that the
clients' connections close, and started again.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable

from orchestrator.errors import CommitteeError, ServingError
from orchestrator.serving.control import LOOK_S, CascadeWatch
from orchestrator.serving.process import EmbeddedServer
from orchestrator.serving.repairs import NO_ANSWER, Repairs
from orchestrator.serving.stubs import Stub
from orchestrator.spec.held_requests import held_requests
from orchestrator.spec.triton import EMBEDDED, IS_READY_SINCE

# So many restarts within so long are made, one more ends everything.
MOST_RESTARTS, WITHIN_S = 5, 600.0
# A server that ran for less is started again after a pause, which doubles from the first to the last.
_STEADY_S, _FIRST_PAUSE_S, _LAST_PAUSE_S = 5.0, 1.0, 16.0
_STUB_LOOK_S = 0.1  # how often processes are looked at
_COMPARE_S = 2.0  # longest that repairs wait for a comparison of cascades


class RestartLimit:
    """Says how long to wait before each restart of a server, and when there have been too many."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque()
        self._pause_s = 0.0

    @property
    def count(self) -> int:
        """Restarts within the last `WITHIN_S`."""
        return len(self._at_s)

    def pause_s(self, *, now_s: float, ran_s: float) -> float | None:
        """Seconds to wait before a server that ran for so long is started again; None where that was too often."""
        while self._at_s and self._at_s[0] <= now_s - WITHIN_S:
            self._at_s.popleft()
        if len(self._at_s) >= MOST_RESTARTS:
            return None
        self._at_s.append(now_s)
        short = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LAST_PAUSE_S)
        self._pause_s = 0.0 if ran_s >= _STEADY_S else short
        return self._pause_s


class Supervision:
    """Watches a server that has started, in the calling thread; `tell` gets a line for everything that happens.

    Args:
        server: a server that is ready.
        restarts: whether it is started again when it has ended, or when a process has died with requests.
        tell: called with one line each time.
    """

    def __init__(self, server: EmbeddedServer, *, restarts: bool, tell: Callable[[str], None]) -> None:
        self._server, self._restarts, self._tell = server, restarts, tell
        self._limit = RestartLimit()

    def run(self) -> None:
        """Watches until the server has ended for good.

        Raises:
            ServingError: that has happened; the text says why.
        """
        while True:
            began_s = time.monotonic()
            why = _OneServer(self._server, restarts=self._restarts, tell=self._tell).until_ended()
            if not self._restarts:
                raise self._ended(why)
            self._start_again(why, began_s)

    def _start_again(self, why: str, began_s: float) -> None:
        """Starts the server, as often as it takes and may be."""
        while True:
            now_s = time.monotonic()
            pause_s = self._limit.pause_s(now_s=now_s, ran_s=now_s - began_s)
            if pause_s is None:
                raise self._ended(f"{why}, after {self._limit.count} restarts within {WITHIN_S / 60:g} minutes")
            after = f" after {pause_s:g} s" if pause_s else ""
            number = f"restart {self._limit.count} of {MOST_RESTARTS} within {WITHIN_S / 60:g} minutes"
            self._tell(f"Triton is started again{after}: {why}; {number}")
            self._server.kill(keep_log=True)
            time.sleep(pause_s)
            try:
                self._server.restart()
            except (CommitteeError, OSError) as error:  # a folder that is missing, say
                why = str(error)
                began_s = now_s
                continue
            took_s = time.monotonic() - now_s
            self._tell(f"Triton is ready again after {took_s:.1f} s, with process id {self._server.pid}")
            return

    def _ended(self, why: str) -> ServingError:
        return ServingError(
            "embedded Triton ended by itself", got=why, fix=f"the whole log is {self._server.log_path}"
        )


class _OneServer:
    """What is watched of a server from one start of it to its end."""

    def __init__(self, server: EmbeddedServer, *, restarts: bool, tell: Callable[[str], None]) -> None:
        self._server, self._restarts, self._tell = server, restarts, tell
        self._dead = server.stubs
        self._repairs = Repairs(server, tell=tell)
        self._watch = CascadeWatch(server.options.repository, server.control, tell=tell)
        # From some release on the server asks the cascades themselves.
        self._watches_cascades = EMBEDDED < IS_READY_SINCE
        self._looked_s = 0.0
        self._said = ""
        self._look_at_cascades: threading.Thread | None = None

    def until_ended(self) -> str:
        """Watches until the server has ended, or has to be; returns why."""
        while (status := self._server.wait(_STUB_LOOK_S)) is None:
            if why := self._look():
                return why
        return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"

    def _look(self) -> str | None:
        for stub, how in self._dead.look():
            named = f"model {stub.model}" if stub.model else "a model"
            if why := self._deal_with(stub, f"{named}: its process {stub.pid} ended with {how}"):
                return why
        # One at a time: a model that is being loaded looks like one that is missing.
        if not self._is_comparing() and (why := self._repairs.look()):
            if self._restarts:
                return why
            if why != self._said:
                self._tell(f"{why}; restart the server")
            self._said = why
        if self._restarts and (gone := self._server.missing_file):
            return f"{gone} is gone, without which Triton starts no process of a Python model"
        if self._watches_cascades and not self._repairs.is_busy and time.monotonic() - self._looked_s >= LOOK_S:
            self._watch_cascades()
        return None

    def _is_comparing(self) -> bool:
        """Whether cascades are being compared; not where that hangs at a load."""
        thread = self._look_at_cascades
        return thread is not None and thread.is_alive() and time.monotonic() - self._looked_s < _COMPARE_S

    def _deal_with(self, stub: Stub, what: str) -> str | None:
        """Has the model of a process that has died loaded again; or says why the server has to be ended."""
        held = self._held_by(stub)
        held = f" and held {held}" if held else ""
        if self._restarts and held:
            return what + held
        if not held and self._is_of_the_past(stub):
            return None
        if self._repairs.is_of_load(stub, f"{what} while the model was loaded, which Triton never finishes"):
            return None
        if self._restarts and self._repairs.too_many:
            return what + self._repairs.too_many
        if stub.model:
            self._tell(f"{what}{held}; the model is loaded again")
            self._repairs.begin(stub.model)
        return None

    def _is_of_the_past(self, stub: Stub) -> bool:
        """Whether a process died while its model's version was being unloaded, as some do; another one serves."""
        if self._dead.has_successor(stub):
            return True
        try:
            serving = self._server.control.ready_versions().get(stub.model)
        except NO_ANSWER:
            return False
        return bool(serving and stub.version not in serving)

    def _watch_cascades(self) -> None:
        """Compares cascades with their plans in a thread, because it may load models, which may take for ever."""
        if self._look_at_cascades is None or not self._look_at_cascades.is_alive():
            self._looked_s = time.monotonic()
            self._look_at_cascades = threading.Thread(target=self._watch.look, name="cascades", daemon=True)
            self._look_at_cascades.start()

    def _held_by(self, stub: Stub) -> str:
        """How many requests died with a process; empty where there were none, or where they fail by themselves."""
        if not any(model.is_cascade for model in self._server.models if model.name == stub.model):
            return ""
        number = held_requests(self._server.held_prefix, stub.pid)
        return f"{'an unknown number of' if number is None else number} requests" if number != 0 else ""
