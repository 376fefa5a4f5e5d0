"""TensorRT engines: options, the GPU, building, running, comparing. `export.tensorrt.member` puts them together.

Nothing here imports the tensorrt package but `machine.py`; everything else is handed the module.
"""
