"""Criteria: what a search of sampled architectures minimises, differentiable or measured."""

from dartslight.criteria.costs import Cost, Latency, MultiplyAdds, TableCost
from dartslight.criteria.criterion import Criterion
from dartslight.criteria.losses import CrossEntropies, CrossEntropy, GeneralisationGap, NetworkLoss, Part
from dartslight.criteria.surrogate import Surrogate, ridge

__all__ = [
    "Cost",
    "Criterion",
    "CrossEntropies",
    "CrossEntropy",
    "GeneralisationGap",
    "Latency",
    "MultiplyAdds",
    "NetworkLoss",
    "Part",
    "Surrogate",
    "TableCost",
    "ridge",
]
