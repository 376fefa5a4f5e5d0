"""Trained models into members: ONNX files with a manifest that proves what they are."""
