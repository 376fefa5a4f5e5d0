"""The families of networks that cascades are usually made of, by short name, each at its own resolution.

Built with transformers' own classes, so that a hub checkpoint of the same name loads into them, with 1000 classes.
"""

from export.zoo.counting import COUNTER, Counted, counted_of, network_of
from export.zoo.entries import CLASSES, ZOO, ZooEntry, entry_from_name, same_padding_blocks

__all__ = [
    "CLASSES",
    "COUNTER",
    "ZOO",
    "Counted",
    "ZooEntry",
    "counted_of",
    "entry_from_name",
    "network_of",
    "same_padding_blocks",
]
