from orchestrator.client import connect as connect
from orchestrator.decision.policy import Policy as Policy
from orchestrator.errors import CommitteeError as CommitteeError
from orchestrator.planner.goal import Goal as Goal
from orchestrator.planner.plan import plan as plan
from orchestrator.planner.records import Records as Records
from orchestrator.planner.records import records_from_path
from orchestrator.planner.replay import evaluate as evaluate
from orchestrator.planner.replay import replay as replay
from orchestrator.repository.check.run import check as check
from orchestrator.repository.render import render as render
from orchestrator.spec.cascade_json import cascade_from_path

__version__: str
read_plan = cascade_from_path
read_records = records_from_path
__all__ = [
    "CommitteeError",
    "Goal",
    "Policy",
    "Records",
    "check",
    "connect",
    "evaluate",
    "plan",
    "read_plan",
    "read_records",
    "render",
    "replay",
]
