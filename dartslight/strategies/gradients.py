"""Architecture gradients: how the validation loss moves the architecture parameters.

The search minimises L_val(w*(alpha), alpha) with w*(alpha) = argmin_w L_train(w, alpha). DARTS (Liu et al., ICLR 2019,
https://arxiv.org/abs/1806.09055, section 2.3) replaces w* by the present weights (first order) or by the weights after
one virtual step of the weight optimizer (second order, "unrolled").

Every gradient here comes from ``torch.autograd.grad``: no ``.grad`` is touched, and the operation weights stay as they
are. On several devices the inner step and the direction of the second-order term are averaged over them, so that the
mean of the devices' gradients is the gradient of the mean loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dartslight.spaces import SearchSpace
from dartslight.strategies.relaxations import Relaxation

Loss = Callable[[Sequence[Tensor] | None], Tensor]
"""A loss at some operation weights and the present architecture parameters.

None stands for the network just as it is, running statistics included.
"""


@dataclass(frozen=True)
class Bilevel:
    """One instance of the two-level problem: two batches, the present point and the weight optimizer's state.

    Args:
        train_loss: Loss on the training batch.
        val_loss: Loss on the validation batch.
        weights: The operation weights.
        alphas: The architecture parameters.
        learning_rate: Size of the virtual weight step.
        momentum: Momentum of the weight optimizer.
        weight_decay: Weight decay of the weight optimizer.
        momentum_buffers: The optimizer's momentum buffer of each weight, None where it has none yet.
        average: Returns the means of tensors over all devices.
        loss_scale: What a loss is multiplied by while it is differentiated, so that 16-bit numbers do not vanish.
    """

    train_loss: Loss
    val_loss: Loss
    weights: Sequence[Tensor]
    alphas: Sequence[Tensor]
    learning_rate: float
    momentum: float
    weight_decay: float
    momentum_buffers: Sequence[Tensor | None]
    average: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list
    loss_scale: Tensor | float = 1.0

    def gradient(self, loss: Tensor, inputs: Sequence[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
        """Returns the derivatives of a loss on this device by some inputs, 0 where it does not depend on one."""
        return derivatives(loss, inputs, self.loss_scale, create_graph)


def derivatives(
    loss: Tensor, inputs: Sequence[Tensor], loss_scale: Tensor | float, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Returns the derivatives of a loss by some inputs, 0 where it does not depend on one.

    Args:
        loss: The loss.
        inputs: What it is differentiated by.
        loss_scale: What it is multiplied by meanwhile, so that 16-bit numbers do not vanish.
        create_graph: Whether the derivatives can be differentiated.
    """
    found = torch.autograd.grad(loss * loss_scale, inputs, create_graph=create_graph, materialize_grads=True)
    return tuple(g / loss_scale for g in found)


class ArchitectureGradient(ABC):
    """Computes the gradient of the architecture parameters; holds settings, no parameters."""

    learns = True
    """Whether there is an architecture step at all."""

    moves_weights = False
    """Whether the losses are asked for at other weights than the network's own."""

    full_precision = False
    """Whether it must be computed in the precision of the weights, because rounding would drown it."""

    draws = False
    """Whether its problem is an `Expectation` over drawn architectures, and not `Bilevel`."""

    @abstractmethod
    def __call__(self, problem: Any) -> tuple[Tensor, ...]:
        """Returns one gradient for each architecture parameter of the problem, on this device's part of the batches."""

    def prepare(self, space: SearchSpace, relaxation: Relaxation) -> None:  # noqa: B027 - most have nothing to learn
        """Learns which space is searched and how, before the first step.

        Args:
            space: The search space.
            relaxation: How architecture parameters become mixing weights.

        Raises:
            InputError: If the gradient has no meaning there.
        """

    def seen(self) -> dict[str, Tensor]:
        """Returns numbers of the last step that are worth watching, by name."""
        return {}


class Fixed(ArchitectureGradient):
    """No architecture step: the parameters keep their initial, nearly equal values ("blank" in DARTS-PT)."""

    learns = False

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns zeros."""
        return tuple(torch.zeros_like(alpha) for alpha in problem.alphas)


class FirstOrder(ArchitectureGradient):
    """The gradient of the validation loss at the present weights."""

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns d L_val(w, alpha) / d alpha."""
        return problem.gradient(problem.val_loss(None), problem.alphas)


class SecondOrder(ArchitectureGradient):
    """The gradient through one virtual weight step, w' = w - lr * (dL_train/dw + weight_decay * w + momentum * buffer).

    With v = d L_val(w', alpha) / d w' it is d L_val(w', alpha) / d alpha - lr * d (dL_train(w, alpha)/dw . v) / d alpha
    (DARTS, equation 7); how the last term is computed is left to the kinds. The passes of the virtual step leave the
    running statistics alone; the published code lets them move.
    """

    moves_weights = True
    full_precision = True

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns the gradient."""
        stepped = self._virtual_step(problem)
        gradients = problem.gradient(problem.val_loss(stepped), [*stepped, *problem.alphas])
        direction, direct = problem.average(gradients[: len(stepped)]), gradients[len(stepped) :]
        implicit = self._implicit(problem, direction)
        return tuple(g - problem.learning_rate * h for g, h in zip(direct, implicit, strict=True))

    def _virtual_step(self, problem: Bilevel) -> list[Tensor]:
        """Returns the weights after one step of the weight optimizer on the training batch, without clipping."""
        loss = problem.train_loss(problem.weights)
        gradients = problem.average(problem.gradient(loss, problem.weights))
        stepped = []
        for w, gradient, buffer in zip(problem.weights, gradients, problem.momentum_buffers, strict=True):
            step = gradient + problem.weight_decay * w.detach()
            if buffer is not None:
                step = step + problem.momentum * buffer
            stepped.append((w.detach() - problem.learning_rate * step).requires_grad_())
        return stepped

    @abstractmethod
    def _implicit(self, problem: Bilevel, direction: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns d (dL_train(w, alpha)/dw . direction) / d alpha."""


class Unrolled(SecondOrder):
    """The exact gradient through one virtual weight step, by differentiating twice."""

    def _implicit(self, problem: Bilevel, direction: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = problem.train_loss(problem.weights)
        slopes = problem.gradient(loss, problem.weights, create_graph=True)
        product = torch.stack([(g * d).sum() for g, d in zip(slopes, direction, strict=True)]).sum()
        return problem.gradient(product, problem.alphas)


class FiniteDifference(SecondOrder):
    """The gradient through one virtual weight step, its second-order term by a central finite difference.

    The term is (d L_train(w+, alpha) - d L_train(w-, alpha)) / (2 eps) with w+- = w +- eps * v and eps = radius / |v|
    (DARTS, equation 8).

    Args:
        radius: Length of the step in weight space on either side, in the units of the weights (published: 0.01).
    """

    def __init__(self, radius: float = 0.01) -> None:
        self.radius = radius

    def _implicit(self, problem: Bilevel, direction: Sequence[Tensor]) -> tuple[Tensor, ...]:
        norm = torch.sqrt(torch.stack([d.square().sum() for d in direction]).sum())
        # Without a direction both sides are equal, whatever eps is; a GPU is not asked whether it is so.
        eps = self.radius / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)

        def slope(sign: float) -> tuple[Tensor, ...]:
            moved = [w.detach() + sign * eps * d for w, d in zip(problem.weights, direction, strict=True)]
            return problem.gradient(problem.train_loss(moved), problem.alphas)

        return tuple((plus - minus) / (2 * eps) for plus, minus in zip(slope(+1), slope(-1), strict=True))
