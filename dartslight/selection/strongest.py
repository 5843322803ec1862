"""Rules that rank all operations at once and keep the strongest: magnitude, and random numbers as its control."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from dartslight.errors import InputError, check_least
from dartslight.nets import Mixing
from dartslight.selection.rule import Candidate, Decision, Outcome, Rule, Schedule, SearchPlan, Supernet
from dartslight.spaces import Cell, Choices, SearchSpace


class Magnitude(Rule):
    """Keeps the operations with the largest mixing weights.

    This is how DARTS selects (Liu et al., ICLR 2019, https://arxiv.org/abs/1806.09055, section 2.4), and what DARTS-PT
    shows to be a poor measure of what an operation contributes. On the DARTS spaces ``none`` cannot be kept and each
    node keeps the two inputs whose kept operation is strongest; on NAS-Bench-201 every edge keeps its strongest
    operation, ``none`` included. The first of several equally strong ones wins.

    Where nodes have slots (UNAS, `dartslight.strategies.Factorised`) each slot keeps its likeliest input and operation.
    Two slots of a node with the same likeliest ones would be one operation; then the node keeps the likeliest two that
    are not the same.

    With a threshold an architecture can keep less, as where the operations of an edge do not compete (FairDARTS, Chu et
    al., ECCV 2020, https://arxiv.org/abs/1911.12126). A node that keeps no input is zeros; the published code leaves it
    out of the cell's output.

    Args:
        threshold: Weight, such as FairDARTS' 0.85, that a kept operation must exceed. Other edges are dropped; where
            the space keeps all edges they become ``none``. Null for no threshold.
    """

    def __init__(self, threshold: float | None = None) -> None:
        check_least(0, threshold=threshold)
        if threshold is not None and threshold >= 1:
            raise InputError(f"threshold is {threshold}, but no weight exceeds 1; give less, such as 0.85.")
        self.threshold = threshold

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the end of the search.

        Raises:
            InputError: If the mixing weights have learned nothing.
        """
        plan.check_learned("Magnitude", [plan.epochs])
        return super().schedule(plan)

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides every edge by the present mixing weights."""
        choices = supernet.choices
        return keep_likeliest(
            supernet.space, choices, supernet.mixing(choices), supernet.slots(choices), self.threshold
        )


class Random(Rule):
    """Draws an architecture uniformly: the control that every other rule must beat.

    In a space whose nodes may read one input twice it draws among the architectures in which none does.

    Args:
        seed: Seed of the draw; null for the one of the run.
    """

    def __init__(self, seed: int | None = None) -> None:
        check_least(0, seed=seed)
        self.seed = seed

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides every edge by random numbers."""
        rng = np.random.default_rng([seed if self.seed is None else self.seed, point])
        strengths = {cell.name: rng.random((len(cell.edges), cell.num_ops)) for cell in supernet.space.cells}
        return keep_strongest(supernet.space, supernet.choices, strengths, "random")


def mixing_weights(space: SearchSpace, mixing: Mixing) -> dict[str, np.ndarray]:
    """Returns the mixing weights of the operations of each cell type, (edges, ops), without those of edge terms.

    Args:
        space: The search space.
        mixing: The mixing weights.
    """
    return {cell.name: mixing[cell.name].detach().double().cpu().numpy()[:, : cell.num_ops] for cell in space.cells}


def keep_likeliest(
    space: SearchSpace, choices: Choices, mixing: Mixing, slots: Mixing | None, threshold: float | None = None
) -> Outcome:
    """Keeps what has the largest mixing weights: of each slot of the nodes, or of each edge where there are no slots.

    Args:
        space: The search space.
        choices: What is open.
        mixing: The mixing weights.
        slots: The probability of each operation in each slot, (slots, edges, ops), or None.
        threshold: The weight, or the probability in its slot, that a kept operation must exceed, or None.

    Raises:
        InputError: If nothing in a cell exceeds the threshold, or an edge that must stay does not.
    """
    if slots is None:
        return keep_strongest(space, choices, mixing_weights(space, mixing), "weight", threshold)
    decisions: list[Decision] = []
    for cell in space.cells:
        of_slots = slots[cell.name].detach().double().cpu().numpy()
        for node in cell.nodes:
            columns = {e: choices.of(cell.name)[e] for e in cell.edges_into(node)}
            pairs = [(e, o) for e, own in columns.items() for o in choosable(space, cell, e, own)]
            if len(pairs) <= len(of_slots):  # it is decided
                continue
            kept, found = _likeliest_pairs(cell, pairs, of_slots, threshold)
            decisions += found
            for e, own in columns.items():
                for o in own:
                    choices = choices if (e, o) in kept else choices.close((cell.name, e), o)
        _check_reads(cell, choices, threshold)
    return Outcome(choices, tuple(decisions))


def _likeliest_pairs(
    cell: Cell, pairs: Sequence[tuple[int, int]], slots: np.ndarray, threshold: float | None
) -> tuple[set[tuple[int, int]], list[Decision]]:
    """Returns the likeliest different pairs of an edge and an operation for the slots of a node, and the record."""
    # No slot has to give way to more rivals than there are other slots.
    rivals = [sorted(pairs, key=lambda pair: -own[pair])[: len(slots)] for own in slots]
    different = [picked for picked in itertools.product(*rivals) if len(set(picked)) == len(picked)]
    best = max(different, key=lambda picked: math.prod(own[p] for own, p in zip(slots, picked, strict=True)))
    kept, decisions = set(), []
    for own, pair in zip(slots, best, strict=True):
        stays = threshold is None or own[pair] > threshold
        kept |= {pair} if stays else set()
        margin = float(own[pair] - max(own[p] for p in pairs if p not in best))
        candidates = tuple(candidate(cell, *p, float(own[p]), stays and p == pair) for p in pairs)
        decisions.append(Decision(cell.name, "slot", "weight", candidates, margin=margin))
    return kept, decisions


def keep_strongest(
    space: SearchSpace,
    choices: Choices,
    strengths: Mapping[str, np.ndarray],
    criterion: str,
    threshold: float | None = None,
) -> Outcome:
    """Keeps the strongest operation of each edge, then the edges into each node whose kept operation is strongest.

    Args:
        space: The search space.
        choices: What is open.
        strengths: The strength of each operation of each cell type, (edges, ops).
        criterion: What the strengths are.
        threshold: The strength that a kept operation must exceed, or None.

    Raises:
        InputError: If nothing in a cell exceeds the threshold, or an edge that must stay does not.
    """
    decisions = []
    for cell in space.cells:
        values = strengths[cell.name]
        kept: dict[int, int] = {}
        for e in choices.kept(cell.name):
            columns = choosable(space, cell, e, choices.of(cell.name)[e])
            kept[e], decision = strongest_operation(cell, e, columns, values, criterion)
            if space.inputs_per_node is None and threshold is not None and values[e, kept[e]] <= threshold:
                kept[e], decision = _none(space, cell, e, columns, values, criterion, threshold)
            decisions.append(decision)
            choices = choices.decide((cell.name, e), kept[e])
        if space.inputs_per_node is None:
            continue
        for node in cell.nodes:
            into = {e: float(values[e, kept[e]]) for e in cell.edges_into(node) if e in kept}
            stay = strongest_inputs(into, space.inputs_per_node, threshold)
            if len(stay) < len(into):
                decisions.append(inputs_decision(cell, kept, into, stay, criterion))
                choices = choices.drop((cell.name, e) for e in into if e not in stay)
        _check_reads(cell, choices, threshold)
    return Outcome(choices, tuple(decisions))


def _check_reads(cell: Cell, choices: Choices, threshold: float | None) -> None:
    """Raises InputError if a threshold has left a cell nothing of its inputs."""
    if threshold is not None and all(cell.edges[e].source >= cell.num_inputs for e in choices.kept(cell.name)):
        raise InputError(
            f"The {cell.name} cell would read none of its inputs, because no operation there has a weight above "
            f"{threshold}; decide the search.ckpt of the run again with a lower threshold."
        )


def choosable(space: SearchSpace, cell: Cell, edge: int, columns: Sequence[int]) -> Sequence[int]:
    """Returns those operations of an edge that can be kept by their weight: ``none`` only where the space lets it."""
    ops = cell.edges[edge].ops
    return [o for o in columns if space.none_selectable or ops[o] != "none"] or columns


def _none(
    space: SearchSpace,
    cell: Cell,
    edge: int,
    columns: Sequence[int],
    values: np.ndarray,
    criterion: str,
    threshold: float,
) -> tuple[int, Decision]:
    """Returns ``none`` and its record for an edge that must stay, but no operation of which exceeds the threshold."""
    none = next((o for o in columns if cell.edges[edge].ops[o] == "none"), None)
    if none is None:
        raise InputError(
            f"No operation on edge {cell.edges[edge]} of the {cell.name} cell has a weight above {threshold}, but "
            f"the space {space.name!r} keeps all edges and none cannot stand there; decide the search.ckpt of the run "
            "again with a lower threshold."
        )
    candidates = tuple(candidate(cell, edge, o, float(values[edge, o]), o == none) for o in columns)
    margin = threshold - float(values[edge, list(columns)].max())
    return none, Decision(cell.name, "operation", criterion, candidates, margin=margin)


def strongest_operation(
    cell: Cell, edge: int, columns: Sequence[int], values: np.ndarray, criterion: str
) -> tuple[int, Decision]:
    """Returns the strongest operation of an edge, the first of equally strong ones, and the record.

    Args:
        cell: The cell type.
        edge: The edge.
        columns: The operations that are compared.
        values: The strength of each operation, (edges, ops).
        criterion: What the strengths are.
    """
    ranked = sorted(columns, key=lambda o: -values[edge, o])
    margin = float(values[edge, ranked[0]] - values[edge, ranked[1]]) if len(ranked) > 1 else None
    candidates = tuple(candidate(cell, edge, o, float(values[edge, o]), o == ranked[0]) for o in columns)
    return ranked[0], Decision(cell.name, "operation", criterion, candidates, margin=margin)


def strongest_inputs(into: Mapping[int, float], count: int, threshold: float | None = None) -> list[int]:
    """Returns the strongest edges into a node, strongest first and the first of equally strong ones before others.

    Args:
        into: The strength of every edge into the node.
        count: How many stay at most.
        threshold: The strength that they must exceed, or None.
    """
    order = sorted(into, key=lambda e: -into[e])[:count]
    return [e for e in order if threshold is None or into[e] > threshold]


def inputs_decision(
    cell: Cell, kept: Mapping[int, int], into: Mapping[int, float], stay: Sequence[int], criterion: str
) -> Decision:
    """Returns the record of which edges into a node stay.

    Args:
        cell: The cell type.
        kept: The operation of each edge.
        into: The strength of every edge into the node.
        stay: The edges that stay.
        criterion: What the strengths are.
    """
    gone = [strength for e, strength in into.items() if e not in stay]
    margin = min(into[e] for e in stay) - max(gone) if stay and gone else None
    candidates = tuple(candidate(cell, e, kept[e], strength, e in stay) for e, strength in into.items())
    return Decision(cell.name, "inputs", criterion, candidates, margin=margin)


def candidate(cell: Cell, edge: int, op: int, strength: float, chosen: bool) -> Candidate:
    """Returns the record of an operation whose strength was compared; nothing was measured without it."""
    place = cell.edges[edge]
    return Candidate(place.source, place.node, place.ops[op], strength, None, chosen)
