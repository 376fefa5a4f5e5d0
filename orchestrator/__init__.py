"""Committee: ensembles and cascades of ordinary trained models on NVIDIA Triton."""

__version__ = "0.1.0"
