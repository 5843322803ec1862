"""The sensitivities that architecture steps see: abs(w * dL/dw) of the mixing weights w, which costs nothing extra."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dartslight.nets import Mixing

_MOST = 2048  # samples, an even number


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
    """Keeps the sensitivities of the architecture steps of a search, so that a rule can decide by them for nothing.

    A sample is that of one step or, in a search so long that there would be too many, the mean of 2, 4, 8, … steps in
    a row; steps that do not fill a last such sample are left out.

    Args:
        num_ops: Number of operations of an edge of each cell type.
    """

    def __init__(self, num_ops: Mapping[str, int]) -> None:
        self.num_ops = dict(num_ops)
        self._of_step: dict[str, Tensor] = {}
        self._samples: dict[str, list[Tensor]] = {cell: [] for cell in self.num_ops}
        self._begun: list[list[Tensor]] = []  # steps of the next sample
        self.steps = 1
        """How many steps a sample is the mean of."""

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
        """Keeps what a step has shown, which is the mean over all devices, or nothing."""
        if not means:
            return
        self._move(means[0].device)
        self._begun.append(list(means))
        if len(self._begun) < self.steps:
            return
        for samples, found in zip(self._samples.values(), zip(*self._begun, strict=True), strict=True):
            samples.append(torch.stack(found).mean(dim=0))
        self._begun = []
        if all(len(samples) == _MOST for samples in self._samples.values()):
            for samples in self._samples.values():
                samples[:] = [(a + b) / 2 for a, b in zip(samples[::2], samples[1::2], strict=True)]
            self.steps *= 2

    def _move(self, device: torch.device) -> None:
        """Brings what a checkpoint held, which is on the CPU, to where steps are taken."""
        for kept in (*self._samples.values(), *self._begun):
            if kept and kept[0].device != device:
                kept[:] = [tensor.to(device) for tensor in kept]

    def samples(self) -> dict[str, Tensor]:
        """Returns all samples, (samples, edges, ops + 1) for each cell type."""
        return {cell: torch.stack(found).cpu() for cell, found in self._samples.items() if found}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        begun = [[mean.cpu() for mean in means] for means in self._begun]
        return {"samples": self.samples(), "begun": begun, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what a checkpoint has kept; those of the first version hold the samples alone."""
        if "steps" not in state:
            state = {"samples": state, "begun": [], "steps": 1}
        self._samples = {cell: list(state["samples"].get(cell, ())) for cell in self.num_ops}
        self._begun, self.steps = [list(means) for means in state["begun"]], state["steps"]
