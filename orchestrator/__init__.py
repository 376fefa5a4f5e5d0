"""Committee: ensembles and cascades of ordinary trained models on NVIDIA Triton.

The names of the public API are looked up when they are first used (PEP 562), because this file also runs inside
the server, where numpy is the only package. `__init__.pyi` tells type checkers what they are.
"""

import importlib
import os

__version__ = "0.1.0"

# From 1.29 on ONNX Runtime's wheels for Linux keep a device id and a database of events below the user's cache and
# send them to Microsoft. The variable is read once, when ONNX Runtime is imported, so it is set here, where every
# process of ours passes first; servers and other children inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PLACES = {
    "CommitteeError": "orchestrator.errors:CommitteeError",
    "Goal": "orchestrator.planner.goal:Goal",
    "Policy": "orchestrator.decision.policy:Policy",
    "Records": "orchestrator.planner.records:Records",
    "check": "orchestrator.repository.check.run:check",
    "connect": "orchestrator.client:connect",
    "evaluate": "orchestrator.planner.replay:evaluate",
    "plan": "orchestrator.planner.plan:plan",
    "read_plan": "orchestrator.spec.cascade_json:cascade_from_path",
    "read_records": "orchestrator.planner.records:records_from_path",
    "render": "orchestrator.repository.render:render",
    "replay": "orchestrator.planner.replay:replay",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
