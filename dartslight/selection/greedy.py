"""Greedy selection during the search: one edge after another is decided as soon as it looks certain (SGAS).

Paper: Li et al., "SGAS: Sequential Greedy Architecture Search", CVPR 2020, https://arxiv.org/abs/1912.00195.

At each decision point every cell type decides the undecided edge with the highest score, and the search goes on with
what is left. Let ``p`` be the mixing weights of an edge and ``q`` the shares that its operations other than ``none``
have of their sum. The score is a product of

* the edge's importance, the sum of ``p`` without ``none``;
* its certainty, ``1 - H(q) / log(number of operations without none)`` with the entropy ``H``;
* in criterion 2 also its stability, the mean over the last epochs of ``sum(min(q, q of that epoch))``;

each of them scaled to 0 for the smallest and 1 for the largest of all edges of the cell type, decided ones as they were
when they were decided. The edge keeps the operation with the largest weight, never ``none``; when a node has the inputs
that an architecture keeps, the others are dropped.

Where the paper and its code leave a question open:

* A factor that is the same on all edges says nothing and is taken as 1 (0 / 0 in the code). So it is with the
  importance where there is no ``none`` and the operations share a weight of 1, and with the stability as long as no
  earlier epoch was seen.
* An edge with a single operation beside ``none`` has the certainty 1.
* On NAS-Bench-201, where all edges stay, each is decided in turn; ``none`` measures the importance only, so that
  architectures with ``none`` cannot be found.
* The code stops the gradient of decided edges, but its weight decay goes on; here their values are remembered.
* The code makes the batches larger by 8 pictures with each decision, for speed; here the batch size stays.

**SGAS+PT** (Wang et al., ICLR 2021, https://arxiv.org/abs/2108.04392, section 5) chooses the edge in this way and its
operation by the perturbation; the epochs between two decisions are the fine-tuning. There is no published code for it.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dartslight.errors import InputError, check_least
from dartslight.selection.perturbation import Perturbation
from dartslight.selection.rule import Decision, Outcome, Rule, Schedule, SearchPlan, Supernet
from dartslight.selection.statistics import entropy
from dartslight.selection.strongest import candidate, mixing_weights, strongest_operation
from dartslight.spaces import Cell, Choices, Edge, SearchSpace

_TINY = 1e-6  # a smaller spread, relative to the values, is rounding

Shares = Sequence[Sequence[float]]
"""The share that each operation but ``none`` has of every edge's weight."""


class Sgas(Rule):
    """Decides during the search, edge by edge, the most important and certain one first (SGAS, Li et al., CVPR 2020).

    The search must be long enough for all decisions: with the defaults 45 epochs in the DARTS spaces (published: 50)
    and 35 in NAS-Bench-201. A finished supernet cannot be decided again in this way.

    Args:
        criterion: 1 for importance and certainty of an edge, 2 for its stability as well.
        warmup_epochs: Epochs of search before the first decision (published: 10; the code's 9 counts from 0).
        interval: Epochs of search between two decision points.
        history: Epochs that an edge's operations are compared with for its stability.
        perturbation: How the operation of an edge is chosen by perturbation (SGAS+PT): its settings of a measurement,
            such as ``criterion``, ``paired`` or ``eval_batches``, count, and its settings of the order of decisions and
            of fine-tuning do not. Null for the operation with the largest weight (published).
    """

    def __init__(
        self,
        criterion: Literal[1, 2] = 1,
        warmup_epochs: int = 10,
        interval: int = 5,
        history: int = 4,
        perturbation: Perturbation | None = None,
    ) -> None:
        if criterion not in (1, 2):
            raise InputError(f"criterion is {criterion}, but SGAS has the criteria 1 and 2; give one of them.")
        check_least(1, warmup_epochs=warmup_epochs, interval=interval, history=history)
        self.criterion, self.warmup_epochs, self.interval, self.history = criterion, warmup_epochs, interval, history
        self.perturbation = perturbation

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the decision points, all of them during the search."""
        if plan.is_over:
            raise InputError(
                "SGAS decides during the search, but this search is over; begin a search with fit, or decide this "
                "supernet by another rule."
            )
        count = max(_edges_to_decide(plan.space, cell) for cell in plan.space.cells)
        points = tuple(self.warmup_epochs + self.interval * i for i in range(count))
        if points[-1] > plan.epochs:
            raise InputError(
                f"SGAS takes {count} decisions in the space {plan.space.name!r}, which needs {points[-1]} epochs, but "
                f"the search has {plan.epochs}; give --trainer.max_epochs {points[-1]} or more, or a shorter warm-up "
                "or interval."
            )
        plan.check_learned("SGAS", points)
        return Schedule(points)

    def observe(self, supernet: Supernet, epochs: int) -> None:
        """Notes the shares of all operations after this epoch."""
        if self.criterion == 1:
            return
        for cell in supernet.space.cells:
            seen = _memory(supernet, "shares", cell.name)
            seen[epochs] = shares(cell, _weights(supernet, cell))
            seen.pop(epochs - self.history - 1, None)

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides one edge of each cell type that is not finished."""
        choices: Choices = supernet.choices
        decisions: list[Decision] = []
        for index, cell in enumerate(supernet.space.cells):
            decided = _memory(supernet, "decided", cell.name)
            left = [e for e in range(len(cell.edges)) if e not in decided]
            if not left:
                continue
            weights = _weights(supernet, cell)
            earlier = None
            if self.criterion == 2:
                *epochs, _ = sorted(_memory(supernet, "shares", cell.name).items())
                earlier = [seen for _, seen in epochs]
            scores = edge_scores(cell, weights, earlier)
            best = max(left, key=lambda e, scores=scores: scores[e])  # type: ignore[misc]
            decisions.append(self._edge_decision(cell, weights, scores, left, best))
            columns = _columns(cell.edges[best])
            if self.perturbation is None:
                op, decision = strongest_operation(cell, best, columns, weights, "weight")
                choices = choices.decide((cell.name, best), op)
            else:
                rng = np.random.default_rng([seed, point, index])
                choices, decision = self.perturbation.keep_operation(supernet, choices, (cell.name, best), columns, rng)
            decisions.append(decision)
            choices, closed = _close_node(supernet.space, cell, choices, [*decided, best], cell.edges[best].node)
            decided.update({e: weights[e].tolist() for e in (best, *closed)})
        return Outcome(choices, tuple(decisions))

    def _edge_decision(
        self, cell: Cell, weights: np.ndarray, scores: np.ndarray, left: Sequence[int], best: int
    ) -> Decision:
        """The record of which edge was decided: every undecided edge, with its strongest operation and its score."""
        leading = {e: max(_columns(cell.edges[e]), key=lambda o, row=weights[e]: row[o]) for e in left}  # type: ignore[misc]
        candidates = tuple(candidate(cell, e, leading[e], float(scores[e]), e == best) for e in left)
        others = [float(scores[e]) for e in left if e != best]
        margin = float(scores[best]) - max(others) if others else None
        return Decision(cell.name, "edge", f"sgas{self.criterion}", candidates, margin=margin)


