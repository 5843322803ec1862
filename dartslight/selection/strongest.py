"""Rules that rank all operations at once and keep the strongest: magnitude, and random numbers as its control."""

from collections.abc import Mapping

import numpy as np

from dartslight.errors import check_least
from dartslight.selection.rule import Candidate, Decision, Outcome, Rule, Supernet, nodes_to_thin
from dartslight.spaces import Cell, Choices, SearchSpace


class Magnitude(Rule):
    """Keeps the operations with the largest mixing weights.

    This is how DARTS selects (Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055, section 2.4), and what DARTS-PT
    shows to be a poor measure of what an operation contributes. On the DARTS spaces ``none`` cannot be kept and each
    node keeps the two inputs whose kept operation is strongest; on NAS-Bench-201 every edge keeps its strongest
    operation, ``none`` included. The first of several equally strong ones wins.
    """

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides every edge by the present mixing weights."""
        weights = supernet.mixing(supernet.choices)
        strengths = {cell: mixing.detach().double().cpu().numpy() for cell, mixing in weights.items()}
        return keep_strongest(supernet.space, supernet.choices, strengths, "weight")


class Random(Rule):
    """Draws an architecture uniformly: the control that every other rule must beat.

    Args:
        seed: Seed of the draw; null for the one of the run.
    """

    def __init__(self, seed: int | None = None) -> None:
        check_least(0, seed=seed)
        self.seed = seed

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides every edge by random numbers."""
        rng = np.random.default_rng([seed if self.seed is None else self.seed, point])
        shapes = {
            cell.name: (len(cell.edges), max(len(edge.ops) for edge in cell.edges)) for cell in supernet.space.cells
        }
        strengths = {cell: rng.random(shape) for cell, shape in shapes.items()}
        return keep_strongest(supernet.space, supernet.choices, strengths, "random")


def keep_strongest(
    space: SearchSpace, choices: Choices, strengths: Mapping[str, np.ndarray], criterion: str
) -> Outcome:
    """Keeps the strongest operation of each edge, then the edges into each node whose kept operation is strongest.

    Args:
        space: The search space.
        choices: What is open.
        strengths: The strength of each operation of each cell type, (edges, ops).
        criterion: What the strengths are.
    """
    decisions = []
    for cell in space.cells:
        values = strengths[cell.name]
        kept: dict[int, int] = {}
        for e in choices.kept(cell.name):
            columns = choices.of(cell.name)[e]
            allowed = [o for o in columns if space.none_selectable or cell.edges[e].ops[o] != "none"] or list(columns)
            ranked = sorted(allowed, key=lambda o, row=values[e]: -row[o])  # type: ignore[misc]
            kept[e] = ranked[0]
            decisions.append(
                Decision(
                    cell.name,
                    "operation",
                    criterion,
                    tuple(_candidate(cell, e, o, values, o == ranked[0]) for o in allowed),
                    margin=float(values[e, ranked[0]] - values[e, ranked[1]]) if len(ranked) > 1 else None,
                )
            )
            choices = choices.decide((cell.name, e), ranked[0])
        for node in nodes_to_thin(space, cell.name):
            assert space.inputs_per_node is not None
            into = [e for e in cell.edges_into(node) if e in kept]
            order = sorted(into, key=lambda e: -values[e, kept[e]])
            stay, gone = order[: space.inputs_per_node], order[space.inputs_per_node :]
            if not gone:
                continue
            weakest, best = values[stay[-1], kept[stay[-1]]], values[gone[0], kept[gone[0]]]
            decisions.append(
                Decision(
                    cell.name,
                    "inputs",
                    criterion,
                    tuple(_candidate(cell, e, kept[e], values, e in stay) for e in into),
                    margin=float(weakest - best),
                )
            )
            choices = choices.drop((cell.name, e) for e in gone)
    return Outcome(choices, tuple(decisions))


def _candidate(cell: Cell, edge: int, op: int, values: np.ndarray, chosen: bool) -> Candidate:
    """The record of an operation whose strength was compared; nothing was measured without it."""
    place = cell.edges[edge]
    return Candidate(place.source, place.node, place.ops[op], float(values[edge, op]), None, chosen)
