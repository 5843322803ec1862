"""One cell: a small graph of nodes, each the weighted sum of the operations on its incoming edges.

The supernet and the discrete network use the same cell: in the one an edge carries all candidate operations, in the
other exactly one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dartslight.nets.operations import Operation, Setting, Source, make_operation
from dartslight.nets.weighted_sum import Term, Weight, value, weighted_sum
from dartslight.spaces import Cell

Weights = Sequence[Sequence[Weight]]
"""The mixing weight of every operation on every edge of a cell."""

Columns = Sequence[Sequence[int]]
"""The operations of every edge that are computed."""


class CellNetwork(nn.Module):
    """A cell with its operations.

    Args:
        cell: The edges and their operations.
        preprocess: What turns each input into a node of the cell's channels, or nothing where they fit already.
        setting: Channels and kind of the operations; its stride is for the edges that read the cell's inputs, all
            other edges have stride 1.
    """

    def __init__(self, cell: Cell, preprocess: Sequence[Operation], setting: Setting) -> None:
        super().__init__()
        self.cell = cell
        self.stride = setting.stride
        self.preprocess = nn.ModuleList(preprocess)
        self.ops = nn.ModuleDict()
        self._keys: list[list[str]] = []
        for edge in cell.edges:
            stride = setting.stride if edge.source < cell.num_inputs else 1
            place = Setting(setting.channels, stride, setting.affine, setting.track, setting.normalise_pools)
            keys = []
            for name in edge.ops:
                op = make_operation(name, place)
                key = f"{name}_from_{edge.source}" + ("" if op.shared else f"_to_{edge.node}")
                if key not in self.ops:
                    self.ops[key] = op
                keys.append(key)
            self._keys.append(keys)
        self.all_columns: Columns = [range(len(edge.ops)) for edge in cell.edges]
        self._into = [(node, cell.edges_into(node)) for node in cell.nodes]

    def operation(self, edge: int, column: int) -> Operation:
        """Returns one operation of one edge."""
        op = self.ops[self._keys[edge][column]]
        assert isinstance(op, Operation)
        return op

    def forward(
        self,
        inputs: Sequence[Source],
        weights: Weights | None = None,
        columns: Columns | None = None,
        drop_path: float = 0.0,
    ) -> Source:
        """Returns the cell's output: node j = sum over edges (i, j) and operations o of weight * o(node i).

        Args:
            inputs: The outputs of earlier cells, (batch, channels, height, width) each.
            weights: The mixing weights; None for 1 everywhere.
            columns: The operations to compute; None for all.
            drop_path: Probability with which a picture loses the output of an operation (training only).
        """
        nodes = self._entrances(inputs)
        for node, edges in self._into:
            terms: list[Term] = []
            for e in edges:
                for o in self.all_columns[e] if columns is None else columns[e]:
                    term = self._term(nodes, e, o, weights)
                    if drop_path and self.training and self.operation(e, o).droppable:
                        term = drop(term, drop_path)
                    terms.append(term)
            nodes.append(self._node(terms, nodes))
            assert len(nodes) == node + 1
        return self._exit(nodes)

    def forward_each(self, inputs: Sequence[Source], weights: Weights, columns: Sequence[Columns]) -> list[Source]:
        """Returns the outputs for several sets of operations to compute on the same inputs.

        Sums of the same operations on the same nodes are computed once, and so is an operation on one node.

        Args:
            inputs: The inputs as in `forward`.
            weights: The mixing weights.
            columns: The operations to compute, one set for each output.
        """
        entrances = self._entrances(inputs)
        variants = [list(entrances) for _ in columns]
        for _, edges in self._into:
            terms: dict[tuple[Source, int, int], Term] = {}
            sums: dict[tuple[tuple[Source, int, int], ...], Source] = {}
            for nodes, own in zip(variants, columns, strict=True):
                summands = tuple((nodes[self.cell.edges[e].source], e, o) for e in edges for o in own[e])
                if summands not in sums:
                    for key in summands:
                        if key not in terms:
                            terms[key] = self._term(nodes, *key[1:], weights)
                    sums[summands] = self._node([terms[key] for key in summands], nodes)
                nodes.append(sums[summands])
        return [self._exit(nodes) for nodes in variants]

    def _term(self, nodes: Sequence[Source], edge: int, column: int, weights: Weights | None) -> Term:
        """Returns the weighted output of one operation on one edge."""
        weight = None if weights is None else weights[edge][column]
        term: Term = self.operation(edge, column)(nodes[self.cell.edges[edge].source], weight)
        return term

    def inputs(self, states: tuple[Source, Source]) -> Sequence[Source]:
        """Returns what the cell reads of the outputs of the two blocks before it."""
        return states[-self.cell.num_inputs :]

    def _entrances(self, inputs: Sequence[Source]) -> list[Source]:
        """The first nodes: the inputs with the cell's number of channels."""
        if not self.preprocess:
            return list(inputs)
        return [Source(value(f(x, None))) for f, x in zip(self.preprocess, inputs, strict=True)]

    def _exit(self, nodes: Sequence[Source]) -> Source:
        """The output of a cell with these nodes."""
        if self.cell.output == "last":
            return nodes[-1]
        return Source(torch.cat([_DenseGradient.apply(node.x) for node in nodes[self.cell.num_inputs :]], dim=1))

    def _node(self, terms: Sequence[Term], nodes: Sequence[Source]) -> Source:
        """The node with the sum of these terms, which is zeros of a node's shape where there is nothing to add."""
        total = weighted_sum(terms)
        if total is not None:
            return Source(total)
        return Source(torch.zeros_like(nodes[0].x[:, :, :: self.stride, :: self.stride]))


class _DenseGradient(torch.autograd.Function):
    """Does nothing, but its derivative lies in memory without gaps.

    The derivative of a concatenation is a slice, on which normalisations are many times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def drop(term: Term, probability: float) -> Term:
    """Zeroes whole pictures at random and scales the others so that the mean stays (drop path, Larsson et al. 2017).

    Args:
        term: What an operation adds to a node, (batch, channels, height, width).
        probability: Probability with which a picture is zeroed, below 1.
    """
    if term is None:
        return None
    x = value(term)
    keep = torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - probability)
    return x * keep / (1 - probability)