def shares(cell: Cell, weights: np.ndarray) -> list[list[float]]:
    """Returns the share that each operation but ``none`` has of every edge's weight; equal ones of a weight of 0.

    Args:
        cell: The cell type.
        weights: The mixing weights, (edges, ops).
    """
    found = []
    for edge, row in zip(cell.edges, weights, strict=True):
        own = row[_columns(edge)]
        total = own.sum()
        found.append((own / total if total > 0 else np.full(len(own), 1 / len(own))).tolist())
    return found


def edge_scores(cell: Cell, weights: np.ndarray, earlier: Sequence[Shares] | None = None) -> np.ndarray:
    """Returns the score of every edge, (edges,), by which SGAS chooses the one that it decides.

    Args:
        cell: The cell type.
        weights: The mixing weights, (edges, ops).
        earlier: The shares of the operations after earlier epochs, for criterion 2; None or none for criterion 1.
    """
    now = [np.array(share) for share in shares(cell, weights)]
    importance = np.array([row[_columns(edge)].sum() for edge, row in zip(cell.edges, weights, strict=True)])
    certainty = np.array([1 - entropy(share) / math.log(len(share)) if len(share) > 1 else 1.0 for share in now])
    scores: np.ndarray = _scaled(importance) * _scaled(certainty)
    if earlier:
        common = [[np.minimum(share, then[e]).sum() for e, share in enumerate(now)] for then in earlier]
        scores = scores * _scaled(np.mean(common, axis=0))
    return scores


def _scaled(values: np.ndarray) -> np.ndarray:
    """Returns the values scaled to 0 for the smallest and 1 for the largest; 1 everywhere where they are the same."""
    spread = values.max() - values.min()
    if spread <= _TINY * np.abs(values).max():
        return np.ones_like(values)
    scaled: np.ndarray = (values - values.min()) / spread
    return scaled


def _columns(edge: Edge) -> list[int]:
    """The operations that can be chosen on an edge: all but ``none``."""
    return [o for o, op in enumerate(edge.ops) if op != "none"] or list(range(len(edge.ops)))


def _weights(supernet: Supernet, cell: Cell) -> np.ndarray:
    """The mixing weights of a cell type, (edges, ops), those of decided edges as they were when they were decided."""
    everything = Choices.everything(supernet.space)
    weights = mixing_weights(supernet.space, supernet.mixing(everything))[cell.name]
    for e, row in _memory(supernet, "decided", cell.name).items():
        weights[e] = row
    return weights


def _memory(supernet: Supernet, name: str, cell: str) -> dict[int, Any]:
    """What is noted of a cell type: ``decided``, weights by edge, or ``shares`` by epoch."""
    noted: dict[int, Any] = supernet.memory.setdefault(name, {}).setdefault(cell, {})
    return noted


def _room(space: SearchSpace, cell: Cell, node: int) -> int:
    """How many edges into a node an architecture keeps."""
    count = len(cell.edges_into(node))
    return count if space.inputs_per_node is None else min(count, space.inputs_per_node)


def _edges_to_decide(space: SearchSpace, cell: Cell) -> int:
    return sum(_room(space, cell, node) for node in cell.nodes)


def _close_node(
    space: SearchSpace, cell: Cell, choices: Choices, decided: Sequence[int], node: int
) -> tuple[Choices, list[int]]:
    """Drops the undecided edges into a node that has its inputs, and returns them too."""
    into = cell.edges_into(node)
    if sum(e in decided for e in into) < _room(space, cell, node):
        return choices, []
    closed = [e for e in into if e not in decided]
    return choices.drop((cell.name, e) for e in closed), closed
