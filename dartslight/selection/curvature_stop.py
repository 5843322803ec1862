"""Early stop by curvature: end the search where the validation loss becomes sharp, and keep an earlier architecture.

Paper: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020,
https://arxiv.org/abs/1909.09656, section 4.3 (DARTS-ES, and a part of R-DARTS).

The largest eigenvalue of the Hessian of the validation loss by the architecture parameters is measured every few
epochs, and its mean over a window of measurements is the local average of the epoch in the window's middle. The search
ends when the newest local average is so many times that of some measurements earlier; the mixing weights of that
earlier epoch are then decided by magnitude. A search that never becomes sharp is decided by magnitude at its end.

As in the published code the newest local average belongs to the middle of its window, so that a stop comes half a
window later. Where the code averages over fewer measurements at both ends of the search, here only whole windows count,
and the measurements lie after 2, 4, 6, ... epochs, where the code's lie after 1, 3, 5, ...; the eigenvalue is found by
Lanczos' method and not from the whole Hessian. Where the earlier average is not above 0 a ratio says nothing, and the
search goes on.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from dartslight.errors import InputError, check_least
from dartslight.seeding import derived_seed, run_seed
from dartslight.selection.rule import Outcome, Rule, Schedule, SearchPlan, Supernet
from dartslight.selection.strongest import Magnitude, keep_strongest

_STOP = 8  # what a derived seed is for
_EPOCHS, _EIGENVALUES, _MIXING = "epochs", "eigenvalues", "mixing"  # names in the memory


class CurvatureStop(Rule):
    """Ends the search when the validation loss becomes sharp, and keeps an earlier architecture (R-DARTS).

    Every eigenvalue is written into the metrics as ``curvature/stop``; the decisions name the epoch whose mixing
    weights were decided.

    Args:
        every: Epochs between two measurements of the largest eigenvalue.
        window: Measurements in a local average; an odd number.
        lag: Measurements between the two local averages that are compared.
        ratio: The search ends when the newer local average is more than so many times the older one.
        min_epoch: Fewest finished epochs of an architecture that the search goes back to.
        batches: Batches of validation pictures in a measurement; a GPU must hold them all.
    """

    def __init__(
        self, every: int = 2, window: int = 5, lag: int = 4, ratio: float = 1.3, min_epoch: int = 10, batches: int = 1
    ) -> None:
        check_least(1, every=every, window=window, lag=lag, batches=batches)
        check_least(0, ratio=ratio, min_epoch=min_epoch)
        if window % 2 == 0:
            raise InputError(
                f"window is {window}, but a window has a middle only if it is odd; give {window - 1} or {window + 1}."
            )
        self.every, self.window, self.lag, self.ratio = every, window, lag, ratio
        self.min_epoch, self.batches = min_epoch, batches

    def schedule(self, plan: SearchPlan) -> Schedule:
        """Returns the epochs after which the search may end, and its end.

        Raises:
            InputError: If the search is over, has stages, between which curvatures cannot be compared, is too short to
                ever end early, or could end with an architecture of its warm-up.
        """
        plan.check_learned("CurvatureStop", [plan.epochs])
        if plan.is_over:
            raise InputError(
                "CurvatureStop looks on from the first to the last epoch of a search, but this supernet's search is "
                "over; use another rule, such as Magnitude, or search with CurvatureStop from the start."
            )
        if len(plan.stage_ends) > 1:
            raise InputError(
                "CurvatureStop compares the curvatures of one supernet, but this search has several stages with a "
                "supernet each; use another rule, such as Magnitude, or search in one stage."
            )
        ends = ((e, self._earlier(e // self.every)) for e in itertools.count(self.every, self.every))
        first, earlier = next((e, index) for e, index in ends if index is not None)
        if plan.epochs < first:
            raise InputError(
                f"CurvatureStop with every {self.every}, window {self.window}, lag {self.lag} and min_epoch "
                f"{self.min_epoch} can stop a search after {first} epochs at the earliest, but this one has "
                f"{plan.epochs}; give --trainer.max_epochs {first} or more, or smaller ones of these settings."
            )
        plan.check_learned("CurvatureStop", [self.every * (earlier + 1)])
        return Schedule((*range(first, plan.epochs, self.every), plan.epochs))

    def observe(self, supernet: Supernet, epochs: int) -> None:
        """Measures the curvature where it is due, and notes it with the mixing weights of the epoch."""
        if epochs % self.every:
            return
        memory = supernet.memory
        value = supernet.curvature(derived_seed(run_seed(), _STOP, epochs), self.batches)
        supernet.log("curvature/stop", value)
        rows = {cell: weights.tolist() for cell, weights in supernet.mixing(supernet.choices).items()}
        memory.setdefault(_EPOCHS, []).append(epochs)
        memory.setdefault(_EIGENVALUES, []).append(value)
        # No older epoch than the one that the next comparison may go back to.
        memory[_MIXING] = [*memory.get(_MIXING, []), rows][-(self.window // 2 + self.lag + 1) :]

    def decide(self, supernet: Supernet, point: int, seed: int) -> Outcome:
        """Ends the search if it has become sharp; at its end decides it by magnitude."""
        memory = supernet.memory
        values = memory.get(_EIGENVALUES, [])
        earlier = self._earlier(len(values))
        if earlier is not None and has_become_sharp(values, self.window, self.lag, self.ratio):
            epoch, rows = memory[_EPOCHS][earlier], memory[_MIXING][earlier - len(values)]
            strengths = {cell: np.array(weights) for cell, weights in rows.items()}
            kept = keep_strongest(supernet.space, supernet.choices, strengths, f"weight after epoch {epoch}")
            return Outcome(kept.choices, kept.decisions, ends_run=True)
        if supernet.is_searched:
            return Magnitude().decide(supernet, point, seed)
        return Outcome(supernet.choices, ())

    def _earlier(self, count: int) -> int | None:
        """The index of the measurement to go back to after so many, or None where it is too early for that."""
        index = count - 1 - self.window // 2 - self.lag
        whole = index - self.window // 2 >= 0
        return index if whole and (index + 1) * self.every >= self.min_epoch else None


def has_become_sharp(values: Sequence[float], window: int, lag: int, ratio: float) -> bool:
    """Returns whether the newest local average is more than ``ratio`` times the one ``lag`` measurements earlier.

    Args:
        values: The measurements, at least ``window + lag`` of them.
        window: Measurements in a local average.
        lag: Measurements between the two.
        ratio: How much larger the newer one must be.
    """
    now, before = (float(np.mean(part)) for part in (values[-window:], values[-window - lag : -lag]))
    return before > 0 and now > ratio * before
