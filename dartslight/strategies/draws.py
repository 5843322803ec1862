"""Draws of independent categorical variables: a hard and a relaxed sample from the same noise, and what ties them.

The operations of an edge run a race: operation i of probability q_i arrives after the exponentially distributed time
t_i = -log(u_i) / q_i, with u_i uniform, and the first one is drawn, operation k at the time T. The numbers -log(t_i)
are logits with Gumbel noise, and their softmax at a temperature is the relaxed sample. Given the hard sample, the
others arrive at T + e_i / q_i, where T and the e_i have distributions that the parameters are not in. With T and e_i
held constant that is the relaxed sample once more, the same number, as a function of the parameters given the hard one.

Papers: Gumbel-softmax, Jang et al., ICLR 2017, https://arxiv.org/abs/1611.01144; the conditional noise, REBAR, Tucker
et al., NeurIPS 2017, https://arxiv.org/abs/1703.07370; for architectures, UNAS, Vahdat et al., CVPR 2020,
https://arxiv.org/abs/1912.07651.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dartslight.errors import InputError, check_least
from dartslight.strategies.relaxations import Relaxation, only_open

_EDGE = 1e-3  # UNAS: uniform numbers stay this far from 0 and 1


class Draw(NamedTuple):
    """Some samples of one cell type, as weights of its operations, or as those of the variables that these come from.

    Which variables there are is for the relaxation to say; usually each edge has one, whose values are its operations.
    Variables of which nothing is open have weights of 0.

    Args:
        hard: A single 1 for each variable, (samples, variables, values).
        relaxed: Weights that sum to 1, with their derivative by the parameters, (samples, variables, values).
        conditional: The same weights with their derivative given the hard samples, (samples, variables, values).
        log_probability: Logarithm of the probability of each hard sample, (samples,).
    """

    hard: Tensor
    relaxed: Tensor
    conditional: Tensor
    log_probability: Tensor

    @property
    def corrected(self) -> Tensor:
        """The relaxed samples with the derivative of `relaxed` less that of `conditional`."""
        return self.relaxed - (self.conditional - self.conditional.detach())


def draw(
    alphas: Tensor,
    is_open: Tensor,
    count: int,
    temperature: float,
    soften: float = 0.0,
    generator: torch.Generator | None = None,
) -> Draw:
    """Returns samples of the categorical variables whose logits are the architecture parameters.

    Args:
        alphas: The parameters of one cell type, (variables, values), or (samples, variables, values).
        is_open: Whether each value can be drawn, (variables, values).
        count: Number of samples.
        temperature: Temperature of the relaxed samples.
        soften: What is added to every probability before they are divided by their sum, so that none vanishes.
        generator: Draws the noise, on the device of the parameters; None for torch's own.
    """
    log_q = log_probabilities(alphas, is_open, soften)
    shape = (count, *alphas.shape[-2:])
    uniform = torch.rand(shape, generator=generator, dtype=alphas.dtype, device=alphas.device)
    noise = -uniform.clamp(_EDGE, 1 - _EDGE).log()
    log_times = noise.log() - log_q
    first = log_times.argmin(dim=-1, keepdim=True)
    hard = torch.zeros_like(log_times).scatter_(-1, first, 1.0) * is_open

    log_first = log_times.detach().gather(-1, first)
    rest = (noise - log_q.detach().exp() * log_first.exp()).clamp_min(0)
    # Times are added by their logarithms, which stay finite however small a probability is.
    after_first = torch.where(hard > 0, log_first, torch.logaddexp(rest.log() - log_q, log_first))

    def softened(log_times: Tensor) -> Tensor:
        return torch.softmax(-log_times / temperature, dim=-1) * is_open

    log_probability = torch.where(hard > 0, log_q, 0.0).sum(dim=(-2, -1))
    return Draw(hard, softened(log_times), softened(after_first), log_probability)


def log_probabilities(alphas: Tensor, is_open: Tensor, soften: float) -> Tensor:
    """Returns the logarithm of the probability of each value, minus infinity where one of others is open.

    Args:
        alphas: The parameters, (variables, values), or (samples, variables, values).
        is_open: Whether each value can be drawn, (variables, values).
        soften: What is added to every probability before they are divided by their sum.
    """
    log_q = torch.log_softmax(only_open(alphas, is_open), dim=-1)
    if not soften:
        return log_q
    return torch.log_softmax(only_open(torch.log(log_q.exp() + soften), is_open), dim=-1)


class Sampled(Relaxation):
    """Every picture, or every batch, gets an architecture drawn from independent categorical variables (UNAS).

    Pictures pass through their relaxed samples; measured and decided is the probability of each operation. The gradient
    `ScoreFunction` teaches the parameters by the hard and relaxed samples of the same draw.

    Paper: Vahdat et al., CVPR 2020, https://arxiv.org/abs/1912.07651.

    Args:
        temperature: Temperature of the relaxed samples, which stays as it is.
        soften: What is added to every probability before they are divided by their sum, so that none vanishes
            (published: 0 on CIFAR-10, 0.08 on ImageNet).
        per_batch: Whether all pictures of a batch share one architecture (published: not on CIFAR-10, but on ImageNet).
            Batch normalisation then sees no mixture of architectures, and a step takes a fraction of the time; its
            estimate has the variance of a single sample.
    """

    is_random = True

    def __init__(self, temperature: float = 0.4, soften: float = 0.0, per_batch: bool = False) -> None:
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature is {temperature}, but it must be finite and above 0; give such a number.")
        check_least(0, soften=soften)
        self.temperature, self.soften, self.per_batch = temperature, soften, per_batch

    def __call__(self, alphas: Tensor, is_open: Tensor) -> Tensor:
        """Returns the probability of each operation."""
        return log_probabilities(alphas, is_open, self.soften).exp() * is_open

    def draw(self, alphas: Tensor, is_open: Tensor, count: int, generator: torch.Generator | None = None) -> Draw:
        """Returns samples.

        Args:
            alphas: The architecture parameters, (edges, ops).
            is_open: Whether each operation can be drawn, (edges, ops).
            count: Number of samples.
            generator: Draws the noise, on the device of the parameters; None for torch's own.
        """
        return draw(alphas, is_open, count, self.temperature, self.soften, generator)
