"""The discrete description of an architecture: frozen values, versioned JSON, the notations of DARTS and NAS-Bench-201.

A genotype is self-contained: it holds every cell with its edges, so that retraining, drawing and look-ups need no
search space beside it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dartslight.errors import InputError
from dartslight.notations import DartsCells, read_notation
from dartslight.spaces import SPACES, Cell, Choices, Edge, SearchSpace, mobile_cell

FORMAT = "dartslight.genotype/1"
_MACROS = ("darts", "nasbench201", "mobile")
_PUBLISHED = {"darts": (20, 36), "nasbench201": (15, 16)}
_MOBILE_CHANNELS = 8


def _cell_names(macro: str, count: int) -> tuple[str, ...]:
    """The names of the cell types of a network, of which a mobile one has as many as layers."""
    if macro == "mobile":
        return tuple(mobile_cell(layer + 1) for layer in range(count))
    return {"darts": ("normal", "reduction"), "nasbench201": ("cell",)}[macro]


@dataclass(frozen=True, slots=True)
class Genotype:
    """One architecture of a search space.

    Args:
        space: Name of the search space that it was chosen from.
        macro: The network around the cells, see `dartslight.spaces.layout`.
        cells: The cell types; every edge carries exactly one operation. Where a space lets a node read one input
            through several operations, each of them has an edge.
    """

    space: str
    macro: str
    cells: tuple[Cell, ...]

    @property
    def published_size(self) -> tuple[int, int]:
        """Number of cells, and channels of the first one, of the network that was published for CIFAR-10."""
        return _PUBLISHED.get(self.macro, (len(self.cells), _MOBILE_CHANNELS))

    @classmethod
    def from_choices(cls, space: SearchSpace, choices: Choices) -> "Genotype":
        """Returns the architecture that is left when every edge is decided.

        Raises:
            ValueError: If an edge is still undecided.
        """
        cells = []
        for cell in space.cells:
            if undecided := _undecided(space, cell, choices):
                raise ValueError(f"Edges {undecided} of cell {cell.name!r} are still undecided.")
            edges = (
                Edge(edge.source, edge.node, (edge.ops[o],))
                for edge, columns in zip(cell.edges, choices.of(cell.name), strict=True)
                for o in columns
            )
            cells.append(Cell(cell.name, cell.num_inputs, cell.num_nodes, cell.output, _in_order(edges)))
        return cls(space.name, space.macro, tuple(cells))

    @classmethod
    def from_darts(
        cls, space: SearchSpace, normal: Sequence[tuple[str, int]], reduction: Sequence[tuple[str, int]]
    ) -> "Genotype":
        """Returns the genotype of the usual DARTS notation.

        Args:
            space: One of the spaces with the DARTS network.
            normal: Pairs of operation and source, two for each node in turn.
            reduction: The same for the reduction cell.
        """
        cells = tuple(
            Cell(
                cell.name,
                cell.num_inputs,
                cell.num_nodes,
                cell.output,
                _in_order(Edge(int(source), cell.num_inputs + i // 2, (op,)) for i, (op, source) in enumerate(pairs)),
            )
            for cell, pairs in zip(space.cells, (normal, reduction), strict=True)
        )
        return cls(space.name, space.macro, cells)

    @classmethod
    def from_nasbench201(cls, arch: str) -> "Genotype":
        """Returns the genotype of NAS-Bench-201's string notation.

        Args:
            arch: For example ``|skip_connect~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|avg_pool_3x3~2|``.

        Raises:
            InputError: If the text is not in that notation or names an unknown operation.
        """
        space = SPACES["nasbench201"]
        edges = []
        try:
            for node, group in enumerate(arch.split("+"), start=1):
                for entry in group.strip("|").split("|"):
                    op, source = entry.split("~")
                    edges.append(Edge(int(source), node, (op,)))
        except ValueError:
            raise InputError(
                f"{arch!r} is not in NAS-Bench-201's notation; it should read like "
                "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|."
            ) from None
        (cell,) = space.cells
        genotype = cls(
            space.name, space.macro, (Cell(cell.name, cell.num_inputs, cell.num_nodes, cell.output, tuple(edges)),)
        )
        _check(genotype, f"the architecture {arch!r}")
        return genotype

    def to_nasbench201(self) -> str:
        """Returns NAS-Bench-201's string notation.

        Raises:
            InputError: If the genotype is of another space.
        """
        if self.space != "nasbench201":
            raise InputError(
                f"The genotype is of the space {self.space!r}, but only genotypes of the space 'nasbench201' have a "
                "NAS-Bench-201 notation; give one of those."
            )
        (cell,) = self.cells
        groups = [[cell.edges[e] for e in cell.edges_into(node)] for node in cell.nodes]
        return "+".join("|" + "".join(f"{edge.ops[0]}~{edge.source}|" for edge in group) for group in groups)

    def to_json(self) -> str:
        """Returns the text of a genotype file."""
        cells = {
            cell.name: {
                "inputs": cell.num_inputs,
                "nodes": cell.num_nodes,
                "output": cell.output,
                "edges": [{"node": edge.node, "source": edge.source, "op": edge.ops[0]} for edge in cell.edges],
            }
            for cell in self.cells
        }
        return json.dumps({"format": FORMAT, "space": self.space, "macro": self.macro, "cells": cells}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, name: str = "the genotype") -> "Genotype":
        """Reads and validates the text of a genotype file.

        Args:
            text: What `to_json` gave.
            name: How messages call the text, for example its file.

        Raises:
            InputError: If it is no genotype, of a newer format, or not of its space.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name} is not JSON ({error}); give a genotype.json that a run has written.") from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            what = f"has the format {found!r}" if found is not None else "has no 'format'"
            hint = "it may be from a newer version: update dartslight" if _is_newer(found) else "give another file"
            raise InputError(f"{name} {what}, but this version reads {FORMAT!r}; {hint}.")
        try:
            genotype = cls(_text(data, "space"), _text(data, "macro"), tuple(_cells(data)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{name} is not a whole genotype ({error}); give the file that a run has written."
            ) from None
        _check(genotype, name)
        return genotype

    @classmethod
    def load(cls, path: str | Path) -> "Genotype":
        """Reads a genotype file, or what another program has written in a notation of `dartslight.notations`.

        Such an architecture is of the first of the spaces ``darts``, ``s4`` and ``unas`` that it can be of.

        Raises:
            InputError: If it cannot be read or is not valid.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise InputError(
                f"The genotype {str(path)!r} cannot be read ({reason}); give a genotype.json of a run."
            ) from None
        name = f"The genotype {str(path)!r}"
        try:
            found = read_notation(text)
        except ValueError as error:
            raise InputError(f"{name} is not whole ({error}); give it as that program has written it.") from None
        if found is None:
            return cls.from_json(text, name)
        if isinstance(found, str):
            return cls.from_nasbench201(found)
        genotype = cls.from_darts(_space_of(found), found.normal, found.reduction)
        _check(genotype, name)
        return genotype


def _undecided(space: SearchSpace, cell: Cell, choices: Choices) -> tuple[int, ...]:
    """The edges on which more is open than an architecture can have there."""
    undecided = choices.undecided(cell.name)
    if not space.parallel:
        return undecided
    columns = choices.of(cell.name)
    count = {node: sum(len(columns[e]) for e in cell.edges_into(node)) for node in cell.nodes}
    return tuple(e for e in undecided if count[cell.edges[e].node] > (space.inputs_per_node or 0))


def _in_order(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    return tuple(sorted(edges, key=lambda edge: (edge.node, edge.source, edge.ops)))


def _space_of(found: DartsCells) -> SearchSpace:
    """The first space that has all operations and lets nodes have these inputs; ``darts`` where none does."""
    ops = {op for cell in found for op, _ in cell}
    nodes = [[source for _, source in cell[i : i + 2]] for cell in found for i in range(0, len(cell), 2)]
    is_parallel = any(len(set(sources)) < len(sources) for sources in nodes)
    for space in (SPACES["darts"], SPACES["s4"], SPACES["unas"]):
        if ops <= set(space.cells[0].edges[0].ops) and (space.parallel or not is_parallel):
            return space
    return SPACES["darts"]


def _is_newer(found: object) -> bool:
    return isinstance(found, str) and found.startswith(FORMAT.rpartition("/")[0] + "/")


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise TypeError(f"{key!r} is not a text")
    return value


def _number(data: Mapping[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1000:
        raise TypeError(f"{key!r} is not a number between 0 and 1000")
    return value


def _cells(data: Mapping[str, Any]) -> list[Cell]:
    cells = []
    for name, cell in data["cells"].items():
        edges = tuple(Edge(_number(e, "source"), _number(e, "node"), (_text(e, "op"),)) for e in cell["edges"])
        output = cell["output"]
        if output not in ("concat", "last"):
            raise ValueError(f"the output {output!r} is neither 'concat' nor 'last'")
        cells.append(Cell(name, _number(cell, "inputs"), _number(cell, "nodes"), output, _in_order(edges)))
    return cells


def _check(genotype: Genotype, name: str) -> None:
    """Raises InputError unless every edge of the genotype can stand where it stands."""
    if genotype.macro not in _MACROS:
        raise InputError(f"{name} is for the network {genotype.macro!r}, but the known ones are {', '.join(_MACROS)}.")
    names = tuple(cell.name for cell in genotype.cells)
    needed = _cell_names(genotype.macro, len(names))
    if names != needed:
        raise InputError(f"{name} has the cells {list(names)}, but needs {list(needed)}.")
    space = SPACES.get(genotype.space)
    for cell in genotype.cells:
        # A space of one's own may let a node read an input through several operations, but not twice through one.
        several = space is None or space.parallel
        pairs = [(edge.source, edge.node, edge.ops if several else ()) for edge in cell.edges]
        for edge, pair in zip(cell.edges, pairs, strict=True):
            if edge.node not in cell.nodes or not 0 <= edge.source < edge.node or pairs.count(pair) > 1:
                raise InputError(
                    f"{name} has an edge {edge} in its {cell.name} cell that cannot be there; an edge leads once"
                    f"{' through each operation' if several else ''} from an earlier node to one of the nodes "
                    f"{list(cell.nodes)}."
                )
        # A node without inputs is zeros.
        if all(edge.source >= cell.num_inputs for edge in cell.edges):
            raise InputError(
                f"{name} has a {cell.name} cell that reads none of its inputs; an edge must lead from one."
            )
    if space is not None:
        _check_space(genotype, space, name)
    elif "." not in genotype.space:
        raise InputError(f"{name} is of the space {genotype.space!r}, but the known ones are {', '.join(SPACES)}.")


def _check_space(genotype: Genotype, space: SearchSpace, name: str) -> None:
    if genotype.macro != space.macro:
        raise InputError(f"{name} is of the space {space.name!r} but for another network than that of this space.")
    if len(genotype.cells) != len(space.cells):
        raise InputError(
            f"{name} has {len(genotype.cells)} layers, but the space {space.name!r} has {len(space.cells)}; give the "
            "whole network."
        )
    for cell, whole in zip(genotype.cells, space.cells, strict=True):
        if (cell.num_inputs, cell.num_nodes, cell.output) != (whole.num_inputs, whole.num_nodes, whole.output):
            raise InputError(f"{name} has a {cell.name} cell of another shape than those of the space {space.name!r}.")
        for node in cell.nodes:
            count = len(whole.edges_into(node))
            if space.inputs_per_node is None and len(cell.edges_into(node)) != count:
                raise InputError(
                    f"{name} has {len(cell.edges_into(node))} inputs of node {node} in its {cell.name} cell, but the "
                    f"space {space.name!r} keeps all {count}; give the whole cell."
                )
        allowed = {(edge.source, edge.node): edge.ops for edge in whole.edges}
        for edge in cell.edges:
            ops = allowed[edge.source, edge.node]
            if edge.ops[0] not in ops:
                raise InputError(
                    f"{name} has the operation {edge.ops[0]!r} on edge {edge} of its {cell.name} cell, but the space "
                    f"{space.name!r} allows {', '.join(ops)} there."
                )
