"""Criteria that are measured: what an architecture costs, as a number of its genotype."""

import statistics
import time
from abc import abstractmethod
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from dartslight.benchmarks import Table
from dartslight.criteria.criterion import Criterion
from dartslight.errors import InputError, check_least
from dartslight.genotype import Genotype
from dartslight.nets import DiscreteNetwork
from dartslight.nets.cell import CellNetwork
from dartslight.spaces import Edge, SearchSpace

_Owner = tuple[str, Edge] | None
"""What takes multiply-adds: an edge of a cell type, or None for all that is around the cells."""


class Cost(Criterion):
    """What an architecture costs above a target, times a coefficient that grows linearly at first (UNAS).

    Paper: Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651.

    Args:
        target: What an architecture may cost.
        coefficient: The loss of each unit above the target.
        warmup_steps: Number of architecture steps in which the coefficient grows from 0.
    """

    differentiable = False

    def __init__(self, target: float, coefficient: float = 0.1, warmup_steps: int = 0) -> None:
        check_least(0, target=target, coefficient=coefficient, warmup_steps=warmup_steps)
        self.target, self.coefficient, self.warmup_steps = target, coefficient, warmup_steps

    def __repr__(self) -> str:
        # A table is told by its name.
        settings = {name: getattr(value, "name", value) for name, value in vars(self).items() if name[0] != "_"}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in sorted(settings.items()))})"

    @property
    def name(self) -> str:
        """What it is called where it is logged."""
        return type(self).__name__

    def check(self, space: SearchSpace, draws_inputs: bool) -> None:
        """Checks that what is drawn is an architecture of the space.

        Args:
            space: The search space.
            draws_inputs: Whether the inputs of nodes are drawn with the operations.

        Raises:
            InputError: If it is not.
        """
        if space.inputs_per_node is not None and not draws_inputs:
            raise InputError(
                f"{type(self).__name__} measures whole architectures, but those of the space {space.name!r} keep only "
                f"{space.inputs_per_node} inputs of each node, which no draw of operations chooses; use nasbench201, a "
                "mobile space, or the space unas with the relaxation Factorised, or criteria of the network alone."
            )

    @abstractmethod
    def measure(self, genotype: Genotype) -> float:
        """Returns what an architecture costs.

        Raises:
            InputError: If it cannot be told for such an architecture.
        """

    def loss(self, costs: Tensor, step: int) -> Tensor:
        """Returns the loss of each sample, (samples,).

        Args:
            costs: What the samples cost, measured or by a surrogate, (samples,).
            step: Number of architecture steps that were taken with this criterion before.
        """
        share = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.coefficient * share * torch.relu(costs - self.target)


class TableCost(Cost):
    """A column of a table of known architectures, such as a latency on a device.

    Args:
        table: Path of a CSV file (plain or .gz) with a column ``arch`` in NAS-Bench-201's notation.
        column: The column, in whose unit the target is.
        target: What an architecture may cost.
        coefficient: The loss of each unit above the target.
        warmup_steps: Number of architecture steps in which the coefficient grows from 0.

    Raises:
        InputError: If the table cannot be read or has no such column of numbers.
    """

    def __init__(self, table: str, column: str, target: float, coefficient: float = 0.1, warmup_steps: int = 0) -> None:
        super().__init__(target, coefficient, warmup_steps)
        self.table, self.column = Table.read(table), column
        if column not in self.table.columns:
            raise InputError(
                f"{self.table.name} has no column of numbers {column!r}; give one of {', '.join(self.table.columns)}."
            )

    @property
    def name(self) -> str:
        """The name of the column."""
        return self.column

    def check(self, space: SearchSpace, draws_inputs: bool) -> None:
        """Checks that the table lists architectures of the space.

        Raises:
            InputError: If it does not.
        """
        if space.name != "nasbench201":
            raise InputError(
                f"TableCost looks architectures of the space 'nasbench201' up, but the search is in {space.name!r}; "
                "use that space, or a cost that is counted or timed."
            )

    def measure(self, genotype: Genotype) -> float:
        """Returns what the table says."""
        return self.table.value(genotype.to_nasbench201(), self.column)


class _NetworkCost(Cost):
    """What the discrete network of an architecture costs, not the supernet."""

    def __init__(
        self,
        num_cells: int,
        init_channels: int,
        target: float,
        coefficient: float,
        warmup_steps: int,
        size: int,
        num_classes: int,
    ) -> None:
        super().__init__(target, coefficient, warmup_steps)
        check_least(1, size=size)
        self.num_cells, self.init_channels, self.size, self.num_classes = num_cells, init_channels, size, num_classes

    def _network(self, genotype: Genotype) -> DiscreteNetwork:
        return DiscreteNetwork(genotype, self.num_cells, self.init_channels, self.num_classes)


