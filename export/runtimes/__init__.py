"""Proof of a graph on the ONNX Runtimes that will serve it, each in a process of its own."""

from export.runtimes.choice import DEFAULT_RUNTIMES, runtimes_from_text
from export.runtimes.proof import Proof, proven
from export.runtimes.rewriting import portable

__all__ = ["DEFAULT_RUNTIMES", "Proof", "portable", "proven", "runtimes_from_text"]
