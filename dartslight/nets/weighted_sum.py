"""The sum that makes a node, and the batch normalisation that is computed along with it.

A node is the sum of ``weight * x`` and ``weight * batch_norm(x)`` over what comes in. A batch normalisation is a line
for each channel, slope * x + offset, so the whole sum is one pass over each x: no normalised x is ever written.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.nets import node_sums

Weight = Tensor | None
"""A mixing weight: one entry for each channel (channels,), one for each picture (batch, 1, 1, 1), or None for 1."""

_is_repeated = ContextVar("_is_repeated", default=False)
_keeps_all = ContextVar("_keeps_all", default=False)


@contextlib.contextmanager
def _on(flag: ContextVar[bool]) -> Iterator[None]:
    token = flag.set(True)
    try:
        yield
    finally:
        flag.reset(token)


def repeated() -> contextlib.AbstractContextManager[None]:
    """While this lasts a forward pass is one computed before, which the running statistics have seen already."""
    return _on(_is_repeated)


def keeping_all() -> contextlib.AbstractContextManager[None]:
    """While this lasts nothing is left out to be computed again, because a checkpoint around it does that for all."""
    return _on(_keeps_all)


class Kind(NamedTuple):
    """The settings of a batch normalisation.

    Args:
        uses_batch: Whether it normalises by the statistics of the batch and not by the running ones.
        eps: What is added to the variance.
        momentum: Share of a batch in the running statistics.
    """

    uses_batch: bool
    eps: float
    momentum: float


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that multiplies its output by a mixing weight at no cost."""

    def forward(self, x: Tensor, weight: Weight = None) -> Tensor:
        """Returns ``weight * batch_norm(x)``.

        Args:
            x: (batch, channels, height, width).
            weight: The mixing weight.
        """
        return value(Normalised(x, self, weight))

    @property
    def kind(self) -> "Kind":
        """What must be equal for several to be computed together."""
        return Kind(self.training or self.running_mean is None, self.eps, self.momentum or 0.0)

    def line(self, weight: Weight) -> tuple[Tensor | None, Tensor | None]:
        """Returns scale and shift with the mixing weight of each channel in them, None for 1 and 0."""
        scale: Tensor | None = self.weight
        shift: Tensor | None = self.bias
        if weight is None:
            return scale, shift
        return weight if scale is None else scale * weight, None if shift is None else shift * weight

    def by_library(self, x: Tensor, weight: Weight) -> Tensor:
        """Returns the weighted output as the library computes it."""
        per_picture = weight if weight is not None and weight.dim() > 1 else None
        scale, shift = self.line(weight if per_picture is None else None)
        # The running statistics of a part of a distributed batch are this rank's own, as in torch's BatchNorm2d.
        uses_batch, eps, momentum = self.kind
        momentum = 0.0 if _is_repeated.get() else momentum
        y = F.batch_norm(x, self.running_mean, self.running_var, scale, shift, uses_batch, momentum, eps)
        return y if per_picture is None else y * per_picture


class Scaled(NamedTuple):
    """``weight * x``, which is computed while it is added."""

    x: Tensor
    weight: Weight


class Normalised:
    """``weight * norm(x)``, which is computed while it is added.

    Args:
        x: (batch, channels, height, width).
        norm: The normalisation.
        weight: The mixing weight.
        again: Computes x anew, so that it need not be kept for derivatives.
    """

    __slots__ = ("_value", "again", "norm", "statistics", "weight", "x")

    def __init__(self, x: Tensor, norm: nn.Module, weight: Weight, again: Callable[[], Tensor] | None = None) -> None:
        self.x, self.norm, self.weight, self.again = x, norm, weight, again
        self.statistics: tuple[Tensor, Tensor] | None = None
        """Mean and 1 / standard deviation of each channel, once a sum has computed them; other sums use them again."""
        self._value: Tensor | None = None

    def by_library(self) -> Tensor:
        """Returns the value as the library computes it, once for all sums, so that running statistics follow once."""
        if self._value is None:
            with contextlib.nullcontext() if self.again is None else _forgetting([self]):
                if isinstance(self.norm, BatchNorm):
                    self._value = self.norm.by_library(self.x, self.weight)
                else:  # a normalisation that was put in its place, such as a synchronised one
                    y: Tensor = self.norm(self.x)
                    self._value = y if self.weight is None else y * _broadcast(self.weight)
        return self._value


Term = Tensor | Scaled | Normalised | None
"""What is added to a node; None is zero."""


