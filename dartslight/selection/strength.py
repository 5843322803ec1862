"""How well mixing weights and perturbation scores tell the strength of an operation.

The strength is what DARTS-PT compares them with: the edge is given this one operation, the supernet is fine-tuned, and
its accuracy is measured ("discretisation accuracy at convergence").

Paper: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021,
https://arxiv.org/abs/2108.04392, section 3 and figure 2. The paper shows bars for three edges and names neither the
length of the fine-tuning nor a coefficient; here the ranks of the operations within each edge are pooled, and
Spearman's correlation is taken of them.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from dartslight.selection.rule import Evaluation, Supernet, Variant
from dartslight.selection.statistics import within_group_correlation
from dartslight.spaces import Choices, EdgeKey


@dataclass(frozen=True, slots=True)
class Strength:
    """What was measured of one operation of one edge.

    Args:
        cell: The cell type.
        edge: The edge.
        op: The operation.
        mixing_weight: Its mixing weight.
        perturbation_score: By how much the supernet's loss grows without it.
        discretisation_accuracy: Accuracy of the fine-tuned supernet in which the edge has this operation alone.
    """

    cell: str
    edge: str
    op: str
    mixing_weight: float
    perturbation_score: float
    discretisation_accuracy: float


def draw_edges(choices: Choices, count: int, seed: int) -> list[EdgeKey]:
    """Returns some undecided edges of all cell types, in order; all of them where there are no more."""
    undecided = [(cell, e) for cell, _ in choices.open for e in choices.undecided(cell)]
    drawn = np.random.default_rng(seed).permutation(len(undecided))[:count]
    return [undecided[i] for i in sorted(drawn.tolist())]


def measure_strengths(
    supernet: Supernet, keys: Sequence[EdgeKey], evaluation: Evaluation, tuned_accuracy: Callable[[Choices], float]
) -> list[Strength]:
    """Measures every open operation of some edges.

    Args:
        supernet: The supernet.
        keys: The edges.
        evaluation: On what the perturbation scores are measured; without and with an operation on the same pictures.
        tuned_accuracy: Returns the accuracy of the supernet after it was fine-tuned with some choices.
    """
    strengths = []
    for key in keys:
        name, e = key
        edge, columns = supernet.space.cell(name).edges[e], supernet.choices.of(name)[e]
        mixing = supernet.mixing(supernet.choices)
        variants = [
            Variant(mixing, supernet.choices.close(key, o), f"{name} {edge} without {edge.ops[o]}") for o in columns
        ]
        whole, *without = supernet.measure([Variant(mixing, supernet.choices, "whole"), *variants], evaluation)
        for o, measured in zip(columns, without, strict=True):
            strengths.append(
                Strength(
                    name,
                    str(edge),
                    edge.ops[o],
                    float(mixing[name][e, o]),
                    float((measured.loss - whole.loss).mean()),
                    tuned_accuracy(supernet.choices.decide(key, o)),
                )
            )
    return strengths


def strength_correlations(strengths: Sequence[Strength]) -> dict[str, float | None]:
    """Returns Spearman's correlations of mixing weight and perturbation score with the accuracy, and with each other.

    Where the last one is near 1, the perturbation says nothing that the mixing weights do not say.
    """
    edges = dict.fromkeys((s.cell, s.edge) for s in strengths)

    def groups(name: str) -> list[list[float]]:
        return [[getattr(s, name) for s in strengths if (s.cell, s.edge) == edge] for edge in edges]

    weight, score, accuracy = (
        groups(name) for name in ("mixing_weight", "perturbation_score", "discretisation_accuracy")
    )
    return {
        "mixing_weight": within_group_correlation(weight, accuracy),
        "perturbation_score": within_group_correlation(score, accuracy),
        "weight_and_score": within_group_correlation(weight, score),
    }


def strength_csv(strengths: Sequence[Strength]) -> str:
    """Returns the text of strength.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Strength)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(strength) for strength in strengths)
    return text.getvalue()
