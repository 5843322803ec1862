"""Estimators of the gradient of an expected loss over sampled architectures.

The search minimises E[L(z)] over the parameters of the distribution of z, a choice of one operation on each edge. L
need not be differentiable. Every estimator turns samples and their losses into one number whose derivative by the
parameters is its estimate.

Paper: UNAS, Vahdat et al., "UNAS: Differentiable Architecture Search Meets Reinforcement Learning", CVPR 2020,
https://arxiv.org/abs/1912.07651.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dartslight.errors import InputError
from dartslight.strategies.draws import Draw
from dartslight.strategies.smoothing import Rows

Losses = Callable[[Rows], Tensor]
"""The loss of each sample, (samples,), by the weights of the operations, (samples, edges, ops) for each cell type.

Several losses of a single sample, such as those of the pictures of a batch, count by their mean.
"""

Average = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Returns the means of tensors over all devices."""


class Estimator(nn.Module, ABC):
    """Estimates the derivative of an expected loss; what it remembers of earlier steps is in its buffers."""

    relaxes = True
    """Whether it asks for the losses of relaxed samples."""

    @abstractmethod
    def forward(self, draws: Mapping[str, Draw], discrete: Losses, relaxed: Losses, average: Average = list) -> Tensor:
        """Returns the number whose derivative by the parameters is the estimate.

        Args:
            draws: The samples of each cell type, equally many.
            discrete: The losses of hard samples; never differentiated.
            relaxed: The losses of relaxed samples; the same function where that is differentiable, or a substitute.
            average: Returns the means of tensors over all devices.
        """


class GumbelSoftmax(Estimator):
    """The derivative of the relaxed samples' losses: little variance, but of another expected loss."""

    def forward(self, draws: Mapping[str, Draw], discrete: Losses, relaxed: Losses, average: Average = list) -> Tensor:
        """Returns the mean of L(relaxed)."""
        return relaxed({cell: draw.relaxed for cell, draw in draws.items()}).mean()


class Reinforce(Estimator):
    """The score function times how much worse than usual a sample is: right on average, but of large variance.

    What is usual is the moving average of the losses of earlier steps; the present ones are not in it, since with them
    the estimate would be biased.

    Paper: Williams, "Simple Statistical Gradient-Following Algorithms", Machine Learning 8, 1992.

    Args:
        decay: Share that the moving average keeps in a step.
    """

    relaxes = False

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise InputError(f"decay is {decay}, but it must be from 0 to below 1; give such a number.")
        self.decay = decay
        self.register_buffer("_total", torch.zeros(()))
        self.register_buffer("_weight", torch.zeros(()))

    @property
    def baseline(self) -> Tensor:
        """The moving average, 0 before the first step."""
        total, weight = self.get_buffer("_total"), self.get_buffer("_weight")
        return total / weight.clamp_min(torch.finfo(weight.dtype).tiny)

    def forward(self, draws: Mapping[str, Draw], discrete: Losses, relaxed: Losses, average: Average = list) -> Tensor:
        """Returns the mean of log p(hard) * (L(hard) - baseline), and takes the losses into the moving average."""
        losses = _of_hard(draws, discrete)
        estimate = (_score(draws) * (losses - self.baseline.to(losses.dtype))).mean()
        (mean,) = average([losses.mean()])
        for name, value in (("_total", mean), ("_weight", 1.0)):
            self.get_buffer(name).mul_(self.decay).add_(value, alpha=1 - self.decay)
        return estimate


class Rebar(Estimator):
    """The score function on what relaxing changes of a loss, and the derivative of the relaxed losses beside it (UNAS).

    The relaxed loss is a control variate: it takes most of the variance away, and its own expected derivative, of which
    the part through the relaxation given the hard sample is subtracted, puts back what it takes. So it need not be
    close to the discrete loss, only differentiable.
    """

    def forward(self, draws: Mapping[str, Draw], discrete: Losses, relaxed: Losses, average: Average = list) -> Tensor:
        """Returns the mean of log p(hard) * (L(hard) - L(relaxed)) + L(corrected)."""
        losses = _of_hard(draws, discrete)
        controls = relaxed({cell: draw.corrected for cell, draw in draws.items()})
        return (_score(draws) * (losses - controls.detach()) + controls).mean()


@torch.no_grad()
def _of_hard(draws: Mapping[str, Draw], discrete: Losses) -> Tensor:
    return discrete({cell: draw.hard for cell, draw in draws.items()})


def _score(draws: Mapping[str, Draw]) -> Tensor:
    """Returns the logarithm of the probability of each sample, (samples,)."""
    return torch.stack([draw.log_probability for draw in draws.values()]).sum(dim=0)
