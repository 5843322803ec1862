"""Numbers that describe mixing weights and scores, for those who watch a search.

The skip gap and the pooled ranks are those of Wang et al., "Rethinking Architecture Selection in Differentiable NAS",
ICLR 2021, https://arxiv.org/abs/2108.04392, sections 3 and 4.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from dartslight.genotype import Genotype
from dartslight.spaces import Choices, SearchSpace

Strengths = Mapping[str, np.ndarray]
"""A number for each operation of each cell type, (edges, ops), such as its mixing weight."""


def skip_gap(space: SearchSpace, choices: Choices, weights: Strengths) -> float | None:
    """Returns the mean over edges of the weight of ``skip_connect`` less the mean weight of the convolutions.

    Only edges on which both are open count; None where there is no such edge.

    Args:
        space: The search space.
        choices: What is open.
        weights: The mixing weights.
    """
    gaps = []
    for cell in space.cells:
        for edge, columns, row in zip(cell.edges, choices.of(cell.name), weights[cell.name], strict=True):
            skips = [row[o] for o in columns if edge.ops[o] == "skip_connect"]
            convolutions = [row[o] for o in columns if "conv" in edge.ops[o]]
            if skips and convolutions:
                gaps.append(np.mean(skips) - np.mean(convolutions))
    return float(np.mean(gaps)) if gaps else None


def row_entropy(choices: Choices, weights: Strengths) -> float:
    """Returns how evenly the weights of an edge are spread, from 0 (one operation) to 1 (all alike), averaged.

    The average is over all edges that are not gone; a decided edge counts as 0.

    Args:
        choices: What is open.
        weights: The mixing weights; they need not sum to 1.
    """
    entropies = []
    for cell, edges in choices.open:
        for columns, row in zip(edges, weights[cell], strict=True):
            if len(columns) > 1:
                open_ops = row[list(columns)]
                entropies.append(entropy(open_ops / open_ops.sum()) / math.log(len(columns)))
            elif columns:
                entropies.append(0.0)
    return float(np.mean(entropies))


def entropy(shares: np.ndarray) -> float:
    """Returns the entropy of shares that sum to 1, in units of e."""
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def count_skips(genotype: Genotype) -> dict[str, int]:
    """Returns the number of skip connections of each cell type."""
    return {cell.name: sum(edge.ops[0] == "skip_connect" for edge in cell.edges) for cell in genotype.cells}


def spread_of_sets(measured: Sequence[np.ndarray], sets: int) -> tuple[float, float]:
    """Returns the mean over some sets of values of a set's mean, and the standard deviation of these means.

    Args:
        measured: The values of each set; or of all sets one after another, which are then cut into sets of one size,
            and what is left over does not count.
        sets: Number of sets, at least 2.
    """
    if len(measured) == 1:
        size = len(measured[0]) // sets
        measured = [measured[0][i * size : (i + 1) * size] for i in range(sets)]
    means = [values.mean() for values in measured]
    return float(np.mean(means)), float(np.std(means, ddof=1))


def within_group_correlation(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float | None:
    """Returns Spearman's correlation of two numbers whose ranks are taken within groups and then pooled.

    Ranks are scaled to lie between 0 and 1, so that a group of two (+1 or -1 by whether both agree) and a group of
    eight can be pooled. None where one of the two is the same everywhere.

    Args:
        a: The first number of every member of every group.
        b: The second number of the same.
    """
    pooled = [
        np.concatenate([(rankdata(group) - 0.5) / len(group) - 0.5 for group in groups]) if groups else np.zeros(0)
        for groups in (a, b)
    ]
    product = math.sqrt(float((pooled[0] ** 2).sum() * (pooled[1] ** 2).sum()))
    return float((pooled[0] * pooled[1]).sum()) / product if product else None


def sign_flip(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of an exact paired test: how often random signs give as large a mean.

    Beyond 16 differences, 65,536 drawn rows of signs stand for all of them.

    Args:
        differences: The paired differences, at least one.
    """
    values, many = np.asarray(differences, dtype=np.float64), 16
    if len(values) > many:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(2**many, len(values)))
        signs[0] = 1.0
    else:
        signs = np.asarray(list(itertools.product((1.0, -1.0), repeat=len(values))))
    return float((np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean())
