"""What has been decided, as a value: the operations that are still open on each edge."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dartslight.spaces.space import SearchSpace

EdgeKey = tuple[str, int]
"""A cell type and the index of one of its edges."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The columns of the architecture parameters that can still be chosen, for each cell type and edge.

    An edge with one open operation is decided; an edge with none is gone. Where a node may read one input through
    several operations, it is decided when no more are left than it has inputs. Every change gives a new value.

    Args:
        open: Pairs of a cell type and, for each of its edges, the open columns in ascending order.
    """

    open: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]

    @classmethod
    def everything(cls, space: SearchSpace) -> "Choices":
        """Returns the choices of a space in which nothing is decided."""
        return cls(
            tuple((cell.name, tuple(tuple(range(len(edge.ops))) for edge in cell.edges)) for cell in space.cells)
        )

    def of(self, cell: str) -> tuple[tuple[int, ...], ...]:
        """Returns the open columns of every edge of a cell type."""
        return dict(self.open)[cell]

    def decide(self, key: EdgeKey, op: int) -> "Choices":
        """Returns choices in which only one operation is left on an edge."""
        return self._replace(key, (op,))

    def close(self, key: EdgeKey, op: int) -> "Choices":
        """Returns choices in which an operation can no longer be chosen on an edge."""
        return self._replace(key, tuple(column for column in self.of(key[0])[key[1]] if column != op))

    def drop(self, keys: Iterable[EdgeKey]) -> "Choices":
        """Returns choices without some edges."""
        choices = self
        for key in keys:
            choices = choices._replace(key, ())
        return choices

    def undecided(self, cell: str) -> tuple[int, ...]:
        """Returns the edges of a cell type on which more than one operation is open."""
        return tuple(e for e, columns in enumerate(self.of(cell)) if len(columns) > 1)

    def kept(self, cell: str) -> tuple[int, ...]:
        """Returns the edges of a cell type that are not gone."""
        return tuple(e for e, columns in enumerate(self.of(cell)) if columns)

    def state(self) -> dict[str, list[list[int]]]:
        """Returns plain lists for a checkpoint."""
        return {cell: [list(columns) for columns in edges] for cell, edges in self.open}

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[Sequence[int]]]) -> "Choices":
        """Returns the value that `state` was taken from."""
        return cls(tuple((cell, tuple(tuple(columns) for columns in edges)) for cell, edges in state.items()))

    def _replace(self, key: EdgeKey, columns: tuple[int, ...]) -> "Choices":
        cell, index = key
        edges = self.of(cell)
        changed = (*edges[:index], columns, *edges[index + 1 :])
        return Choices(tuple((name, changed if name == cell else rows) for name, rows in self.open))
