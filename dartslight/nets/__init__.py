"""The networks: operations, cells, supernet and discrete network, in plain torch."""

from dartslight.nets.cell import NO_DROP, Drop, EdgeTerm
from dartslight.nets.discrete import AuxiliaryHead, DiscreteNetwork
from dartslight.nets.operations import OPERATIONS, Operation, Setting, Source
from dartslight.nets.supernet import Mixing, Supernet, open_mask
from dartslight.nets.weighted_sum import repeated
from dartslight.nets.widening import widen

__all__ = [
    "NO_DROP",
    "OPERATIONS",
    "AuxiliaryHead",
    "DiscreteNetwork",
    "Drop",
    "EdgeTerm",
    "Mixing",
    "Operation",
    "Setting",
    "Source",
    "Supernet",
    "open_mask",
    "repeated",
    "widen",
]
