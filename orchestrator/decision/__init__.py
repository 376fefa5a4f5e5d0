"""The decision core: which members to ask for which rows, and when a row is answered.

Pure: fed arrays, answers arrays; no I/O, no threads, no Triton. Server and planner drive the same code.
"""

from orchestrator.decision.combine import Combiner, Tally, softmax
from orchestrator.decision.evaluate import Judge, Look
from orchestrator.decision.headers import ForwardedHeaders
from orchestrator.decision.policy import DEFAULT, PARAMETERS, Policy, policy_from_parameters
from orchestrator.decision.rows import (
    Answers,
    Arrivals,
    Failures,
    Outcome,
    Sure,
    arrivals_from_policies,
)
from orchestrator.decision.run import CascadeRun
from orchestrator.decision.scores import score_from_tally

__all__ = [
    "DEFAULT",
    "PARAMETERS",
    "Answers",
    "Arrivals",
    "CascadeRun",
    "Combiner",
    "Failures",
    "ForwardedHeaders",
    "Judge",
    "Look",
    "Outcome",
    "Policy",
    "Sure",
    "Tally",
    "arrivals_from_policies",
    "policy_from_parameters",
    "score_from_tally",
    "softmax",
]
