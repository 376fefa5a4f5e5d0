"""What routes, studies and recipes share: scenarios, routes, rendered repositories and rows.

A scenario names members; a repository rendered for it holds them and every route's models; rows for it carry
the stage at which a cascade will answer them.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# Processes of each form: one process runs one member at a time, so a form is measured with several too.
TUTORIAL = {"tutorial": 1, "tutorial_4": 4}
CONCATENATE = {"concatenate_1": 1, "concatenate_4": 4}
# The largest member with as many instances as the machine of the targets has cores.
LARGEST, LARGEST_INSTANCES = "largest_2", 2
# The same plan as the route "committee", its first stage run in the cascade's process.
IN_PROCESS = "committee_in_process"
# Routes whose code knows one way to decide: mean of logits, top probability, one member per stage.
CLIENTS = ("client_sync", "client_asyncio")
PLAIN_ONLY = ("pass_through", *TUTORIAL, *CONCATENATE, *CLIENTS)
# Every other form in which the same members, one instance each, make the same cascade.
SERVER_RIVALS = (*TUTORIAL, *CONCATENATE, "onefile")
RIVALS = (*SERVER_RIVALS, *CLIENTS)

Rows = npt.NDArray[Any]
# One request: rows (n, *dims) in, int32 (n,) exit stages out.
AskSync = Callable[[Rows], npt.NDArray[np.int32]]
AskAsync = Callable[[Rows], Awaitable[npt.NDArray[np.int32]]]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Members to compare routes on.

    Args:
        name: short, a file name.
        title: for people, in tables.
        members: Triton names in stage order, the dearest last.
        imposed: the exit mix is imposed on members that did not earn it, and every table must say so.
        earned: rows come as they are, so that the exit mix is what the plan makes of them.
    """

    name: str
    title: str
    members: tuple[str, ...]
    imposed: bool = False
    earned: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchRoute:
    """One way to get an answer.

    Args:
        name: key in results, the same in every scenario.
        title: for people.
        model: Triton model a load asks; None where the client drives the cascade itself.
        client: which client drives it, None where a model does.
        members: Triton names of the members it asks, in stage order. A route that is no cascade asks all of them
            for every row.
        cascade: its answers carry `exit_stage`, and only rows that reach a stage are asked there.
        instances: processes of the orchestrator, 0 where there is none.
        answers_late: a request with a row that goes past stage 0 is answered by a message of its own, later than
            those of its batch.
    """

    name: str
    title: str
    model: str | None
    client: Literal["sync", "asyncio"] | None = None
    members: tuple[str, ...] = ()
    cascade: bool = False
    instances: int = 0
    answers_late: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchRepository:
    """One rendered model repository.

    Args:
        folder: of the repository.
        scenario: whose members it holds.
        routes: by name, those this scenario has, with the scenario's own model and member names.
        input_name: of every member and every route.
        sync_client: opens a cascade driven by blocking calls: address -> context of an AskSync, to be called
            from any number of threads.
        asyncio_client: the same from one event loop.
        predicted_speedup: rows/s of the cascade over its largest member's, as its plan predicts from measured
            milliseconds per row; None where no plan does.
    """

    folder: Path
    scenario: Scenario
    routes: Mapping[str, BenchRoute]
    input_name: str = "image"
    sync_client: Callable[[str], AbstractContextManager[AskSync]] | None = None
    asyncio_client: Callable[[str], AbstractAsyncContextManager[AskAsync]] | None = None
    predicted_speedup: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchRows:
    """Rows (n, *dims) in the input's dtype, and int32 (n,), where a cascade of the scenario answers them."""

    rows: Rows
    exit_stage: npt.NDArray[np.int32] = field(repr=False)

    def reach(self, stages: int) -> tuple[float, ...]:
        """Share of rows that get to each stage, 1.0 first."""
        return tuple(float((self.exit_stage >= stage).mean()) for stage in range(stages))


def routes_of(scenario: Scenario) -> dict[str, BenchRoute]:
    """Every route of a scenario by name."""
    members = scenario.members

    def cascade(name: str, title: str, instances: int, **more: Any) -> BenchRoute:
        fields = {"model": name, "members": members, "cascade": True, **more}
        return BenchRoute(name=name, title=title, instances=instances, **fields)

    def some(count: int, one: str = "") -> str:
        return f", {count} instances" if count > 1 else one

    alone = [f"{name} alone" for name in members[:-1]] + [f"{members[-1]} alone, the largest"]
    routes = [
        *(
            BenchRoute(name=f"member_{index}", title=title, model=members[index], members=(members[index],))
            for index, title in enumerate(alone)
        ),
        # It names no member, because the capacity of one instance does not bound two.
        BenchRoute(name=LARGEST, title=f"{members[-1]} alone, {LARGEST_INSTANCES} instances", model=LARGEST),
        cascade("pass_through", "BLS pass-through to the first member", 1, members=members[:1], cascade=False),
        *(cascade(name, f"BLS, one call per request in a loop{some(n)}", n) for name, n in TUTORIAL.items()),
        *(
            cascade(name, f"BLS, batch concatenated{some(n, ', 1 instance')}", n)
            for name, n in CONCATENATE.items()
        ),
        cascade("client_sync", "client-side cascade, threads", 0, model=None, client="sync"),
        cascade("client_asyncio", "client-side cascade, asyncio", 0, model=None, client="asyncio"),
        BenchRoute(name="ensemble", title="native ensemble of all members", model="ensemble", members=members),
        # It names no member: they are inside its graph, so their own capacity does not bound it.
        BenchRoute(name="onefile", title="whole cascade in one ONNX graph", model="onefile", cascade=True),
        cascade("committee", "Committee", 1, answers_late=True),
        cascade(IN_PROCESS, "Committee, first stage in process", 1, answers_late=True),
    ]
    return {route.name: route for route in routes}
