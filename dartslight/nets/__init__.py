"""The networks: operations, cells, supernet and discrete network, in plain torch."""

from dartslight.nets.discrete import AuxiliaryHead, DiscreteNetwork
from dartslight.nets.operations import OPERATIONS, Operation, Setting, Source
from dartslight.nets.supernet import Mixing, Supernet, open_mask

__all__ = [
    "OPERATIONS",
    "AuxiliaryHead",
    "DiscreteNetwork",
    "Mixing",
    "Operation",
    "Setting",
    "Source",
    "Supernet",
    "open_mask",
]
