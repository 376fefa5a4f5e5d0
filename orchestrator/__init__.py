"""Committee: ensembles and cascades of ordinary trained models on NVIDIA Triton."""

import os

__version__ = "0.1.0"

# From 1.29 on ONNX Runtime's wheels for Linux keep a device id and a database of events below the user's cache and
# send them to Microsoft. This is read once, when ONNX Runtime is imported, so it stands where every process of
# ours passes first; servers and other children inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
