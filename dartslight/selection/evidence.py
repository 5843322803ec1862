"""Evidence: what was measured of the candidates of a decision, and the decision that follows from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dartslight.errors import InputError
from dartslight.selection.racing import Criterion
from dartslight.selection.rule import Candidate, Decision, Measurement, Sensitivities
from dartslight.spaces import Cell


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured of one candidate.

    Args:
        criterion: ``loss``, ``accuracy`` and ``divergence`` are those of the supernet without the candidate on each
            picture; ``sensitivity`` is that of the candidate on each batch.
        samples: The numbers, (samples,), float64.
        batches: Number of batches.
        pictures: Number of pictures.
    """

    criterion: str
    samples: Tensor
    batches: int
    pictures: int

    @classmethod
    def of_removal(cls, measured: Measurement, criterion: Criterion) -> "Evidence":
        """Returns what a measurement of the supernet without the candidate says."""
        values = measured.values(criterion)
        return cls(criterion, values, measured.batches, len(values))

    @classmethod
    def of_sensitivity(cls, found: Sensitivities, cell: str, edge: int, op: int = -1) -> "Evidence":
        """Returns what sensitivities say of an operation, or of the edge as a whole."""
        values = found.samples[cell][:, edge, op]
        return cls("sensitivity", values, len(values), len(values) * found.pictures)

    @property
    def score(self) -> float:
        """The mean, in the criterion's unit.

        Raises:
            InputError: If it is not finite.
        """
        score = float(self.samples.mean())
        if not math.isfinite(score):
            raise InputError(
                "The supernet's loss is not a finite number, so there is nothing to decide by; it has diverged: search "
                "again with a smaller --model.learning_rate."
            )
        return score

    @property
    def missed(self) -> float:
        """How much the supernet misses the candidate, up to a constant."""
        return sign_of(self.criterion) * self.score

    def lead(self, other: "Evidence", paired: bool) -> tuple[float, float | None, int]:
        """Returns by how much more this candidate is missed, the standard error, and the number of pictures.

        A single sample has no standard error.

        Args:
            other: The other candidate.
            paired: Whether both were measured on the same samples; the first ones of the longer evidence then count.
        """
        count = min(len(self.samples), len(other.samples))
        a, b = self.samples[:count], other.samples[:count]
        difference, error = sign_of(self.criterion) * float(a.mean() - b.mean()), None
        if count > 1:
            variance = (a - b).var() / count if paired else (a.var() + b.var()) / count
            error = float(variance.sqrt())
        return difference, error, min(self.pictures, other.pictures)

    def candidate(self, cell: Cell, edge: int, op: int, base: float | None, chosen: bool) -> Candidate:
        """Returns the record of the candidate.

        Args:
            cell: The cell type.
            edge: The edge.
            op: The operation.
            base: The score of the whole supernet, where it was measured.
            chosen: Whether it is kept.
        """
        place = cell.edges[edge]
        own, is_with = self.score, self.criterion == "sensitivity"
        return Candidate(
            place.source,
            place.node,
            place.ops[op],
            own if is_with else base,
            None if is_with else own,
            chosen,
            self.batches,
        )


def sign_of(criterion: str) -> float:
    """Returns 1 where more of a criterion means that more is missed, and -1 where less does."""
    return -1.0 if criterion == "accuracy" else 1.0


def keep_operation(
    cell: Cell, edge: int, evidence: Mapping[int, Evidence], base: float | None, paired: bool
) -> tuple[int, Decision]:
    """Keeps the operation that is missed most, the first of several equal ones, of those measured to the end.

    Args:
        cell: The cell type.
        edge: The edge.
        evidence: What was measured of each operation, by its column.
        base: The score of the whole supernet, where it was measured.
        paired: Whether all were measured on the same samples.
    """
    best = max(_finishers(evidence), key=lambda o: evidence[o].missed)
    leads = [evidence[best].lead(other, paired) for o, other in evidence.items() if o != best]
    candidates = [found.candidate(cell, edge, o, base, o == best) for o, found in evidence.items()]
    return best, decision(cell, "operation", candidates, evidence[best], leads)


def least_missed(evidence: Mapping[int, Evidence]) -> int:
    """Returns the candidate that is missed least, the last of several equal ones, of those measured to the end."""
    return min(reversed(_finishers(evidence)), key=lambda i: evidence[i].missed)


def keep_inputs(
    cell: Cell, kept: Mapping[int, int], evidence: Mapping[int, Evidence], base: float | None, count: int
) -> tuple[list[int], Decision]:
    """Keeps the edges into a node that are missed most, the first of several equal ones.

    Args:
        cell: The cell type.
        kept: The operation of each edge.
        evidence: What was measured of each edge on the same samples.
        base: The score of the whole supernet, where it was measured.
        count: How many stay.
    """
    order = sorted(evidence, key=lambda e: -evidence[e].missed)
    stay, gone = order[:count], order[count:]
    leads = [evidence[e].lead(evidence[gone[0]], paired=True) for e in stay] if gone else []
    candidates = [found.candidate(cell, e, kept[e], base, e in stay) for e, found in evidence.items()]
    return stay, decision(cell, "inputs", candidates, evidence[stay[-1]], leads)


def decision(
    cell: Cell,
    kind: Literal["operation", "inputs"],
    candidates: Sequence[Candidate],
    decisive: Evidence,
    leads: Sequence[tuple[float, float | None, int]],
) -> Decision:
    """Returns the record of a decision.

    Args:
        cell: The cell type.
        kind: What is decided.
        candidates: All candidates.
        decisive: The evidence of the kept one, or of the one that goes.
        leads: The leads over its rivals; the smallest says how clear the decision is.
    """
    nothing = (None, None, decisive.pictures)
    margin, noise, pictures = min(leads, key=lambda lead: lead[0]) if leads else nothing
    return Decision(cell.name, kind, decisive.criterion, tuple(candidates), decisive.batches, pictures, margin, noise)


def _finishers(evidence: Mapping[int, Evidence]) -> list[int]:
    """The candidates that were measured to the end."""
    longest = max(len(found.samples) for found in evidence.values())
    return [i for i, found in evidence.items() if len(found.samples) == longest]
