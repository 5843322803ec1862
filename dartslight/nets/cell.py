"""One cell: a small graph of nodes, each the weighted sum of the operations on its incoming edges.

The supernet and the discrete network use the same cell: in the one an edge carries all candidate operations, in the
other exactly one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dartslight.nets.operations import Operation, Setting, Source, Weight, make_operation
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
        self._all: Columns = [range(len(edge.ops)) for edge in cell.edges]
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
        nodes = list(inputs)
        if self.preprocess:
            nodes = [Source(f(x, None)) for f, x in zip(self.preprocess, inputs, strict=True)]
        for node, edges in self._into:
            total: Tensor | None = None
            for e in edges:
                for o in self._all[e] if columns is None else columns[e]:
                    op = self.operation(e, o)
                    term = op(nodes[self.cell.edges[e].source], None if weights is None else weights[e][o])
                    if term is None:
                        continue
                    if drop_path and self.training and op.droppable:
                        term = drop(term, drop_path)
                    total = term if total is None else total + term
            nodes.append(Source(self._nothing(nodes[0].x) if total is None else total))
            assert len(nodes) == node + 1
        if self.cell.output == "last":
            return nodes[-1]
        return Source(torch.cat([node.x for node in nodes[self.cell.num_inputs :]], dim=1))

    def _nothing(self, x: Tensor) -> Tensor:
        """The value of a node that nothing is added to."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def drop(x: Tensor, probability: float) -> Tensor:
    """Zeroes whole pictures at random and scales the others so that the mean stays (drop path, Larsson et al. 2017).

    Args:
        x: (batch, channels, height, width).
        probability: Probability with which a picture is zeroed, below 1.
    """
    keep = torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - probability)
    return x * keep / (1 - probability)
