"""What answers rows, and waiting for it while it is away."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from orchestrator.client.answers import OutputKinds, ServedAnswers
from orchestrator.decision import Policy
from orchestrator.errors import (
    ChangedModelError,
    ClientError,
    RefusedError,
    TimeLimitError,
    UnavailableError,
    UnknownModelError,
)
from orchestrator.spec.rows import AnyRows
from orchestrator.spec.served_model import ModelInfo

T = TypeVar("T")
# Pauses while a server is away: they double up to the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
# How often one request may run out of time at a server that is ready. One that was stopped and goes on is ready
# again at once; a request that always takes too long is not asked for ever.
MOST_LATE = 3
# Longest wait to be told what is served; a server that is away is asked again when it is back.
IDENTITY_S = 5.0
_log = logging.getLogger(__name__)


class AsyncAnswers(Protocol):
    """What answers rows: a client of one server, of several, or members in this process.

    Errors are `ClientError`; what is `UnavailableError` may be asked again.
    """

    kinds: OutputKinds

    async def metadata(self, model: str) -> ModelInfo:
        """The model's tensors and batch limit."""

    async def identity(self, model: str) -> str:
        """What is served under the name now, in words: the same for models that answer alike."""

    async def infer(self, model: str, rows: AnyRows, *, policy: Policy | None = None) -> ServedAnswers:
        """Answers to rows, in their order."""

    async def ready(self, model: str | None = None) -> bool:
        """Whether it would answer now."""

    async def close(self) -> None:
        """Lets go what it holds."""


@dataclass
class Patience:
    """Waits for servers that are away, and says so once, however many requests wait.

    Args:
        client: of the server or servers.
        seconds: how long, before each answer; infinity until they are back.
    """

    client: AsyncAnswers
    seconds: float
    _waiting: int = 0

    async def answer_of(self, ask: Callable[[], Awaitable[T]], *, model_is_known: bool = False) -> T:
        """What a coroutine function gives, called again while the server is away.

        A server that starts again does not know its models at first, and one that hangs is not ready. Raises
        the ClientError of the last call.
        """
        since_s, pause_s, late = math.nan, FIRST_PAUSE_S, 0
        try:
            while True:
                try:
                    return await ask()
                except ClientError as error:
                    first = math.isnan(since_s)
                    since_s = time.monotonic() if first else since_s
                    left_s = self.seconds - (time.monotonic() - since_s)
                    if left_s <= 0:
                        raise
                    if not await self._is_away(error, model_is_known=model_is_known):
                        late += 1
                        if not isinstance(error, TimeLimitError) or late >= MOST_LATE:
                            raise
                    if first:
                        self._waiting += 1
                        if self._waiting == 1:
                            _log.warning("waiting for an answer: %s", error)
                    await asyncio.sleep(min(pause_s, left_s))
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self._waiting -= not math.isnan(since_s)

    async def _is_away(self, error: ClientError, *, model_is_known: bool) -> bool:
        """Whether an error is one of a server that may return."""
        if isinstance(error, UnavailableError):
            return True
        if isinstance(error, RefusedError):
            return isinstance(error, UnknownModelError) and model_is_known
        return not await self.client.ready()


async def require_same(client: AsyncAnswers, model: str, identity: str) -> None:
    """Raises ChangedModelError where something else is served under a name than before, if that can be told."""
    try:
        found = await asyncio.wait_for(client.identity(model), IDENTITY_S)
    except (ClientError, TimeoutError):
        return
    if found != identity:
        fix = "serve that again, or begin anew with what is served now"
        raise ChangedModelError(f"model {model}", got=found, expected=f"{identity}, as at the beginning", fix=fix)
