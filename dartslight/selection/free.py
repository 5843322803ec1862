"""FreeDARTS: decides a supernet that nothing has trained, by scores that need one pass.

Paper: Zhang et al., "Differentiable Architecture Search Without Training Nor Labels: A Pruning Perspective",
https://arxiv.org/abs/2106.11542 (first version). The scores and how they depart from the published code are in
`dartslight.selection.saliency`.

The mixing weights are the alphas as they are drawn, without a softmax. With ``n_rounds: 1``, which is what the
published code does, all operations are scored once. With more rounds the supernet is pruned step by step, which the
paper's longer times and its fourth version suggest, and scored again in between: after round k of n an edge with m
operations keeps m to the power of 1 - k/n of them (all edges together with the scope ``global``), the schedule
of SynFlow (https://arxiv.org/abs/2006.05467). The last operation of an edge is never pruned. In the last round each
edge keeps its strongest operation and each node the inputs whose operation is strongest, as in `Magnitude`.

The alphas' absolute values are taken, as in the published code for NAS-Bench-201; that for DARTS keeps their signs. A
score that is no finite number, and an edge whose scores are all 0, are errors: the published code lets them select the
first operation, ``none``.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dartslight.errors import InputError, check_least
from dartslight.nets.operations import Setting, make_operation
from dartslight.seeding import derived_seed
from dartslight.selection.rule import Decision, Outcome, Rule, Schedule, SearchPlan, Supernet
from dartslight.selection.saliency import FreeFlow, Saliency
from dartslight.selection.strongest import Random, candidate, choosable, keep_strongest
from dartslight.spaces import Cell, Choices, EdgeKey, SearchSpace

_ALPHAS = 11  # what a derived seed is for


class FreeDarts(Rule):
    """Keeps the most salient operations of a supernet that nothing has trained (FreeDARTS).

    Args:
        score: How salient an operation is: FreeFlow (needs neither pictures nor labels), Snip or Grasp; null is
            FreeFlow.
        n_rounds: Number of times that the operations are scored; 1 decides everything at once (published code).
        scope: Whether every ``edge`` is pruned at the same pace, or the weakest operations of all edges first
            (``global``); both are the same in one round.
        alpha_std: Standard deviation of the alphas. Their scale decides: see docs/freedarts.md.
        absolute: Whether the absolute values of the alphas are taken.
    """

    needs_search = False

    def __init__(
        self,
        score: Saliency | None = None,
        n_rounds: int = 1,
        scope: Literal["edge", "global"] = "edge",
        alpha_std: float = 1e-3,
        absolute: bool = True,
    ) -> None:
        check_least(1, n_rounds=n_rounds)
        if scope not in ("edge", "global"):
            raise InputError(f"scope is {scope!r}, but it must be edge or global; give one of them.")
        if not 0 < alpha_std < math.inf:
            raise InputError(f"alpha_std is {alpha_std}, but it must be a number above 0; give for example 0.001.")
        self.score = FreeFlow() if score is None else score
        self.n_rounds, self.scope, self.alpha_std, self.absolute = n_rounds, scope, alpha_std, absolute

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Refuses, because there is a search.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "FreeDarts decides a supernet before any search, which would change nothing; leave the search out with "
            "select --config configs/select/freeflow.yaml, without --supernet."
        )

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Decides every edge by the scores of the supernet as it was before any search.

        Raises:
            InputError: If the scores of an edge tell nothing.
        """
        space, choices = supernet.space, supernet.choices
        decisions: list[Decision] = []
        alphas = self.alphas(space, seed)
        for k in range(1, self.n_rounds):
            scores = checked(space, choices, supernet.saliency(self.score, alphas, choices, seed), self.score.name)
            left = _pruned(space, choices, scores, 1 - k / self.n_rounds, self.scope)
            decisions += _records(space, choices, left, scores, f"{self.score.name}, round {k}")
            choices = left
        scores = checked(space, choices, supernet.saliency(self.score, alphas, choices, seed), self.score.name)
        last = keep_strongest(space, choices, scores, self.score.name)
        return Outcome(last.choices, (*decisions, *last.decisions))

    def controls(self, supernet: Supernet, seed: int) -> Mapping[str, Choices]:
        """Returns what is decided at random, by the alphas alone, and by the number of parameters."""
        space, choices = supernet.space, supernet.choices
        alone = {cell: alpha.abs().numpy() for cell, alpha in self.alphas(space, seed).items()}
        return {
            "random": Random().decide(supernet, 0, seed).choices,
            "|alpha| alone": keep_strongest(space, choices, alone, "alpha").choices,
            "most parameters": keep_strongest(space, choices, parameter_counts(space), "parameters").choices,
        }

    def alphas(self, space: SearchSpace, seed: int) -> dict[str, Tensor]:
        """Returns the raw mixing weights of each cell type, (edges, ops), float64.

        Args:
            space: The search space.
            seed: Seeds the draw.
        """
        rng = np.random.default_rng(derived_seed(seed, _ALPHAS))
        drawn = {
            cell.name: self.alpha_std * rng.standard_normal((len(cell.edges), cell.num_ops)) for cell in space.cells
        }
        return {cell: torch.from_numpy(np.abs(own) if self.absolute else own) for cell, own in drawn.items()}


