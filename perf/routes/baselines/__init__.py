"""The cascade as people write it for Triton today: what Committee is measured against.

Each form in `models.py` is rendered with `deciding.py` beside it into a model of its own. These need numpy and the
server's module, nothing of Committee, and give the same bits in the same six outputs. `clients.py` drives the
cascade from a client, and takes from Committee the translation of gRPC's errors alone.
"""
