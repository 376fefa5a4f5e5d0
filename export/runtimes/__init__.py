"""Proof of a graph on the ONNX Runtimes that will serve it, each in a process of its own."""

from export.runtimes.choice import DEFAULT_RUNTIMES, runtimes_from_text
from export.runtimes.proof import PROVEN_ROWS, Proof, proofs_of, require_proven
from export.runtimes.rewriting import portable

__all__ = [
    "DEFAULT_RUNTIMES",
    "PROVEN_ROWS",
    "Proof",
    "portable",
    "proofs_of",
    "require_proven",
    "runtimes_from_text",
]
