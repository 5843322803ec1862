"""Notations in which other programs write architectures; reading one runs nothing.

Read are the ``Genotype(normal=…)`` of DARTS and of everything that descends from it, as Python or as a JSON object; the
parameters that NNI's model space DARTS exports (``normal/op_2_0``, ``normal/input_2_0``); NASLib's compact tuples of
DARTS cells and its six numbers of NAS-Bench-201; the configurations of NAS-Bench-301; and NAS-Bench-201's own strings.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dartslight.spaces.darts import DARTS_OPS

_NASLIB_201 = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
_NODES = range(2, 6)  # the nodes of a DARTS cell; 0 and 1 are its inputs
_301 = "NetworkSelectorDatasetInfo:darts:edge_"


class DartsCells(NamedTuple):
    """Two cells of DARTS.

    Args:
        normal: Pairs of operation and source, two for each node in turn.
        reduction: The same for the reduction cell.
    """

    normal: list[tuple[str, int]]
    reduction: list[tuple[str, int]]


def read_notation(text: str) -> DartsCells | str | None:
    """Returns the cells of an architecture of DARTS, the string of one of NAS-Bench-201, or None for another text.

    Args:
        text: What another program has written.

    Raises:
        ValueError: If the text is in one of the notations, but not all of it is there; the message says what is wrong.
    """
    text = text.strip()
    if text.startswith("|"):
        return text
    found = _value(text)
    if isinstance(found, Mapping):
        return _from_mapping(found)
    if _is_list_of(found, int, 6):
        return _from_op_indices(found)
    if _is_list_of(found, (list, tuple), 2):
        return DartsCells(*(_from_compact(cell) for cell in found))
    return None


def _from_mapping(found: Mapping[Any, Any]) -> DartsCells | None:
    keys = {key for key in found if isinstance(key, str)}
    if {"normal", "reduce"} <= keys:
        return _from_genotype(found)
    for read, start in ((_from_nni, "normal/op_"), (_from_301, f"{_301}normal_")):
        if any(key.startswith(start) for key in keys):
            return DartsCells(*(list(read(found, cell)) for cell in ("normal", "reduce")))
    return None


def _value(text: str) -> Any:
    """The plain value that a text of Python or JSON stands for, a ``Genotype`` as its fields; None for another text."""
    try:
        last = ast.parse(text).body[-1]
        node = last.value if isinstance(last, ast.Expr | ast.Assign) else None
        if not isinstance(node, ast.Call):
            return None if node is None else ast.literal_eval(node)
        if not isinstance(node.func, ast.Name) or node.func.id != "Genotype":
            return None
        names = ("normal", "normal_concat", "reduce", "reduce_concat")
        fields = dict(zip(names, node.args, strict=False)) | {k.arg: k.value for k in node.keywords if k.arg}
        return {name: _literal(value) for name, value in fields.items()}
    except (ValueError, TypeError, SyntaxError, IndexError, RecursionError, MemoryError):
        return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        start, stop = (ast.literal_eval(argument) for argument in node.args)
        return range(start, stop)
    return ast.literal_eval(node)


def _from_genotype(found: Mapping[str, Any]) -> DartsCells:
    # What is concatenated is always all four nodes here; NASNet and AmoebaNet have other cells.
    for name in ("normal_concat", "reduce_concat"):
        concat = found.get(name, _NODES)
        if concat != _NODES and concat != list(_NODES):
            raise ValueError(f"{name} is {concat}, but the output of a cell is that of the nodes 2 to 5")
    cells = []
    for name in ("normal", "reduce"):
        pairs = found[name]
        if not _is_list_of(pairs, (list, tuple), 8):
            raise ValueError(f"{name} has not two inputs for each of four nodes")
        cells.append([_pair(*pair) if len(pair) == 2 else _pair(None, None) for pair in pairs])
    return DartsCells(*cells)


def _from_nni(found: Mapping[str, Any], cell: str) -> Iterator[tuple[str, int]]:
    for node in _NODES:
        for place in range(2):
            op, source = found.get(f"{cell}/op_{node}_{place}"), found.get(f"{cell}/input_{node}_{place}")
            if isinstance(source, list | tuple) and len(source) == 1:  # as NNI writes it since version 3
                (source,) = source
            if op is None or source is None:
                raise ValueError(f"there is no {cell}/op_{node}_{place}, or no input for it")
            yield _pair(op, source)


def _from_301(found: Mapping[str, Any], cell: str) -> Iterator[tuple[str, int]]:
    first = 0
    for node in _NODES:
        sources = [source for source in range(node) if f"{_301}{cell}_{first + source}" in found]
        if len(sources) != 2:
            raise ValueError(f"node {node} of the {cell} cell has {len(sources)} inputs, but needs 2")
        yield from (_pair(found[f"{_301}{cell}_{first + source}"], source) for source in sources)
        first += node


def _from_compact(cell: Sequence[Any]) -> list[tuple[str, int]]:
    if not _is_list_of(cell, (list, tuple), 8) or not all(_is_list_of(pair, int, 2) for pair in cell):
        raise ValueError("a cell of NASLib's compact notation has 8 pairs of a source and the number of an operation")
    if not all(0 <= op < len(DARTS_OPS) for _, op in cell):
        raise ValueError(f"the number of an operation is not from 0 to {len(DARTS_OPS) - 1}")
    return [(DARTS_OPS[op], source) for source, op in cell]


def _from_op_indices(ops: Sequence[int]) -> str:
    if not all(0 <= op < len(_NASLIB_201) for op in ops):
        raise ValueError(f"the number of an operation is not from 0 to {len(_NASLIB_201) - 1}")
    # NASLib counts the edges by their sources, NAS-Bench-201 by the nodes that they lead to.
    named = dict(zip([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], (_NASLIB_201[op] for op in ops), strict=True))
    groups = ("".join(f"{named[source, node]}~{source}|" for source in range(node)) for node in (1, 2, 3))
    return "+".join(f"|{group}" for group in groups)


def _pair(op: Any, source: Any) -> tuple[str, int]:
    if not isinstance(op, str) or not isinstance(source, int):
        raise ValueError(f"{(op, source)} is not an operation and a source")
    return op, source


def _is_list_of(found: Any, kind: Any, length: int) -> bool:
    return isinstance(found, list | tuple) and len(found) == length and all(isinstance(item, kind) for item in found)
