"""Trained models into members: ONNX files with a manifest that proves what they are."""

import orchestrator  # noqa: F401 - before ONNX Runtime, whose telemetry it turns off
