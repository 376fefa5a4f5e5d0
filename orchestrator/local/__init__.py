"""Members and data on this machine: ONNX Runtime sessions in this process, and the digits that come with scikit-learn."""
