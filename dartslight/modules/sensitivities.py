"""The sensitivities that architecture steps see: abs(w * dL/dw) of the mixing weights w, which costs nothing extra."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dartslight.nets import Mixing


def sensitivity(mixing: Tensor, gradient: Tensor, num_ops: int) -> Tensor:
    """Returns abs(w * dL/dw) of the operations of each edge and of the edge as a whole, (edges, ops + 1).

    Args:
        mixing: The mixing weights w of a cell type, (edges, ops and edge terms).
        gradient: The derivative of the loss by them.
        num_ops: Number of operations of an edge.
    """
    products = (mixing * gradient)[:, :num_ops]
    return torch.cat([products, products.sum(dim=1, keepdim=True)], dim=1).abs()


class SeenSensitivities:
    """Keeps the sensitivities of the architecture steps of a search's last epochs, one sample a step.

    Args:
        num_ops: Number of operations of an edge of each cell type.
    """

    def __init__(self, num_ops: Mapping[str, int]) -> None:
        self.num_ops = dict(num_ops)
        self._of_step: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {cell: [] for cell in self.num_ops}

    def watch(self, mixing: Mixing) -> None:
        """Asks for the derivative by the mixing weights of a pass that is about to be differentiated."""
        for cell, weights in mixing.items():
            if weights.requires_grad:
                cast("Any", weights).register_hook(functools.partial(self._see, cell, weights.detach()))

    def _see(self, cell: str, weights: Tensor, gradient: Tensor) -> None:
        self._of_step[cell] = sensitivity(weights, gradient.detach(), self.num_ops[cell])

    def of_step(self, loss_scale: Tensor | float) -> list[Tensor]:
        """Returns what the pass has shown on this device, in the order of the cell types, and forgets it.

        Args:
            loss_scale: What the loss was multiplied by.
        """
        seen = [self._of_step[cell] / loss_scale for cell in self.num_ops if cell in self._of_step]
        self._of_step = {}
        return seen

    def add(self, means: Sequence[Tensor]) -> None:
        """Keeps a sample, which is the mean over all devices."""
        for samples, mean in zip(self._samples.values(), means, strict=False):
            samples.append(mean)

    def samples(self) -> dict[str, Tensor]:
        """Returns all samples, (steps, edges, ops + 1) for each cell type."""
        return {cell: torch.stack(found).cpu() for cell, found in self._samples.items() if found}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes the samples of a checkpoint."""
        self._samples = {cell: list(state.get(cell, ())) for cell in self.num_ops}