def normalised(conv: nn.Conv2d, norm: nn.Module, x: Tensor, weight: Weight) -> Normalised:
    """Returns ``weight * norm(conv(x))``; the output of a convolution of 1x1 is not kept but computed again.

    The derivative of the normalisation needs that output, which is a third of all that a step of the DARTS supernet
    would have to keep, and costs little to compute from what is kept anyway.

    Args:
        conv: The convolution.
        norm: The normalisation behind it.
        x: (batch, channels, height, width).
        weight: The mixing weight.
    """
    y: Tensor = conv(x)
    # A compiler decides itself what it keeps.
    if conv.kernel_size != (1, 1) or not torch.is_grad_enabled() or torch.compiler.is_compiling() or _keeps_all.get():
        return Normalised(y, norm, weight)
    kernel, stride, device = conv.weight, conv.stride, x.device.type
    # It may run outside the autocast of this pass.
    autocast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def again() -> Tensor:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=autocast, cache_enabled=False):
            return F.conv2d(x, kernel, None, stride)

    return Normalised(y, norm, weight, again)


def value(term: Tensor | Scaled | Normalised) -> Tensor:
    """Returns the value of one term."""
    total = weighted_sum([term])
    assert total is not None
    return total


def weighted_sum(terms: Sequence[Term]) -> Tensor | None:
    """Returns the sum of the terms, (batch, channels, height, width), or None where there is nothing to add."""
    summands = [Scaled(t, None) if isinstance(t, Tensor) else t for t in terms if t is not None]
    if not summands:
        return None
    if len(summands) == 1 and isinstance(summands[0], Scaled) and summands[0].weight is None:
        return summands[0].x
    if _are_compiled(summands):
        return _by_passes(summands)
    total: Tensor | None = None
    for term in summands:
        x, weight = (term.by_library(), None) if isinstance(term, Normalised) else term
        if total is None:
            total = x if weight is None else x * _broadcast(weight)
        else:
            total = total + x if weight is None else torch.addcmul(total, x, _broadcast(weight))
    return total


def _broadcast(weight: Tensor) -> Tensor:
    """A weight in a shape that meets pictures'."""
    return weight if weight.dim() == 4 else weight.view(1, -1, 1, 1)


# ---------------------------------------------------------------------- on a CPU, by the compiled passes


def _are_compiled(terms: Sequence[Scaled | Normalised]) -> bool:
    """Whether the compiled passes can compute the sum; the library does what they cannot."""
    dtype = terms[0].x.dtype
    if not all(node_sums.takes(t.x) and t.x.dtype == dtype for t in terms):
        return False
    if any(t.weight is not None and (t.weight.dim() > 1 or t.weight.dtype != dtype) for t in terms):
        return False
    kinds = {t.norm.kind if isinstance(t.norm, BatchNorm) else None for t in terms if isinstance(t, Normalised)}
    if not kinds:
        return True
    kind, *others = kinds
    return kind is not None and not others and (kind.uses_batch or not torch.is_grad_enabled())


def _by_passes(terms: Sequence[Scaled | Normalised]) -> Tensor:
    # Those with a normalisation first: what is computed for each channel is then one block of numbers for all of them.
    normalised = [t for t in terms if isinstance(t, Normalised)]
    inputs: list[Tensor | None] = []
    for term in normalised:
        inputs += [term.x, *cast("BatchNorm", term.norm).line(term.weight)]
    for scaled in terms:
        if isinstance(scaled, Scaled):
            inputs += [scaled.x, scaled.weight, None]
    mean, inverse = _statistics(normalised, terms[0].x)
    if not torch.is_grad_enabled():
        return _sum(mean, inverse, inputs)[0]
    with _forgetting(normalised):
        eps = cast("BatchNorm", normalised[0].norm).eps if normalised else 0.0
        total: Tensor = _WeightedSum.apply(mean, inverse, eps, *inputs)
    return total


@contextlib.contextmanager
def _forgetting(terms: Sequence[Normalised]) -> Iterator[None]:
    """While this lasts, what can be computed again is not kept for derivatives."""
    again = {term.x.data_ptr(): term.again for term in terms if term.again is not None}
    if not again:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: again.get(kept.data_ptr(), kept), lambda kept: kept if isinstance(kept, Tensor) else kept()
    ):
        yield