def checked(space: SearchSpace, choices: Choices, scores: Mapping[str, Tensor], name: str) -> dict[str, np.ndarray]:
    """Returns the scores of each cell type, (edges, ops), after a check that they decide every edge.

    Args:
        space: The search space.
        choices: What is open.
        scores: The scores.
        name: What the score is called.

    Raises:
        InputError: If a score is no finite number, or all of an edge are 0.
    """
    for cell, e, columns in _edges(space, choices):
        own = scores[cell.name][e, list(columns)]
        place = f"edge {cell.edges[e]} of the {cell.name} cell"
        if not own.isfinite().all():
            op = cell.edges[e].ops[columns[int((~own.isfinite()).nonzero()[0])]]
            raise InputError(
                f"The {name} score of {op} on {place} is not a finite number, so it decides nothing; give a smaller "
                "--selection.alpha_std, a smaller supernet, or another --selection.score."
            )
        if len(columns) > 1 and not own.any():
            raise InputError(
                f"The {name} scores of all operations on {place} are 0, so they decide nothing; give a larger "
                "--selection.alpha_std, or another --selection.score."
            )
    return {cell: own.numpy() for cell, own in scores.items()}


def parameter_counts(space: SearchSpace) -> dict[str, np.ndarray]:
    """Returns the number of parameters of each operation of each cell type with 16 channels, (edges, ops)."""
    setting = Setting(16, 1, affine=False, track=False, normalise_pools=False)
    counts = {}
    for cell in space.cells:
        counts[cell.name] = np.full((len(cell.edges), cell.num_ops), -1.0)
        for e, edge in enumerate(cell.edges):
            for o, op in enumerate(edge.ops):
                counts[cell.name][e, o] = sum(p.numel() for p in make_operation(op, setting).parameters())
    return counts


def decision_order(supernet: Supernet, seed: int) -> dict[str, list[int]]:
    """Returns the edges of each cell type, the one with the most salient operation by FreeFlow first.

    Args:
        supernet: The supernet, whose memory keeps the answer.
        seed: The run's seed.

    Raises:
        InputError: If the scores of an edge tell nothing.
    """
    if "freeflow_order" not in supernet.memory:
        scores = _initial_scores(supernet, seed)
        order = {cell: np.argsort(-own.max(axis=1), kind="stable").tolist() for cell, own in scores.items()}
        supernet.memory["freeflow_order"] = order
    found: dict[str, list[int]] = supernet.memory["freeflow_order"]
    return found


