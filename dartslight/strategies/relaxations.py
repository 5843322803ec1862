"""Relaxations: how architecture parameters become mixing weights."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Relaxation(ABC):
    """Turns the architecture parameters of one cell type into mixing weights; holds settings, no parameters."""

    @abstractmethod
    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the mixing weights of the edges that are still undecided; decided edges are not looked at.

        Args:
            alphas: The architecture parameters, (edges, ops).
            is_open: Whether each operation can still be chosen, (edges, ops).

        Returns:
            The mixing weights, (edges, ops), 0 where an operation is not open.
        """


class Softmax(Relaxation):
    """The operations of an edge share a weight of 1 by a softmax over those still open.

    Paper: DARTS, Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055.
    """

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the softmax of each row over its open operations."""
        hidden = ~is_open & is_open.any(dim=-1, keepdim=True)  # a row with nothing open must not become NaN
        return torch.softmax(alphas.masked_fill(hidden, -torch.inf), dim=-1)