class MultiplyAdds(_NetworkCost):
    """Millions of multiply-adds that the discrete network takes for one picture; pooling and normalisation are free.

    Args:
        num_cells: Number of cells in that network.
        init_channels: Channels of its first cell's operations.
        target: Millions that an architecture may take.
        coefficient: The loss of each million above the target.
        warmup_steps: Number of architecture steps in which the coefficient grows from 0.
        size: Height and width of a picture in pixels.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        num_cells: int,
        init_channels: int,
        target: float,
        coefficient: float = 0.1,
        warmup_steps: int = 0,
        size: int = 32,
        num_classes: int = 10,
    ) -> None:
        super().__init__(num_cells, init_channels, target, coefficient, warmup_steps, size, num_classes)
        self._known: dict[_Owner, int] = {}

    name = "multiply_adds"

    def measure(self, genotype: Genotype) -> float:
        """Returns the number of millions."""
        edges = [(cell.name, edge) for cell in genotype.cells for edge in cell.edges]
        # An operation takes as many in every architecture, and a network is slow to build.
        if not self._known.keys() >= set(edges):
            self._known.update(self._count(genotype))
        return sum(self._known[key] for key in (None, *edges)) / 1e6

    @torch.no_grad()
    def _count(self, genotype: Genotype) -> Counter[_Owner]:
        """Returns how many each edge of each cell type takes in the whole network, and under None how many the rest."""
        meta = torch.device("meta")  # shapes alone, without arithmetic
        with meta:
            network = self._network(genotype).eval()
        edges: list[_Owner] = [(cell.name, edge) for cell in genotype.cells for edge in cell.edges]
        counts = Counter(dict.fromkeys((None, *edges), 0))
        owners: dict[nn.Module, _Owner] = {}
        for block in network.blocks:
            if isinstance(block, CellNetwork):
                for e, edge in enumerate(block.cell.edges):
                    owners.update(dict.fromkeys(block.operation(e, 0).modules(), (block.cell.name, edge)))

        def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # The weights of one output channel are used once for each pixel of it.
            weight = layer.get_parameter("weight")
            counts[owners.get(layer)] += output.numel() * (weight.numel() // weight.shape[0])

        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(count)
        network(torch.empty(1, 3, self.size, self.size, device=meta))
        return counts


class Latency(_NetworkCost):
    """Milliseconds that the discrete network takes for a batch on the machine at hand: the median of some passes.

    UNAS times the chosen operations of the supernet, which is the network of its space; cells stand in a larger one.

    Args:
        num_cells: Number of cells in that network.
        init_channels: Channels of its first cell's operations.
        target: Milliseconds that an architecture may take.
        coefficient: The loss of each millisecond above the target.
        warmup_steps: Number of architecture steps in which the coefficient grows from 0.
        size: Height and width of a picture in pixels.
        num_classes: Number of classes.
        batch_size: Number of pictures in a pass.
        repeats: Number of passes that are timed.
        device: The device, such as ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        num_cells: int,
        init_channels: int,
        target: float,
        coefficient: float = 0.1,
        warmup_steps: int = 0,
        size: int = 32,
        num_classes: int = 10,
        batch_size: int = 24,
        repeats: int = 10,
        device: str = "cpu",
    ) -> None:
        super().__init__(num_cells, init_channels, target, coefficient, warmup_steps, size, num_classes)
        check_least(1, batch_size=batch_size, repeats=repeats)
        self.batch_size, self.repeats, self.device = batch_size, repeats, torch.device(device)

    name = "latency"

    @torch.no_grad()
    def measure(self, genotype: Genotype) -> float:
        """Returns the median in milliseconds, which is never quite the same."""
        with torch.random.fork_rng(devices=[]):  # the search must not draw other numbers for having measured
            network = self._network(genotype).to(self.device)
        # A processor slows down with tiny numbers, which a deep network makes unless it normalises them.
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        images = torch.ones(self.batch_size, 3, self.size, self.size, device=self.device)
        network(images)
        network.eval()
        return 1e3 * statistics.median(self._seconds(network, images) for _ in range(self.repeats))

    def _seconds(self, network: nn.Module, images: Tensor) -> float:
        self._wait()
        start = time.perf_counter()
        network(images)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