@torch.no_grad()
def _statistics(terms: Sequence[Normalised], like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and 1 / standard deviation, (terms, channels) each, and lets the running ones follow."""
    if not terms:
        nothing = like.new_empty((0, like.shape[1]))
        return nothing, nothing
    new = [t for t in terms if t.statistics is None]
    if new:
        mean, inverse = _new_statistics([t.x for t in new], [cast("BatchNorm", t.norm) for t in new])
        for term, own_mean, own_inverse in zip(new, mean.unbind(0), inverse.unbind(0), strict=True):
            term.statistics = (own_mean, own_inverse)
        if len(new) == len(terms):
            return mean, inverse
    found = [cast("tuple[Tensor, Tensor]", t.statistics) for t in terms]
    return torch.stack([mean for mean, _ in found]), torch.stack([inverse for _, inverse in found])


def _new_statistics(xs: Sequence[Tensor], norms: Sequence[BatchNorm]) -> tuple[Tensor, Tensor]:
    uses_batch, eps, momentum = norms[0].kind
    tracked = [(n.running_mean, n.running_var) for n in norms if n.running_mean is not None]
    running = [cast("list[Tensor]", list(some)) for some in zip(*tracked, strict=True)]
    if not uses_batch:
        mean, var = (torch.stack(some) for some in running)
        return mean, var.add_(eps).rsqrt_()
    mean, var, inverse = node_sums.moments(xs, eps)
    if running and not _is_repeated.get():
        count = xs[0].numel() // xs[0].shape[1]
        for some, now in zip(running, (mean, var.mul_(count / (count - 1))), strict=True):
            torch._foreach_lerp_(some, now.unbind(0), momentum)
    return mean, inverse


def _sum(mean: Tensor, inverse: Tensor, inputs: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Returns the sum and the slope of every term, (terms, channels).

    Args:
        mean: Mean of every term with a normalisation, (normalised terms, channels); these are the first.
        inverse: 1 / standard deviation of the same.
        inputs: x, scale and shift of every term in turn.
    """
    return node_sums.weighted(cast("Sequence[Tensor]", inputs[::3]), inputs[1::3], inputs[2::3], mean, inverse)


class _WeightedSum(torch.autograd.Function):
    """The sum by compiled passes, see `_sum`."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, inverse: Tensor, eps: float, *inputs: Tensor | None) -> Tensor:
        total, slopes = _sum(mean, inverse, inputs)
        kept = list(inputs)
        for i in range(len(mean), len(slopes)):
            if not ctx.needs_input_grad[3 + 3 * i + 1]:
                kept[3 * i] = None  # the derivative of weight * x by x does not need x
        ctx.save_for_backward(mean, inverse, slopes, *kept)
        ctx.eps = eps
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mean, inverse, slopes, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted
            return None, None, None, *_differentiable(inputs, len(mean), ctx.eps, gradient, wanted)
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return None, None, None, *_derivatives(inputs, mean, inverse, slopes, gradient, wanted)


def _derivatives(
    inputs: Sequence[Any],
    mean: Tensor,
    inverse: Tensor,
    slopes: Tensor,
    gradient: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Returns the derivatives by x, scale and shift of every term."""
    count = len(mean)
    xs = [inputs[3 * i] if i < count or wanted[3 * i + 1] else None for i in range(len(slopes))]
    by_x, scales, shift = node_sums.derivatives(xs, mean, inverse, slopes, gradient, wanted[::3])
    found: list[Tensor | None] = []
    for i, (own, scale) in enumerate(zip(by_x, scales.unbind(0), strict=True)):
        found += [own, scale if wanted[3 * i + 1] else None, shift if wanted[3 * i + 2] else None]
    return found


def _differentiable(
    inputs: Sequence[Any], count: int, eps: float, gradient: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Returns the same as functions that can be differentiated again; the first terms have a normalisation."""
    found: list[Tensor | None] = []
    for i in range(len(inputs) // 3):
        (x, scale, shift), own = inputs[3 * i : 3 * i + 3], wanted[3 * i : 3 * i + 3]
        if i < count:
            y = F.batch_norm(x, None, None, scale, shift, True, 0.0, eps)
            leaves = [leaf for leaf, needed in zip((x, scale, shift), own, strict=True) if needed]
            gradients = iter(torch.autograd.grad(y, leaves, gradient, create_graph=True))
            found += [next(gradients) if needed else None for needed in own]
        else:
            by_x = gradient if scale is None else gradient * _broadcast(scale)
            found += [by_x if own[0] else None, (gradient * x).sum((0, 2, 3)) if own[1] else None, None]
    return found
