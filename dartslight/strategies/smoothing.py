"""Smoothing: the operation weights are trained at disturbed mixing weights, so that the validation loss is flat there.

Paper: Chen and Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based Regularization" (SDARTS),
ICML 2020, https://arxiv.org/abs/2002.05283. The weights of undecided edges are disturbed after the softmax, for the
weight step alone; the architecture step sees them as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dartslight.errors import InputError, check_least

Rows = Mapping[str, Tensor]
"""The mixing weights of the operations of each cell type, (edges, ops); those of an edge sum to 1."""


class Smoothing(ABC):
    """Disturbs the mixing weights of a weight step; holds settings only.

    The radius holds before an edge is brought back to a sum of 1, which follows every change, as in the published code,
    and can move a weight further.

    Args:
        start_radius: Largest change of a mixing weight in the first epoch, before its edge sums to 1 again.
        end_radius: The same at the end of the search and in the fine-tuning after it; it grows linearly.
    """

    def __init__(self, start_radius: float = 0.03, end_radius: float = 0.3) -> None:
        check_least(0, start_radius=start_radius, end_radius=end_radius)
        self.start_radius, self.end_radius = start_radius, end_radius

    def radius(self, progress: float) -> float:
        """Returns the radius when a share of the search is over."""
        return self.start_radius + (self.end_radius - self.start_radius) * progress

    @abstractmethod
    def __call__(self, rows: Rows, is_open: Rows, loss: Callable[[Rows], Tensor], progress: float) -> dict[str, Tensor]:
        """Returns the disturbed mixing weights, constants like those that come in.

        Args:
            rows: The mixing weights.
            is_open: Whether each operation can still be chosen, (edges, ops) for each cell type.
            loss: The training loss of this step's batch as a function of the mixing weights, the network in evaluation.
            progress: Share of the search that is over, from 0 to 1.
        """


class RandomSmoothing(Smoothing):
    """Adds a uniform random number to every mixing weight (SDARTS-RS)."""

    def __call__(self, rows: Rows, is_open: Rows, loss: Callable[[Rows], Tensor], progress: float) -> dict[str, Tensor]:
        """Returns the mixing weights with noise."""
        return _moved(rows, is_open, {cell: _uniform(row, self.radius(progress)) for cell, row in rows.items()})


class AdversarialSmoothing(Smoothing):
    """Moves the mixing weights to where the training loss is largest (SDARTS-ADV).

    Projected gradient ascent by the sign of the gradient from a random start, in steps of ``2 * radius / steps``; the
    point it ends at is taken only if the loss has risen. Every device attacks on its own pictures.

    Args:
        start_radius: Largest change of a mixing weight in the first epoch, before its edge sums to 1 again.
        end_radius: The same at the end of the search and in the fine-tuning after it; it grows linearly.
        steps: Number of ascent steps.
    """

    def __init__(self, start_radius: float = 0.03, end_radius: float = 0.3, steps: int = 7) -> None:
        super().__init__(start_radius, end_radius)
        if steps < 1:
            raise InputError(f"steps is {steps}, but an attack takes at least 1 step; give a larger number.")
        self.steps = steps

    def __call__(self, rows: Rows, is_open: Rows, loss: Callable[[Rows], Tensor], progress: float) -> dict[str, Tensor]:
        """Returns the mixing weights at the end of the attack, or as they were where it failed."""
        radius = self.radius(progress)
        moves = {cell: _uniform(row, radius) for cell, row in rows.items()}
        for _ in range(self.steps):
            at = {cell: row.requires_grad_() for cell, row in _moved(rows, is_open, moves).items()}
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(at), list(at.values()), materialize_grads=True)
            for cell, gradient in zip(moves, gradients, strict=True):
                # From where the last step really ended, which is inside the simplex.
                move = at[cell].detach() - rows[cell] + 2 * radius / self.steps * gradient.sign()
                moves[cell] = move.clamp(-radius, radius)
        attacked = _moved(rows, is_open, moves)
        with torch.no_grad():
            risen = loss(attacked) > loss(rows)
        return {cell: torch.where(risen, attacked[cell], row) for cell, row in rows.items()}


def _uniform(like: Tensor, radius: float) -> Tensor:
    return torch.empty_like(like).uniform_(-radius, radius)


def _moved(rows: Rows, is_open: Rows, moves: Rows) -> dict[str, Tensor]:
    """Returns mixing weights that were moved, within [0, 1] and with a sum of 1; decided edges stay as they are."""
    moved = {}
    for cell, row in rows.items():
        inside = (row + moves[cell]).clamp(0, 1) * is_open[cell]
        largest = torch.zeros_like(row).scatter_(-1, row.argmax(dim=-1, keepdim=True), 1.0)
        total = inside.sum(dim=-1, keepdim=True)
        inside = torch.where(total > 0, inside / total.clamp_min(torch.finfo(row.dtype).tiny), largest)
        undecided = is_open[cell].sum(dim=-1, keepdim=True) > 1
        moved[cell] = torch.where(undecided, inside, row).detach()
    return moved
