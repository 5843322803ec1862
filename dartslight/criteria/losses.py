"""Differentiable criteria: losses of the network at the sampled mixing weights."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from dartslight.criteria.criterion import Criterion
from dartslight.errors import check_least

Part = Literal["train", "val"]
"""The half of the pictures that a batch comes from."""

CrossEntropies = Callable[[Part], Tensor]
"""Returns the cross-entropy of each picture of a batch, (pictures,), at the present samples."""


class NetworkLoss(Criterion):
    """A loss of the network for each sample."""

    differentiable = True

    @abstractmethod
    def __call__(self, cross_entropy: CrossEntropies) -> Tensor:
        """Returns the loss of each picture, (pictures,).

        Args:
            cross_entropy: Computes the cross-entropy of each picture; what is not asked for is not computed.
        """


class CrossEntropy(NetworkLoss):
    """The cross-entropy on the validation batch."""

    def __call__(self, cross_entropy: CrossEntropies) -> Tensor:
        """Returns it for each picture."""
        return cross_entropy("val")


class GeneralisationGap(NetworkLoss):
    """The cross-entropy on the training batch, and how far that on the validation batch is from it (UNAS).

    Pictures at one place of the two batches make a pair with one sample, so the batches must be equally large.

    Paper: Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651.

    Args:
        weight: How much the distance counts.
    """

    def __init__(self, weight: float = 0.5) -> None:
        check_least(0, weight=weight)
        self.weight = weight

    def __call__(self, cross_entropy: CrossEntropies) -> Tensor:
        """Returns train + weight * |val - train| for each pair of pictures."""
        train, val = cross_entropy("train"), cross_entropy("val")
        return train + self.weight * (val - train).abs()
