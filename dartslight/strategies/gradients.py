"""Architecture gradients: how the validation loss moves the architecture parameters.

The search minimises L_val(w*(alpha), alpha) with w*(alpha) = argmin_w L_train(w, alpha). DARTS (Liu et al., ICLR 2019,
https://arxiv.org/abs/1806.09055, section 2.3) replaces w* by the present weights (first order) or by the weights after
one virtual step of the weight optimizer (second order, "unrolled").

Every gradient here comes from ``torch.autograd.grad``: no ``.grad`` is touched, and the operation weights stay as they
are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Sequence[Tensor] | None, Sequence[Tensor]], Tensor]
"""A loss of (weights, alphas); weights None stands for the network just as it is, running statistics included."""


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
    """

    train_loss: Loss
    val_loss: Loss
    weights: Sequence[Tensor]
    alphas: Sequence[Tensor]
    learning_rate: float
    momentum: float
    weight_decay: float
    momentum_buffers: Sequence[Tensor | None]


class ArchitectureGradient(ABC):
    """Computes the gradient of the architecture parameters; holds settings, no parameters."""

    learns = True
    """Whether there is an architecture step at all."""

    moves_weights = False
    """Whether the losses are asked for at other weights than the network's own."""

    @abstractmethod
    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns one gradient for each architecture parameter of the problem."""


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
        return torch.autograd.grad(problem.val_loss(None, problem.alphas), problem.alphas, materialize_grads=True)


class Unrolled(ArchitectureGradient):
    """The exact gradient through one virtual weight step, by differentiating twice.

    The step is w' = w - lr * (dL_train/dw + weight_decay * w + momentum * buffer), as in the published code. The
    forward passes of the virtual step leave the running statistics alone; the published code lets them move.
    """

    moves_weights = True

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns d L_val(w'(alpha), alpha) / d alpha."""
        stepped = _virtual_step(problem, create_graph=True)
        return torch.autograd.grad(problem.val_loss(stepped, problem.alphas), problem.alphas, materialize_grads=True)


class FiniteDifference(ArchitectureGradient):
    """The gradient through one virtual weight step, its second-order term by a central finite difference.

    g = d L_val(w', alpha) / d alpha - lr * (d L_train(w+, alpha) - d L_train(w-, alpha)) / (2 eps) with
    w+- = w +- eps * v, v = d L_val(w', alpha) / d w' and eps = radius / |v| (DARTS, equations 7 and 8).

    Args:
        radius: Length of the step in weight space on either side, in the units of the weights (published: 0.01).
    """

    moves_weights = True

    def __init__(self, radius: float = 0.01) -> None:
        self.radius = radius

    def __call__(self, problem: Bilevel) -> tuple[Tensor, ...]:
        """Returns the gradient."""
        alphas = problem.alphas
        # w' is a leaf here: its dependence on alpha is what the finite difference stands for.
        stepped = [w.detach().requires_grad_() for w in _virtual_step(problem, create_graph=False)]
        loss = problem.val_loss(stepped, alphas)
        gradients = torch.autograd.grad(loss, [*stepped, *alphas], materialize_grads=True)
        direction, direct = gradients[: len(stepped)], gradients[len(stepped) :]
        norm = torch.sqrt(torch.stack([d.square().sum() for d in direction]).sum())
        # Without a direction both sides are equal, whatever eps is; a GPU is not asked whether it is so.
        eps = self.radius / norm.clamp_min(torch.finfo(norm.dtype).tiny ** 0.5)

        def slope(sign: float) -> tuple[Tensor, ...]:
            moved = [w.detach() + sign * eps * d for w, d in zip(problem.weights, direction, strict=True)]
            return torch.autograd.grad(problem.train_loss(moved, alphas), alphas, materialize_grads=True)

        return tuple(
            g - problem.learning_rate * (plus - minus) / (2 * eps)
            for g, plus, minus in zip(direct, slope(+1), slope(-1), strict=True)
        )


def _virtual_step(problem: Bilevel, create_graph: bool) -> list[Tensor]:
    """Returns the weights after one step of the weight optimizer on the training batch, without clipping."""
    loss = problem.train_loss(problem.weights, problem.alphas)
    gradients = torch.autograd.grad(loss, problem.weights, create_graph=create_graph, materialize_grads=True)
    stepped = []
    for w, gradient, buffer in zip(problem.weights, gradients, problem.momentum_buffers, strict=True):
        step = gradient + problem.weight_decay * w
        if buffer is not None:
            step = step + problem.momentum * buffer
        stepped.append(w - problem.learning_rate * step)
    return stepped
