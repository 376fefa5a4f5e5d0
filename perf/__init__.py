"""Measuring what is served: every route of a repository under load, in one run."""

import orchestrator  # noqa: F401 - before ONNX Runtime, whose telemetry it turns off
