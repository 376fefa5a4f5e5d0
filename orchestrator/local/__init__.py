"""Members and data on this machine: ONNX Runtime sessions, and the digits that come with scikit-learn."""
