"""Search strategies: a relaxation turns architecture parameters into mixing weights, a gradient teaches them."""

from dartslight.strategies.architecture import Architecture, detached
from dartslight.strategies.gradients import ArchitectureGradient, Bilevel, FiniteDifference, FirstOrder, Fixed, Unrolled
from dartslight.strategies.relaxations import Relaxation, Softmax

__all__ = [
    "Architecture",
    "ArchitectureGradient",
    "Bilevel",
    "FiniteDifference",
    "FirstOrder",
    "Fixed",
    "Relaxation",
    "Softmax",
    "Unrolled",
    "detached",
]
