"""The decision core: which members to ask for which rows, and when a row is answered.

Pure: fed arrays, answers arrays; no I/O, no threads, no Triton. Server and planner drive the same code.
"""

from orchestrator.decision.combine import Accumulator, Combiner, softmax
from orchestrator.decision.evaluate import Arrivals, Evaluator, StageResult, arrivals_from_policies
from orchestrator.decision.fast_path import EarlyExit, FastPath, plain_arrivals
from orchestrator.decision.policy import DEFAULT, PARAMETERS, ForwardedHeaders, Policy, policy_from_parameters
from orchestrator.decision.run import AnsweredRows, CascadeRun, FailedRows, StageOutcome
from orchestrator.decision.scores import confidence_score

__all__ = [
    "DEFAULT",
    "PARAMETERS",
    "Accumulator",
    "AnsweredRows",
    "Arrivals",
    "CascadeRun",
    "Combiner",
    "EarlyExit",
    "Evaluator",
    "FailedRows",
    "FastPath",
    "ForwardedHeaders",
    "Policy",
    "StageOutcome",
    "StageResult",
    "arrivals_from_policies",
    "confidence_score",
    "plain_arrivals",
    "policy_from_parameters",
    "softmax",
]
