"""One cell: a small graph of nodes, each the weighted sum of the operations on its incoming edges.

The supernet and the discrete network use the same cell: in the one an edge carries all candidate operations, in the
other exactly one.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.nets.operations import Bypass, Identity, Offset, Operation, Setting, Source, make_operation, skip
from dartslight.nets.weighted_sum import Term, Weight, value, weighted_sum
from dartslight.spaces import Cell

EdgeTerm = Literal["auxiliary_skip", "bypass", "offset"]
"""What an edge can carry beside its candidate operations, as long as one of them is left; it is never chosen itself.

A skip connection of its own (DARTS-), the channels that pass by the operations (PC-DARTS), or a number that is added
everywhere, is 0 and gives operations that were not sampled a derivative (GDAS).
"""

Weights = Sequence[Sequence[Weight]]
"""The mixing weight of every operation, then of every edge term, on every edge of a cell."""

Columns = Sequence[Sequence[int]]
"""The operations of every edge that are computed."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What is left out at random in training.

    Args:
        path: Probability with which a picture loses the output of an operation with weights (drop path).
        edge: Probability with which a picture loses all that an edge gives (drop path of a supernet, R-DARTS).
        skip: Probability with which a number of a ``skip_connect`` without weights is set to 0 (P-DARTS).
    """

    path: float = 0.0
    edge: float = 0.0
    skip: float = 0.0


NO_DROP = Drop()


class CellNetwork(nn.Module):
    """A cell with its operations.

    Args:
        cell: The edges and their operations.
        preprocess: What turns each input into a node of the cell's channels, or nothing where they fit already.
        setting: Channels and kind of the operations; its stride is for the edges that read the cell's inputs, all
            other edges have stride 1.
        terms: What every edge carries beside its operations; their columns of the mixing follow those of the
            operations.
    """

    def __init__(
        self, cell: Cell, preprocess: Sequence[Operation], setting: Setting, terms: Sequence[EdgeTerm] = ()
    ) -> None:
        super().__init__()
        self.cell = cell
        self.stride = setting.stride
        self.partial_channels = setting.partial_channels
        self.part = setting.channels // setting.partial_channels
        self.preprocess = nn.ModuleList(preprocess)
        self.ops = nn.ModuleDict()
        self._keys: list[dict[int, str]] = []
        width = cell.num_ops
        for edge in cell.edges:
            stride = setting.stride if edge.source < cell.num_inputs else 1
            place = replace(setting, channels=self.part, stride=stride)
            made = {column: (name, make_operation(name, place)) for column, name in enumerate(edge.ops)}
            made |= {width + t: (name, _TERMS[name](place)) for t, name in enumerate(terms)}
            keys = {}
            for column, (name, op) in made.items():
                key = f"{name}_from_{edge.source}" + ("" if op.shared else f"_to_{edge.node}")
                if key not in self.ops:
                    self.ops[key] = op
                keys[column] = key
            self._keys.append(keys)
        self.all_columns: Columns = [tuple(keys) for keys in self._keys]
        self._terms = tuple(range(width, width + len(terms)))
        self._into = [(node, cell.edges_into(node)) for node in cell.nodes]

    def with_terms(self, columns: Columns | None) -> Columns:
        """Returns the columns to compute for some open operations: theirs, and the edge terms where one is left."""
        if columns is None:
            return self.all_columns
        return [(*edge, *self._terms) if edge else () for edge in columns] if self._terms else columns

    def operation(self, edge: int, column: int) -> Operation:
        """Returns one operation of one edge."""
        op = self.ops[self._keys[edge][column]]
        assert isinstance(op, Operation)
        return op

    def exchangeable(self, edges: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the pairs among some edges whose operations take and give pictures of the same shapes."""
        kinds = {e: self.stride > 1 and self.cell.edges[e].source < self.cell.num_inputs for e in edges}
        return [(a, b) for a, b in itertools.combinations(edges, 2) if kinds[a] == kinds[b]]

    @contextlib.contextmanager
    def exchanged(self, a: int, b: int) -> Iterator[None]:
        """While this lasts, two edges with their operations and mixing weights stand in each other's place."""
        cell, into = self.cell, self._into
        edges = list(cell.edges)
        edges[a] = replace(cell.edges[b], ops=cell.edges[a].ops)
        edges[b] = replace(cell.edges[a], ops=cell.edges[b].ops)
        self.cell = replace(cell, edges=tuple(edges))
        self._into = [(node, self.cell.edges_into(node)) for node in cell.nodes]
        try:
            yield
        finally:
            self.cell, self._into = cell, into

    def forward(
        self,
        inputs: Sequence[Source],
        weights: Weights | None = None,
        columns: Columns | None = None,
        drop: Drop = NO_DROP,
    ) -> Source:
        """Returns the cell's output: node j = sum over edges (i, j) and operations o of weight * o(node i).

        Args:
            inputs: The outputs of earlier cells, (batch, channels, height, width) each.
            weights: The mixing weights; None for 1 everywhere.
            columns: The operations that are open; None for all.
            drop: What is left out at random (training only).
        """
        nodes, columns = self._entrances(inputs), self.with_terms(columns)
        for node, edges in self._into:
            places = [(e, o) for e in edges for o in columns[e]]
            terms = [self._dropped(self._term(nodes, e, o, weights), e, o, drop) for e, o in places]
            if drop.edge and self.training:
                terms = self._without_edges(places, terms, drop.edge)
            nodes.append(self._node(places, terms, nodes))
            assert len(nodes) == node + 1
        return self._exit(nodes)

    def forward_each(self, inputs: Sequence[Source], weights: Weights, columns: Sequence[Columns]) -> list[Source]:
        """Returns the outputs for several sets of operations to compute on the same inputs.

        Sums of the same operations on the same nodes are computed once, and so is an operation on one node.

        Args:
            inputs: The inputs as in `forward`.
            weights: The mixing weights.
            columns: The operations that are open, one set for each output.
        """
        entrances = self._entrances(inputs)
        columns = [self.with_terms(own) for own in columns]
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
                    places = [(e, o) for _, e, o in summands]
                    sums[summands] = self._node(places, [terms[key] for key in summands], nodes)
                nodes.append(sums[summands])
        return [self._exit(nodes) for nodes in variants]

    def _term(self, nodes: Sequence[Source], edge: int, column: int, weights: Weights | None) -> Term:
        """Returns the weighted output of one operation on one edge."""
        weight = None if weights is None else weights[edge][column]
        source, op = nodes[self.cell.edges[edge].source], self.operation(edge, column)
        if self.partial_channels > 1:
            first, rest = source.split(self.part)
            source = rest if isinstance(op, Bypass) else first
            if weight is not None and weight.dim() == 1:
                weight = weight[: source.x.shape[1]]
        term: Term = op(source, weight)
        return term

    def _dropped(self, term: Term, edge: int, column: int, drop: Drop) -> Term:
        """Returns what is left of an operation's output after what is left out at random."""
        if term is None or drop is NO_DROP or not self.training:
            return term
        op = self.operation(edge, column)
        if drop.skip and isinstance(op, Identity) and column not in self._terms:
            return F.dropout(value(term), drop.skip)
        return drop_path(term, drop.path) if drop.path and op.droppable else term

    def _without_edges(
        self, places: Sequence[tuple[int, int]], terms: Sequence[Term], probability: float
    ) -> list[Term]:
        """Returns the terms of a node's edges, each edge's added up, after pictures have lost some edges whole."""
        left: list[Term] = [None] * len(terms)
        for edge in dict.fromkeys(e for e, _ in places):
            own = [i for i, (e, _) in enumerate(places) if e == edge]
            kinds = [type(self.operation(*places[i])) for i in own]
            keep: Tensor | None = None
            for is_bypass in (False, True):
                some = [i for i, k in zip(own, kinds, strict=True) if k is not Offset and (k is Bypass) == is_bypass]
                total = weighted_sum([terms[i] for i in some])
                if total is not None:
                    keep = _kept(total, probability) if keep is None else keep
                    left[some[0]] = total * keep
            for i in (i for i, k in zip(own, kinds, strict=True) if k is Offset):
                left[i] = terms[i]
        return left

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

    def _node(self, places: Sequence[tuple[int, int]], terms: Sequence[Term], nodes: Sequence[Source]) -> Source:
        """The node with the sum of these terms, which is zeros of a node's shape where there is nothing to add."""
        summed: Sequence[Term] = terms
        passing: Sequence[Term] = ()
        offsets: Sequence[Tensor] = ()
        if self._terms:
            kinds = [type(self.operation(e, o)) for e, o in places]
            summed = [t for t, kind in zip(terms, kinds, strict=True) if kind not in (Bypass, Offset)]
            passing = [t for t, kind in zip(terms, kinds, strict=True) if kind is Bypass]
            offsets = [t for t, kind in zip(terms, kinds, strict=True) if kind is Offset and isinstance(t, Tensor)]
        passed = weighted_sum(passing)
        total = weighted_sum(summed)
        if total is None:
            like = nodes[0].x if passed is None else nodes[0].x[:, : self.part]
            total = torch.zeros_like(like[:, :, :: self.stride, :: self.stride])
        if offsets:
            total = total + sum(offsets)  # of a few numbers each, so that the pictures are added to only once
        return Source(total if passed is None else _shuffled(torch.cat([total, passed], dim=1), self.partial_channels))


_TERMS: dict[str, Callable[[Setting], Operation]] = {
    "auxiliary_skip": skip,
    "bypass": lambda place: Bypass(place.stride),
    "offset": lambda place: Offset(),
}


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Returns the channels with one of each group in turn (ShuffleNet, https://arxiv.org/abs/1707.01083)."""
    batch, channels, height, width = x.shape
    shuffled = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)
    return shuffled.contiguous(memory_format=torch.channels_last)


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


def drop_path(term: Term, probability: float) -> Term:
    """Zeroes whole pictures at random and scales the others so that the mean stays (drop path, Larsson et al. 2017).

    Args:
        term: What an operation adds to a node, (batch, channels, height, width).
        probability: Probability with which a picture is zeroed, below 1.
    """
    if term is None:
        return None
    x = value(term)
    return x * _kept(x, probability)


def _kept(x: Tensor, probability: float) -> Tensor:
    """Returns for each picture 0, with a probability, or what keeps the mean, (batch, 1, 1, 1)."""
    return torch.empty(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - probability) / (
        1 - probability
    )
