"""Relaxations: how architecture parameters become mixing weights."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Gamma

from dartslight.errors import InputError, check_least
from dartslight.spaces import Cell, SearchSpace


class Relaxation(ABC):
    """Turns the architecture parameters of one cell type into mixing weights; holds settings, no parameters."""

    is_random = False
    """Whether training passes draw their mixing weights."""

    samples_one = False
    """Whether a draw chooses one operation of each edge, so that no other is computed."""

    sums_to_one = True
    """Whether the operations of an edge share a weight of 1."""

    draws_inputs = False
    """Whether it says which inputs a node has too, so that an edge has its weight only beside the others of its node.

    A draw is then a whole architecture, and what is decided on one edge says nothing without the others."""

    def check(self, space: SearchSpace) -> None:  # noqa: B027 - most can be used everywhere
        """Checks that it has a meaning in a space.

        Args:
            space: The search space.

        Raises:
            InputError: If it has none.
        """

    def of(self, cell: Cell) -> "Relaxation":
        """Returns the relaxation of one cell type; it may be the same for all.

        Args:
            cell: The cell type.
        """
        return self

    def shape(self, cell: Cell) -> tuple[int, int]:
        """Returns the shape of the architecture parameters of a cell type; by default (edges, ops).

        Args:
            cell: The cell type.
        """
        return len(cell.edges), cell.num_ops

    @abstractmethod
    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the mixing weights of the edges that are still undecided; decided edges are not looked at.

        This is what a supernet is measured and decided with, so nothing in it is random.

        Args:
            alphas: The architecture parameters, (edges, ops).
            is_open: Whether each operation can still be chosen, (edges, ops).

        Returns:
            The mixing weights, (edges, ops), 0 where an operation is not open.
        """

    def sample(self, alphas: Tensor, is_open: Tensor, position: float) -> Tensor:
        """Returns the mixing weights of one training pass, which may be random.

        Args:
            alphas: The architecture parameters, (edges, ops).
            is_open: Whether each operation can still be chosen, (edges, ops).
            position: Where the epoch stands in the search, from 0 for the first to 1 for the last one.
        """
        return self(alphas, is_open)

    def penalty(self, alphas: Tensor, is_open: Tensor) -> Tensor | None:
        """Returns what is added to the validation loss in an architecture step, or None.

        Args:
            alphas: The architecture parameters of the edges of all cell types, (edges, ops).
            is_open: Whether each operation can still be chosen, (edges, ops); nowhere on decided edges.
        """
        return None


def only_open(alphas: Tensor, is_open: Tensor) -> Tensor:
    """Returns the parameters, minus infinity where an operation is not open; a row with nothing open stays finite."""
    return alphas.masked_fill(~is_open & is_open.any(dim=-1, keepdim=True), -torch.inf)


