"""Fewer evaluations by racing: a candidate that cannot be the winner any more is not measured further.

The idea is that of Hoeffding races (Maron and Moore, NeurIPS 1993) with a paired test in place of Hoeffding's bound:
all candidates see the same pictures, and their differences vary much less than their losses.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from torch import Tensor

Criterion = Literal["loss", "accuracy", "divergence"]
"""What variants are compared by; the divergence is that of their predictions from those of the first variant."""


@dataclass(frozen=True, slots=True)
class Race:
    """The rule by which candidates leave a race whose winner is the one with the largest mean.

    After 2, 4, 8, ... batches each candidate is compared with the leader by a one-sided paired test over pictures. Its
    level is shared among all candidates and looks (Bonferroni), so that the best candidate leaves with a probability of
    at most 1 - confidence, as far as the mean difference is normal.

    Args:
        confidence: Probability with which the winner is the one that a full evaluation would give, from 0.5 to 1.
        sign: 1 where the largest mean wins, -1 where the smallest does.
        entrants: Indices of the variants that race; others are measured as long as the race goes on.
        criterion: What they are compared by.
    """

    confidence: float
    sign: float
    entrants: tuple[int, ...]
    criterion: Criterion = "loss"

    @staticmethod
    def looks(total: int) -> list[int]:
        """Returns the numbers of batches after which there is a look, for a full evaluation of so many."""
        return [2**i for i in range(1, total.bit_length()) if 2**i < total]

    def survivors(self, values: Sequence[Tensor], left: Sequence[int], total: int) -> tuple[int, ...]:
        """Returns which of the candidates left stay in the race at a look.

        Args:
            values: The values of every variant so far, (pictures,) each.
            left: The candidates that have been measured on all these pictures.
            total: Number of batches of a full evaluation.
        """
        if len(left) < 2:
            return tuple(left)
        looks = max(1, len(self.looks(total)))
        level = (1 - self.confidence) / (looks * (len(self.entrants) - 1))
        bound = NormalDist().inv_cdf(1 - level)
        leader = max(left, key=lambda i: self.sign * float(values[i].mean()))
        stay = []
        for i in left:
            lead = self.sign * (values[leader] - values[i])
            error = float(lead.std()) / math.sqrt(len(lead))
            if i == leader or not float(lead.mean()) > bound * error:
                stay.append(i)
        return tuple(stay)
