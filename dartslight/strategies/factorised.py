"""Factorised cells: a node has two slots, and each of them draws the input that it reads and its operation (UNAS).

Both are categorical variables of their own. The weight of an operation on an edge is the sum over the slots of the
probability, or the sample, of that input times that of the operation. So the weights of all edges into a node sum to
the number of slots, a draw is a whole architecture, and which inputs a node keeps is not left to a rule.

Paper: UNAS, Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651. The published code leaves out operations whose
weight is below 0.05 for all pictures of a batch; here all are computed.
"""

import copy
import functools

import torch
from torch import Tensor

from dartslight.errors import InputError, check_least
from dartslight.spaces import Cell, SearchSpace
from dartslight.strategies.draws import Draw, Sampled, draw, log_probabilities

SLOTS = 2
"""The slots of a node, each of which has one input and one operation."""


class Factorised(Sampled):
    """Every node draws its inputs: two slots with a variable for the input and one for the operation each (UNAS).

    It needs a space that lets a node read one input through two operations (``unas``). Two slots of a node that draw
    the same operation of the same input give it twice the weight; a penalty keeps them apart. A node that has no more
    operations left than slots is decided.

    The parameters of a cell type have a row for the input and one for the operation of each slot of each node, and as
    many columns as the widest of these variables has values; columns that a variable does not have are never looked at.

    Paper: Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651.

    Args:
        temperature: Temperature of the relaxed samples, which stays as it is.
        soften: What is added to every probability before they are divided by their sum, so that none vanishes
            (published: 0 on CIFAR-10, 0.08 on ImageNet).
        per_batch: Whether all pictures of a batch share one architecture, see `Sampled`.
        duplicate_weight: How much the probability counts, summed over nodes, that both slots draw the same operation of
            the same input.
    """

    sums_to_one = False
    draws_inputs = True

    def __init__(
        self,
        temperature: float = 0.4,
        soften: float = 0.0,
        per_batch: bool = False,
        duplicate_weight: float = 0.2,
    ) -> None:
        super().__init__(temperature, soften, per_batch)
        check_least(0, duplicate_weight=duplicate_weight)
        self.duplicate_weight = duplicate_weight
        self._cell: Cell | None = None

    def check(self, space: SearchSpace) -> None:
        """Checks that nodes of a space can have slots.

        Raises:
            InputError: If they cannot.
        """
        for cell in space.cells:
            ops = {edge.ops for edge in cell.edges}
            in_order = [edge.node for edge in cell.edges] == sorted(edge.node for edge in cell.edges)
            if not (space.parallel and space.inputs_per_node == SLOTS and len(ops) == 1 and in_order):
                raise InputError(
                    "Factorised draws two inputs of each node, which may be one input through two operations, but "
                    "nodes of this space cannot have such inputs; use the space unas, or the relaxation Sampled."
                )

    def of(self, cell: Cell) -> "Factorised":
        """Returns the relaxation that knows the edges of a cell type."""
        own = copy.copy(self)
        own._cell = cell
        return own

    def shape(self, cell: Cell) -> tuple[int, int]:
        """Returns the number of variables, and of the values of the widest."""
        return cell.num_nodes * SLOTS * 2, max(cell.num_ops, *(len(cell.edges_into(node)) for node in cell.nodes))

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the expected weight of each operation given that the slots draw what is open, (edges, ops).

        The operations that a decided node is left with have the weight 1.
        """
        expected = self.slots(alphas, is_open).sum(dim=0)
        return torch.where(self._is_decided(is_open), is_open.to(alphas.dtype), expected)

    def slots(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the probability of each operation in each slot given that it draws what is open, (slots, edges, ops).

        Args:
            alphas: The architecture parameters, see the class.
            is_open: Whether each operation can still be chosen, (edges, ops).
        """
        exists, _ = self._layout(alphas.device)
        whole = self._products(log_probabilities(alphas, exists, self.soften).exp() * exists)
        tiny = torch.finfo(alphas.dtype).tiny
        # An edge keeps its share of the node as long as an operation is open there, and each slot sums to 1.
        own = whole * is_open
        own = own * (whole.sum(dim=-1, keepdim=True) / own.sum(dim=-1, keepdim=True).clamp_min(tiny))
        return own / self._over_nodes(own.sum(dim=-1)).clamp_min(tiny).unsqueeze(-1)

    def draw(self, alphas: Tensor, is_open: Tensor, count: int, generator: torch.Generator | None = None) -> Draw:
        """Returns samples; the operations that a decided node is left with have the weight 1 in each of them.

        Args:
            alphas: The architecture parameters, see the class.
            is_open: Whether each operation can be drawn, (edges, ops): of a node all, or what it was decided for.
            count: Number of samples.
            generator: Draws the noise, on the device of the parameters; None for torch's own.
        """
        exists, into = self._layout(alphas.device)
        decided = self._is_decided(is_open)
        undecided_nodes = (into & ~decided.squeeze(-1)).any(dim=-1)
        drawn = exists & undecided_nodes.repeat_interleave(SLOTS * 2, output_size=len(exists)).unsqueeze(-1)
        variables = draw(alphas, drawn, count, self.temperature, self.soften, generator)
        hard, relaxed, conditional = (
            torch.where(decided, is_open.to(alphas.dtype), self._products(weights).sum(dim=-3))
            for weights in variables[:3]
        )
        return Draw(hard, relaxed, conditional, variables.log_probability)

    def penalty(self, alphas: Tensor, is_open: Tensor) -> Tensor | None:
        """Returns the weighted probability that both slots of a node draw the same, summed over undecided nodes."""
        if not self.duplicate_weight:
            return None
        first, second = self.slots(alphas, is_open)
        probability: Tensor = (first * second * ~self._is_decided(is_open)).sum()
        return self.duplicate_weight * probability

    def _is_decided(self, is_open: Tensor) -> Tensor:
        """Whether the node of each edge has no more operations left than slots, (edges, 1)."""
        return (self._over_nodes(is_open.sum(dim=-1)) <= SLOTS).unsqueeze(-1)

    def _over_nodes(self, of_edges: Tensor) -> Tensor:
        """Returns the sum of numbers over all edges into the node of each edge, (..., edges)."""
        _, into = self._layout(of_edges.device)
        of_nodes = (into * of_edges.unsqueeze(-2)).sum(dim=-1)
        return (into.T * of_nodes.unsqueeze(-2)).sum(dim=-1)

    def _products(self, variables: Tensor) -> Tensor:
        """Returns the weight of each operation in each slot, (..., slots, edges, ops).

        Args:
            variables: The weights of the values of the variables, (..., variables, values).
        """
        cell = self._of_cell
        shape = (*variables.shape[:-2], cell.num_nodes, SLOTS, 2, variables.shape[-1])
        nodes = variables.reshape(shape).unbind(dim=-4)
        return torch.cat(
            [
                own[..., 0, : len(cell.edges_into(node)), None] * own[..., 1, None, : cell.num_ops]
                for node, own in zip(cell.nodes, nodes, strict=True)
            ],
            dim=-2,
        )

    def _layout(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Whether each variable has each value, (variables, values), and what leads into each node, (nodes, edges)."""
        return _layout(self._of_cell, self.shape(self._of_cell), device)

    @property
    def _of_cell(self) -> Cell:
        assert self._cell is not None, "only what `of` has returned can be asked"
        return self._cell


@functools.lru_cache(maxsize=64)  # a transfer to a GPU in every step would make the processor wait for it
def _layout(cell: Cell, shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        exists = torch.zeros(cell.num_nodes, SLOTS, 2, shape[1], dtype=torch.bool)
        into = torch.zeros(cell.num_nodes, len(cell.edges), dtype=torch.bool)
        for n, node in enumerate(cell.nodes):
            into[n, list(cell.edges_into(node))] = True
            exists[n, :, 0, : len(cell.edges_into(node))] = True
            exists[n, :, 1, : cell.num_ops] = True
        return exists.flatten(0, 2).to(device), into.to(device)
