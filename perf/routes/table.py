"""The routes of a scenario: one table, read by the renderer and by whoever measures."""

from __future__ import annotations

from perf.routes.spec import BenchRoute, Scenario

# Processes of each form: one process runs one member at a time, so a form is measured with several too.
TUTORIAL = {"tutorial": 1, "tutorial_4": 4}
CONCATENATE = {"concatenate_1": 1, "concatenate_4": 4}
# The largest member with as many instances as the machine of the targets has cores.
LARGEST, LARGEST_INSTANCES = "largest_2", 2
# Routes whose code knows one way to decide: mean of logits, top probability, one member per stage.
PLAIN_ONLY = ("pass_through", *TUTORIAL, *CONCATENATE, "client_sync", "client_asyncio")


def routes_of(scenario: Scenario) -> dict[str, BenchRoute]:
    """Every route by name.

    Args:
        scenario: whose members they ask.
    """
    members = scenario.members
    alone = [
        BenchRoute(name=f"member_{index}", title=_alone(index, scenario), model=name, members=(name,))
        for index, name in enumerate(members)
    ]
    # What one instance can do does not bound it.
    alone.append(
        BenchRoute(name=LARGEST, title=f"{members[-1]} alone, {LARGEST_INSTANCES} instances", model=LARGEST)
    )
    baselines = [
        BenchRoute(
            name="pass_through",
            title="BLS pass-through to the first member",
            model="pass_through",
            members=members[:1],
            instances=1,
        ),
        *(
            BenchRoute(
                name=name,
                title="BLS, one call per request in a loop" + (f", {count} instances" if count > 1 else ""),
                model=name,
                members=members,
                cascade=True,
                instances=count,
            )
            for name, count in TUTORIAL.items()
        ),
        *(
            BenchRoute(
                name=name,
                title=f"BLS, batch concatenated, {count} instance{'s' if count > 1 else ''}",
                model=name,
                members=members,
                cascade=True,
                instances=count,
            )
            for name, count in CONCATENATE.items()
        ),
        BenchRoute(
            name="client_sync",
            title="client-side cascade, threads",
            model=None,
            client="sync",
            members=members,
            cascade=True,
        ),
        BenchRoute(
            name="client_asyncio",
            title="client-side cascade, asyncio",
            model=None,
            client="asyncio",
            members=members,
            cascade=True,
        ),
        BenchRoute(name="ensemble", title="native ensemble of all members", model="ensemble", members=members),
        # It asks no member: they are inside, so what they can do elsewhere does not bound it.
        BenchRoute(name="onefile", title="whole cascade in one ONNX graph", model="onefile", cascade=True),
        BenchRoute(
            name="committee", title="Committee", model="committee", members=members, cascade=True, instances=1
        ),
    ]
    return {route.name: route for route in (*alone, *baselines)}


def _alone(index: int, scenario: Scenario) -> str:
    largest = index == len(scenario.members) - 1
    return f"{scenario.members[index]} alone{', the largest' if largest else ''}"
