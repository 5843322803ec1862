"""What can be chosen, as pure data: edges with their candidate operations, cells made of edges, a space made of cells.

Nodes of a cell are numbered from its inputs on: a cell with two inputs has nodes 0 and 1 for them and 2, 3, … for its
own. An edge leads from a ``source`` to a later ``node``; a node is the sum of its edges.
"""

from dataclasses import dataclass
from typing import Literal

Output = Literal["concat", "last"]
"""What a cell gives on: the channel concatenation of its own nodes, or its last node alone."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of a cell and the operations that may stand on it.

    Args:
        source: Number of the node that the edge reads.
        node: Number of the node that the edge is added to.
        ops: Names of the candidate operations, in the order of the columns of the architecture parameters.
    """

    source: int
    node: int
    ops: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.node}<-{self.source}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One type of cell: every cell of this type in a network shares its architecture.

    Args:
        name: The cell type, for example ``normal``.
        num_inputs: How many earlier outputs the cell reads.
        num_nodes: How many nodes of its own the cell has.
        output: What the cell gives on.
        edges: The edges in the order of the rows of the architecture parameters.
    """

    name: str
    num_inputs: int
    num_nodes: int
    output: Output
    edges: tuple[Edge, ...]

    @property
    def nodes(self) -> range:
        """The numbers of the cell's own nodes."""
        return range(self.num_inputs, self.num_inputs + self.num_nodes)

    @property
    def num_ops(self) -> int:
        """The largest number of candidate operations of an edge: the columns of the architecture parameters."""
        return max(len(edge.ops) for edge in self.edges)

    def edges_into(self, node: int) -> tuple[int, ...]:
        """Returns the indices of the edges that are summed into a node, lowest source first."""
        return tuple(e for e, edge in enumerate(self.edges) if edge.node == node)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a network, see `layout`.

    Args:
        cell: The cell type, or None for a fixed residual block.
        width: Channels of the block in multiples of the network's initial channels.
        reduction: Whether the block halves the height and width.
    """

    cell: str | None
    width: int
    reduction: bool


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """A set of architectures: the cells to be searched and the network they stand in.

    Args:
        name: The name that genotypes carry.
        macro: The network around the cells, see `layout`.
        cells: The cell types.
        inputs_per_node: How many edges into each node an architecture keeps, or None for all of them.
        none_selectable: Whether the operation ``none`` may stand in an architecture when magnitude selects.
        parallel: Whether a node may read one input more than once, each time through another operation.
    """

    name: str
    macro: Literal["darts", "nasbench201", "mobile"]
    cells: tuple[Cell, ...]
    inputs_per_node: int | None
    none_selectable: bool
    parallel: bool = False

    def cell(self, name: str) -> Cell:
        """Returns the cell type of that name.

        Raises:
            KeyError: If the space has no such cell type.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise KeyError(name)
