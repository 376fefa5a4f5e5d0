"""Proof of a graph on the ONNX Runtimes that will serve it, each in a process of its own."""
