"""Averaging: one architecture from the scores of several supernets.

A supernet's scores are those with which a rule decided it alone. They are made comparable, averaged, and the strongest
candidate of each decision is kept. Independent supernets disagree where a score is noisy, and the noise of a mean falls
with their number; what all of them have in common stays, be it what an operation is worth or a bias of the rule.

* A score is how much an operation is missed (the loss without it less that of the whole supernet or, where that was not
  measured, of the candidate that is missed least; likewise for accuracy and divergence), its sensitivity, or its mixing
  weight. Negative ones count as 0. Those of all edges of all cell types are divided by their sum, so that every
  supernet has the same say.
* Which inputs a node keeps follows in the same way from the scores of its edges, divided by their sum for each node. A
  progressive rule scores some edges several times; the first score, with all other edges in place, counts.
* The standard error of a margin is that of its mean over supernets, which contains that over pictures.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from dartslight.errors import InputError
from dartslight.selection.evidence import sign_of
from dartslight.selection.rule import Candidate, Decision, Outcome
from dartslight.selection.strongest import strongest_inputs
from dartslight.spaces import Cell, Choices, SearchSpace

_Key = TypeVar("_Key", bound=Hashable)


def average(space: SearchSpace, members: Sequence[Sequence[Decision]]) -> Outcome:
    """Decides by the averaged scores of several supernets.

    Args:
        space: The search space.
        members: The decisions of each supernet, all by the same rule.

    Raises:
        InputError: If the decisions are of slots, or do not score the same operations of every undecided edge, and the
            inputs of every node that has too many.
    """
    if any(decision.kind == "slot" for decided in members for decision in decided):
        raise InputError(
            "The slots of nodes have no order in which those of several supernets could be averaged; decide the "
            "search.ckpt of each by a rule that scores operations and average that, such as Sensitivity or LeaveOneOut."
        )
    choices, decisions = Choices.everything(space), []
    scores = _normalised(
        [{(c.name, *key): v for c in space.cells for key, v in operation_scores(c, own).items()} for own in members]
    )
    for cell in space.cells:
        for e in choices.undecided(cell.name):
            own = {(e, o): values for (name, edge, o), values in scores.items() if (name, edge) == (cell.name, e)}
            if not own:
                raise _unscored(f"edge {cell.edges[e]} of the {cell.name} cell")
            stay, decision = _strongest(cell, own, "operation", 1)
            choices = choices.decide((cell.name, e), stay[0][1])
            decisions.append(decision)
        for node in cell.nodes:
            kept = {e: choices.of(cell.name)[e][0] for e in choices.kept(cell.name) if cell.edges[e].node == node}
            if space.inputs_per_node is None or len(kept) <= space.inputs_per_node:
                continue
            of_edges = _normalised([_edge_scores(cell, node, decided) for decided in members])
            if set(of_edges) != set(kept):
                raise _unscored(f"all inputs of node {node} of the {cell.name} cell")
            own = {(e, o): of_edges[e] for e, o in kept.items()}
            stay, decision = _strongest(cell, own, "inputs", space.inputs_per_node)
            choices = choices.drop((cell.name, e) for e in kept if (e, kept[e]) not in stay)
            decisions.append(decision)
    criterion, pictures = members[0][-1].criterion, sum(decided[-1].pictures for decided in members)
    named = (replace(d, criterion=f"{criterion}, averaged", pictures=pictures) for d in decisions)
    return Outcome(choices, tuple(named))


def operation_scores(cell: Cell, decided: Sequence[Decision]) -> dict[tuple[int, int], float]:
    """Returns how much each operation is missed or weighs, by edge and column.

    Args:
        cell: The cell type.
        decided: Decisions, of which those of other cell types are passed over.

    Raises:
        InputError: If a score is missing, or of a candidate that the cell does not have.
    """
    found = {}
    for decision in decided:
        if decision.cell == cell.name and decision.kind == "operation":
            for c, score in _scores(decision, decision.candidates):
                e = edge_of(cell, c)
                if c.op not in cell.edges[e].ops:
                    raise _foreign(cell, c)
                found[e, cell.edges[e].ops.index(c.op)] = score
    return found


def _edge_scores(cell: Cell, node: int, decided: Sequence[Decision]) -> dict[int, float]:
    """The first score of each edge into a node that a supernet was decided with."""
    found: dict[int, float] = {}
    for decision in decided:
        if (decision.cell, decision.kind) == (cell.name, "inputs") and decision.candidates[0].node == node:
            # One round after another; the first one has each edge once.
            edges = len({c.source for c in decision.candidates})
            for c, score in _scores(decision, decision.candidates[:edges]):
                found[edge_of(cell, c)] = score
    return found


def _scores(decision: Decision, candidates: Sequence[Candidate]) -> list[tuple[Candidate, float]]:
    """How much each candidate is missed or weighs."""
    if candidates[0].score_without is None:
        return [(c, _known(c.score_with)) for c in candidates]
    sign = sign_of(decision.criterion)
    missed = [sign * _known(c.score_without) for c in candidates]
    bases = [min(missed) if c.score_with is None else sign * _known(c.score_with) for c in candidates]
    return [(c, value - base) for c, value, base in zip(candidates, missed, bases, strict=True)]


def _known(score: float | None) -> float:
    if score is None or not math.isfinite(score):
        raise _unscored("every candidate with a finite number")
    return score


def edge_of(cell: Cell, candidate: Candidate) -> int:
    """Returns the index of a candidate's edge.

    Args:
        cell: The cell type.
        candidate: The candidate.

    Raises:
        InputError: If the cell has no such edge.
    """
    places = [(edge.source, edge.node) for edge in cell.edges]
    if (candidate.source, candidate.node) not in places:
        raise _foreign(cell, candidate)
    return places.index((candidate.source, candidate.node))


def _foreign(cell: Cell, candidate: Candidate) -> InputError:
    return InputError(
        f"The decisions name {candidate.op!r} on edge {candidate.node}<-{candidate.source} of the {cell.name} cell, "
        "which this search space does not have; average supernets of one space."
    )


def _normalised(members: Sequence[Mapping[_Key, float]]) -> dict[_Key, np.ndarray]:
    """The scores of each candidate in all supernets, (supernets,); those of a supernet sum to 1 where any is above 0.

    Raises:
        InputError: If the supernets have scored different candidates.
    """
    if any(set(member) != set(members[0]) for member in members):
        raise _unscored("the same candidates in every supernet")
    table = np.array([[max(0.0, member[key]) for key in members[0]] for member in members])
    totals = table.sum(axis=1, keepdims=True)
    table = table / np.where(totals > 0, totals, 1)
    return {key: table[:, i] for i, key in enumerate(members[0])}


def _unscored(what: str) -> InputError:
    return InputError(
        f"The decisions of these supernets do not score {what}, so they cannot be averaged; average a rule that scores "
        "all operations of all edges, such as Sensitivity, LeaveOneOut, Perturbation or Magnitude."
    )


def _strongest(
    cell: Cell, scores: Mapping[tuple[int, int], np.ndarray], kind: Literal["operation", "inputs"], count: int
) -> tuple[list[tuple[int, int]], Decision]:
    """Keeps the candidates with the largest means over supernets, the first of equally strong ones."""
    keys = list(scores)
    means = [float(scores[key].mean()) for key in keys]
    stay = [keys[i] for i in strongest_inputs(dict(enumerate(means)), count)]
    leads = [scores[a] - scores[b] for a in stay for b in keys if b not in stay]
    margin, noise = None, None
    if leads:
        smallest = min(leads, key=lambda values: float(values.mean()))
        margin = float(smallest.mean())
        noise = float(smallest.std(ddof=1)) / math.sqrt(len(smallest)) if len(smallest) > 1 else None
    candidates = tuple(
        Candidate(cell.edges[e].source, cell.edges[e].node, cell.edges[e].ops[o], mean, None, (e, o) in stay)
        for (e, o), mean in zip(keys, means, strict=True)
    )
    return stay, Decision(cell.name, kind, "", candidates, margin=margin, noise=noise)
