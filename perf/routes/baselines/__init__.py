"""The cascade as people write it for Triton today: what Committee is measured against.

Each folder holds one `model.py`, rendered with `deciding.py` beside it into a model of its own. They need numpy
and the server's module, nothing of Committee, and answer the same six outputs to the bit.
"""