def initial_alphas(supernet: Supernet, seed: int, scale: float) -> dict[str, np.ndarray]:
    """Returns alphas for each cell type, (edges, ops), that tell how salient the operations are by FreeFlow.

    They are the logarithms of the scores, moved and scaled for each edge to the mean 0 and a standard deviation; an
    operation without any score, as ``none``, gets the smallest of its edge.

    Args:
        supernet: The supernet.
        seed: The run's seed.
        scale: The standard deviation.

    Raises:
        InputError: If the scores of an edge tell nothing.
    """
    alphas = {}
    for name, scores in _initial_scores(supernet, seed).items():
        alphas[name] = np.zeros_like(scores)
        for e, edge in enumerate(supernet.space.cell(name).edges):
            own = scores[e, : len(edge.ops)]
            if len(own) > 1:
                logarithms = np.log(np.where(own > 0, own, own[own > 0].min()))
                spread = logarithms.std()
                alphas[name][e, : len(own)] = scale * (logarithms - logarithms.mean()) / (spread if spread else 1.0)
    return alphas


def _initial_scores(supernet: Supernet, seed: int) -> dict[str, np.ndarray]:
    rule, everything = FreeDarts(), Choices.everything(supernet.space)
    scores = supernet.saliency(rule.score, rule.alphas(supernet.space, seed), everything, seed)
    return checked(supernet.space, everything, scores, rule.score.name)


def _edges(space: SearchSpace, choices: Choices) -> Iterator[tuple[Cell, int, tuple[int, ...]]]:
    """Every edge that is left, with the operations that can be kept on it."""
    for cell in space.cells:
        for e in choices.kept(cell.name):
            yield cell, e, tuple(choosable(space, cell, e, choices.of(cell.name)[e]))


def _pruned(
    space: SearchSpace,
    choices: Choices,
    scores: Mapping[str, np.ndarray],
    power: float,
    scope: str,
) -> Choices:
    """Returns choices without the weakest operations.

    Args:
        space: The search space.
        choices: What is open.
        scores: The scores of each cell type, (edges, ops).
        power: 1 less the share of the rounds that is over with this one.
        scope: ``edge`` or ``global``.
    """
    whole = {(c.name, e): len(columns) for c, e, columns in _edges(space, Choices.everything(space))}
    ranked: dict[EdgeKey, list[int]] = {}
    for cell, e, columns in _edges(space, choices):
        order = np.argsort(-scores[cell.name][e, list(columns)], kind="stable")
        ranked[cell.name, e] = [columns[i] for i in order]
        for o in set(choices.of(cell.name)[e]) - set(columns):
            choices = choices.close((cell.name, e), o)
    if scope == "edge":
        stay = {key: ops[: _rounded_up(whole[key] ** power)] for key, ops in ranked.items()}
    else:
        # The strongest of each edge stays; the others are weighed against those of all edges.
        others = [(float(scores[key[0]][key[1], o]), key, o) for key, ops in ranked.items() for o in ops[1:]]
        total, edges = sum(whole.values()), len(ranked)
        count = _rounded_up(edges * (total / edges) ** power) - edges
        left = sorted(others, key=lambda entry: -entry[0])[:count]
        stay = {key: [ops[0], *(o for _, own, o in left if own == key)] for key, ops in ranked.items()}
    for key, ops in ranked.items():
        for o in set(ops) - set(stay[key]):
            choices = choices.close(key, o)
    return choices


def _rounded_up(count: float) -> int:
    """The next whole number, where rounding of a power may have missed one by a little."""
    return math.ceil(count - 1e-9)


def _records(
    space: SearchSpace, before: Choices, after: Choices, scores: Mapping[str, np.ndarray], criterion: str
) -> Iterator[Decision]:
    """Which operations of each edge were left in a round, where some were not."""
    for cell in space.cells:
        values = scores[cell.name]
        for e in before.kept(cell.name):
            columns, left = before.of(cell.name)[e], after.of(cell.name)[e]
            if columns == left:
                continue
            gone = [float(values[e, o]) for o in columns if o not in left]
            margin = min(float(values[e, o]) for o in left) - max(gone)
            candidates = tuple(candidate(cell, e, o, float(values[e, o]), o in left) for o in columns)
            yield Decision(cell.name, "operations", criterion, candidates, margin=margin)
