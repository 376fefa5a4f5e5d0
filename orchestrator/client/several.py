"""Several servers of the same models behind the calls of one tritonclient client; `balancing` chooses among them.

A request whose server is unavailable goes to a neighbour at once: asking again is safe, as answers change nothing
on a server (`error_mapping` says after which errors). A server that is silent in its health check loses the
requests it holds to its neighbours; one that says it is not ready keeps them, because a server that stops answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tritonclient.utils import InferenceServerException

from orchestrator.client.balancing import BalancedServer, Balancer
from orchestrator.client.endpoint import Endpoint
from orchestrator.client.error_mapping import FOREIGN, error_from
from orchestrator.client.loop import wait_in_loop
from orchestrator.errors import (
    ClientError,
    InputError,
    RefusedError,
    TimeLimitError,
    UnavailableError,
    UnknownModelError,
)
from orchestrator.probe import BUSY_WORDS, DRAINING, LATE_WORDS
from orchestrator.spec.served_model import identity_from_config

T = TypeVar("T")
# What a busy server says that will answer again in a moment; one that drains will not.
# Nor does a request whose own deadline was too near say anything against a server.
_NO_FAULT = (*(words for words in BUSY_WORDS if words != DRAINING), *LATE_WORDS)
_log = logging.getLogger(__name__)


class SeveralServers:
    """Has the calls of tritonclient's asyncio client that `AsyncGrpcClient` makes; belongs to one event loop.

    Args:
        balancer: chooses among the servers.
        endpoints: of them, in the same order.
        open_client: makes tritonclient's asyncio client of one of them.
    """

    def __init__(
        self, balancer: Balancer, endpoints: Sequence[Endpoint], open_client: Callable[[Endpoint], Any]
    ) -> None:
        self._balancer, self._policy = balancer, balancer.policy
        self._clients = {s: open_client(e) for s, e in zip(self._balancer.servers, endpoints, strict=True)}
        self._endpoints = dict(zip(self._balancer.servers, endpoints, strict=True))
        self._attempts: dict[BalancedServer, set[asyncio.Future[Any]]] = {s: set() for s in self._balancer.servers}
        self._said: dict[tuple[BalancedServer, str], str] = {}
        # What every model asked for so far is at the servers that are asked about it.
        self._agreed: dict[str, str] = {}
        self._begun: dict[str, asyncio.Task[None]] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        """Ends the health checks and the connections."""
        tasks = [*self._watches, *self._begun.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def infer(self, **arguments: Any) -> Any:
        """As tritonclient's."""
        return await self._asked(arguments["model_name"], "infer", arguments)

    async def get_model_metadata(self, model_name: str, **arguments: Any) -> Any:
        """As tritonclient's."""
        return await self._asked(model_name, "get_model_metadata", {"model_name": model_name, **arguments})

    async def get_model_config(self, model_name: str, **arguments: Any) -> Any:
        """As tritonclient's."""
        return await self._asked(model_name, "get_model_config", {"model_name": model_name, **arguments})

    async def is_server_ready(self, **arguments: Any) -> bool:
        """Whether any server is ready."""
        return await self._any_ready(lambda client: client.is_server_ready(**arguments))

    async def is_model_ready(self, model_name: str, **arguments: Any) -> bool:
        """Whether any server would answer for the model."""
        return await self._any_ready(lambda client: client.is_model_ready(model_name, **arguments))

    async def _any_ready(self, call: Callable[[Any], Awaitable[bool]]) -> bool:
        said = await asyncio.gather(*map(call, self._clients.values()), return_exceptions=True)
        return any(one is True for one in said)

    async def _asked(self, model: str, name: str, arguments: dict[str, Any]) -> Any:
        """Asks one server after another until one answers; raises tritonclient's exceptions."""
        until_s = time.monotonic() + arguments["client_timeout"]
        await self._begin(model)
        faults: dict[BalancedServer, InferenceServerException] = {}
        while (server := self._balancer.pick(model, time.monotonic(), without=faults)) is not None:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise InferenceServerException("Deadline Exceeded", status="StatusCode.DEADLINE_EXCEEDED")
            call = getattr(self._clients[server], name)
            try:
                limit_s = min(left_s, self._policy.attempt_s)
                return await self._attempt(server, model, call(**{**arguments, "client_timeout": limit_s}))
            except InferenceServerException as error:
                if not self._is_for_a_neighbour(server, error):
                    raise
                faults[server] = error
        raise self._nobody(model, faults)

    async def _attempt(self, server: BalancedServer, model: str, call: Coroutine[Any, Any, T]) -> T:
        """One request to one server; cancelled from `_check`, it counts as unavailable."""
        # It may have been started again since, with another plan.
        is_suspect = bool(server.in_a_row or server.reasons)
        task = asyncio.ensure_future(call)
        attempts = self._attempts[server]
        attempts.add(task)
        server.outstanding += 1
        try:
            await asyncio.wait({task})
        finally:
            server.outstanding -= 1
            attempts.discard(task)
            task.cancel()
        if task.cancelled():
            raise InferenceServerException("no sign of life", status="StatusCode.UNAVAILABLE")
        answer = task.result()
        if is_suspect:
            await self._compare_again(server)
            if model in server.others:
                raise InferenceServerException(server.others[model], status="StatusCode.UNAVAILABLE")
        self._balancer.succeeded(server)
        return answer

    def _is_for_a_neighbour(self, server: BalancedServer, error: InferenceServerException) -> bool:
        """Counts a failure, and whether another server may answer the request."""
        ours = self._ours(error, server)
        if isinstance(ours, RefusedError) and not isinstance(ours, UnknownModelError):
            self._balancer.succeeded(server)
            return False
        fault, now_s = str(ours.got), time.monotonic()
        counts = not any(words in fault for words in _NO_FAULT)
        if self._balancer.failed(server, now_s, fault, counts=counts):
            _log.warning("%s is not asked for %.0f s: %s", server.address, server.ejected_until_s - now_s, fault)
        # A limit of one attempt leaves time for the next.
        is_late = isinstance(ours, TimeLimitError) and self._policy.attempt_s < float("inf")
        return is_late or isinstance(ours, UnavailableError | UnknownModelError)

    def _ours(self, error: Exception, server: BalancedServer) -> ClientError:
        return error_from(error, what=server.address, endpoints=[self._endpoints[server]])

    def _nobody(
        self, model: str, faults: Mapping[BalancedServer, InferenceServerException]
    ) -> InferenceServerException:
        """The error where no server has answered, which says once what several have in common."""
        ours = {server: self._ours(error, server) for server, error in faults.items()}
        for kind in (UnknownModelError, TimeLimitError):
            if ours and all(isinstance(one, kind) for one in ours.values()):
                return next(iter(faults.values()))
        servers, now_s = self._balancer.servers, time.monotonic()
        reasons = {one: ours[one].got if one in ours else one.reason(model, now_s) for one in servers}
        # The errors of one cause differ in addresses.
        at: dict[str, list[str]] = {}
        for server, reason in reasons.items():
            at.setdefault(str(reason).replace(self._endpoints[server].target, "the address"), []).append(
                server.address
            )
        told = [f"{', '.join(addresses)}: {reason}" for reason, addresses in at.items()]
        text = f"none of {len(servers)} servers answers: {'; '.join(told) if len(at) > 1 else next(iter(at))}"
        return InferenceServerException(text, status="StatusCode.UNAVAILABLE")

    # Health and what is served.

    async def _begin(self, model: str) -> None:
        """Checks every server, and compares what they serve, before the first request for a model."""
        if model not in self._begun:
            self._begun[model] = asyncio.ensure_future(self._compare(model))
        # One request that is given up must not end the comparison for the others.
        await asyncio.shield(self._begun[model])

    async def _compare(self, model: str) -> None:
        servers = self._balancer.servers
        found = await asyncio.gather(*(self._check(server, [model]) for server in servers))
        served: dict[str, list[str]] = {}
        for server, identities in zip(servers, found, strict=True):
            if model in identities:
                served.setdefault(identities[model], []).append(server.address)
        if len(served) > 1:
            del self._begun[model]
            got = ", ".join(f"{identity} at {' and '.join(at)}" for identity, at in served.items())
            fix = "give the addresses of servers of one repository"
            raise InputError(f"model {model} of several servers", got=got, expected="the same at all", fix=fix)
        if served:
            self._agreed[model] = next(iter(served))
        for server in servers:
            self._say(server)
        if not self._watches:
            self._watches = [asyncio.ensure_future(self._watch(server)) for server in servers]

    async def _watch(self, server: BalancedServer) -> None:
        while True:
            await asyncio.sleep(self._policy.check_s)
            await self._compare_again(server)

    async def _compare_again(self, server: BalancedServer) -> None:
        for model, identity in (await self._check(server, list(self._begun))).items():
            self._hold_to_agreed(server, model, identity)
        self._say(server)

    async def _check(self, server: BalancedServer, models: Sequence[str]) -> dict[str, str]:
        """Takes in whether a server is ready for models; what it serves under each name that it is ready for."""
        client, limit = self._clients[server], {"client_timeout": self._policy.check_timeout_s}
        reasons, identities = dict[str, str](), dict[str, str]()
        try:
            if not await client.is_server_ready(**limit):
                reasons[""] = "it says that it is not ready"
            for model in () if reasons else models:
                if await client.is_model_ready(model, **limit):
                    answer = await client.get_model_config(model, as_json=True, **limit)
                    identities[model] = identity_from_config(answer["config"])
                else:
                    reasons[model] = f"it says that model {model} is not ready"
        except FOREIGN as error:
            ours = self._ours(error, server)
            is_silent = isinstance(ours, TimeLimitError)
            reasons[""] = f"no sign of life in {self._policy.check_timeout_s:g} s" if is_silent else str(ours.got)
            self._balancer.checked(server, time.monotonic(), reasons)
            if is_silent and any(self._balancer.able(model, time.monotonic()) for model in self._begun):
                for attempt in list(self._attempts[server]):
                    attempt.cancel()
        self._balancer.checked(server, time.monotonic(), reasons)
        return identities

    def _hold_to_agreed(self, server: BalancedServer, model: str, identity: str) -> None:
        """Keeps a server from requests while it serves something else than the servers did at the start."""
        agreed = self._agreed.setdefault(model, identity)
        server.others.pop(model, None)
        if identity == agreed:
            return
        server.others[model] = f"it serves {identity} as {model}, its neighbours {agreed}"
        if all(model in one.others for one in self._balancer.servers):
            # All have been given another plan, one after another.
            self._agreed[model] = identity
            for one in self._balancer.servers:
                del one.others[model]

    def _say(self, server: BalancedServer) -> None:
        """Logs what is new about whether a server is asked, a line for each model where they differ."""
        for model in ("", *self._begun):
            reason = server.reasons.get("") if not model else server.reasons.get(model) or server.others.get(model)
            before = self._said.get((server, model), "")
            # A server that is back with another plan is not asked again.
            is_back = not reason and (bool(model) or not (server.reasons or server.others))
            if bool(reason) != bool(before) and (reason or is_back):
                text = f"is not asked: {reason}" if reason else "is asked again"
                able = len([one for one in self._balancer.servers if not one.reasons and not one.others])
                count = len(self._balancer.servers)
                _log.warning("%s %s; %d of %d servers are asked", server.address, text, able, count)
            self._said[server, model] = reason or ""


class FromPlainCode:
    """The same calls for plain code, from any thread.

    Args:
        make: makes the asynchronous client, inside the event loop that it belongs to.
    """

    def __init__(self, make: Callable[[], SeveralServers]) -> None:
        async def made() -> SeveralServers:
            return make()

        self._several = wait_in_loop(made())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._several, name)
        return lambda *words, **named: wait_in_loop(method(*words, **named))