class Softmax(Relaxation):
    """The operations of an edge share a weight of 1 by a softmax over those still open.

    Paper: DARTS, Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055.
    """

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the softmax of each row over its open operations."""
        return torch.softmax(only_open(alphas, is_open), dim=-1)


class Sigmoid(Relaxation):
    """Every operation has a weight of its own between 0 and 1 and does not compete with the others (FairDARTS).

    A zero-one loss pulls the weights away from 1/2. The published code adds it to the loss of the weight step as well,
    where it changes nothing, because no operation weight is in it.

    Paper: Chu et al., "Fair DARTS", ECCV 2020, https://arxiv.org/abs/1911.12126.

    Args:
        zero_one_weight: How much the zero-one loss counts.
        zero_one_loss: Mean of the squared (``l2``) or of the absolute (``l1``) distance from 1/2.
    """

    sums_to_one = False

    def __init__(self, zero_one_weight: float = 10.0, zero_one_loss: Literal["l2", "l1"] = "l2") -> None:
        check_least(0, zero_one_weight=zero_one_weight)
        if zero_one_loss not in ("l2", "l1"):
            raise InputError(f"zero_one_loss is {zero_one_loss!r}, but it must be l2 or l1; give one of them.")
        self.zero_one_weight, self.zero_one_loss = zero_one_weight, zero_one_loss

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the sigmoid of every open operation."""
        return torch.sigmoid(alphas) * is_open

    def penalty(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns minus the weighted mean distance of all open operations from 1/2."""
        distance = torch.sigmoid(alphas) - 0.5
        each = distance.square() if self.zero_one_loss == "l2" else distance.abs()
        return -self.zero_one_weight * (each * is_open).sum() / is_open.sum().clamp_min(1)


class Gumbel(Relaxation):
    """A training pass draws one operation for each edge and computes no other (GDAS).

    The draw is the largest of ``(log softmax(alpha) + Gumbel noise) / temperature``; its derivative is that of the
    softmax of these numbers (straight-through). An operation that was not drawn has the weight 0 and stands in the pass
    as a number, not as its output, as in the published code: so all parameters get a gradient at the cost of one
    operation. The temperature falls linearly from the first epoch to the last. Measured and decided is the softmax of
    the parameters; the published code measures its leading architecture instead. Its order of the two steps, weights
    first, is not followed.

    Paper: Dong and Yang, "Searching for A Robust Neural Architecture in Four GPU Hours", CVPR 2019,
    https://arxiv.org/abs/1910.04465.

    Args:
        start_temperature: Temperature in the first epoch.
        end_temperature: Temperature in the last epoch.
    """

    is_random = True
    samples_one = True

    def __init__(self, start_temperature: float = 10.0, end_temperature: float = 0.1) -> None:
        if not (0 < start_temperature < math.inf and 0 < end_temperature < math.inf):
            raise InputError(
                f"The temperatures are {start_temperature} and {end_temperature}, but they must be finite and above 0; "
                "give such numbers."
            )
        self.start_temperature, self.end_temperature = start_temperature, end_temperature

    def temperature(self, position: float) -> float:
        """Returns the temperature of an epoch, from 0 for the first to 1 for the last one."""
        return self.start_temperature + (self.end_temperature - self.start_temperature) * position

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the probability of each operation."""
        return torch.softmax(only_open(alphas, is_open), dim=-1)

    def sample(self, alphas: Tensor, is_open: Tensor, position: float) -> Tensor:
        """Returns a row of zeros and a single one for each edge, with the derivative of the soft weights."""
        logits = torch.log_softmax(only_open(alphas, is_open), dim=-1)
        # Exponential numbers are never 0 here, so the noise is finite and nothing needs to be drawn again.
        noise = -torch.empty_like(alphas).exponential_().clamp_min(torch.finfo(alphas.dtype).tiny).log()
        soft = torch.softmax((logits + noise) / self.temperature(position), dim=-1)
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())


class Dirichlet(Relaxation):
    """The weights of an edge are drawn from a Dirichlet distribution of concentration ``elu(alpha) + 1`` (DrNAS).

    The draw is reparameterised: its derivative by the parameters is that of the sample. Measured and decided is the
    mean. The parameters are regularised by the weight decay of their optimizer, or by the divergence from the uniform
    distribution.

    Paper: Chen et al., "DrNAS: Dirichlet Neural Architecture Search", ICLR 2021, https://arxiv.org/abs/2006.10355.

    Args:
        divergence_weight: How much the Kullback-Leibler divergence from Dirichlet(1, ..., 1), summed over edges, counts
            (published: 1e-3, in place of alpha_weight_decay).
    """

    is_random = True

    def __init__(self, divergence_weight: float = 0.0) -> None:
        check_least(0, divergence_weight=divergence_weight)
        self.divergence_weight = divergence_weight

    @staticmethod
    def _concentration(alphas: Tensor) -> Tensor:
        # Below this Gamma numbers are too small to be divided by each other; at 0 there is no distribution.
        return (F.elu(alphas) + 1).clamp_min(1e-4)

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the mean of each row's distribution over its open operations."""
        return _shares(self._concentration(alphas) * is_open)

    def sample(self, alphas: Tensor, is_open: Tensor, position: float) -> Tensor:
        """Returns one draw of each row's distribution: Gamma numbers divided by their sum."""
        # Looking at the arguments would make the processor wait for a GPU.
        gammas = Gamma(self._concentration(alphas), torch.ones_like(alphas), validate_args=False).rsample()
        return _shares(gammas * is_open)

    def penalty(self, alphas: Tensor, is_open: Tensor) -> Tensor | None:
        """Returns the weighted divergence from the uniform distribution, summed over edges."""
        if not self.divergence_weight:
            return None
        c, count = self._concentration(alphas), is_open.sum(dim=-1)
        total = (c * is_open).sum(dim=-1, keepdim=True).clamp_min(torch.finfo(c.dtype).tiny)
        each = -torch.lgamma(c) + (c - 1) * (torch.digamma(c) - torch.digamma(total))
        of_edges = torch.where(is_open, each, 0.0).sum(dim=-1) + torch.lgamma(total.squeeze(-1))
        of_edges = torch.where(count > 0, of_edges - torch.lgamma(count.to(c.dtype).clamp_min(1)), 0.0)
        return self.divergence_weight * of_edges.sum()


def _shares(values: Tensor) -> Tensor:
    """Returns the values of each row divided by their sum; a row of zeros stays one."""
    return values / values.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
