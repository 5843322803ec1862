"""Batch normalisation that takes a mixing weight along, and is fast for few channels on a CPU."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weight = Tensor | None
"""A mixing weight: one entry for each channel (channels,), one for each picture (batch, 1, 1, 1), or None for 1."""


_is_repeated = ContextVar("_is_repeated", default=False)


@contextlib.contextmanager
def repeated() -> Iterator[None]:
    """While this lasts a forward pass is one computed before, which the running statistics have seen already."""
    token = _is_repeated.set(True)
    try:
        yield
    finally:
        _is_repeated.reset(token)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that multiplies its output by a mixing weight at no cost."""

    def forward(self, x: Tensor, weight: Weight = None) -> Tensor:
        """Returns ``weight * batch_norm(x)``.

        Args:
            x: (batch, channels, height, width).
            weight: The mixing weight.
        """
        scale: Tensor | None = self.weight
        shift: Tensor | None = self.bias
        if weight is not None and weight.dim() == 1:
            scale = weight if scale is None else scale * weight
            shift = None if shift is None else shift * weight
        batch_statistics = self.training or self.running_mean is None
        # The running statistics of a part of a distributed batch are this rank's own, as in torch's BatchNorm2d.
        pixels = pixels_in_a_row(x) if batch_statistics else 1
        if pixels == 1:
            momentum = 0.0 if batch_statistics and _is_repeated.get() else self.momentum or 0.0
            y = F.batch_norm(x, self.running_mean, self.running_var, scale, shift, batch_statistics, momentum, self.eps)
        else:
            y, mean, var = _RowwiseBatchNorm.apply(x, scale, shift, self.eps, pixels)
            self._follow(mean, var, x.numel() // x.shape[1])
        return y if weight is None or weight.dim() == 1 else y * weight

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves the running statistics towards those of a batch with so many pixels."""
        if self.running_mean is not None and self.running_var is not None and not _is_repeated.get():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum or 0.0)


def normalised(conv: nn.Conv2d, norm: BatchNorm, x: Tensor, weight: Weight) -> Tensor:
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
    out: Tensor
    if conv.kernel_size != (1, 1) or not torch.is_grad_enabled():
        out = norm(y, weight)
        return out
    place, kernel, stride = y.data_ptr(), conv.weight, conv.stride
    autocast = torch.is_autocast_enabled(x.device.type)

    def forget(kept: Tensor) -> Tensor | None:
        return None if kept.data_ptr() == place else kept

    def remember(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        with torch.no_grad(), torch.autocast(x.device.type, enabled=autocast, cache_enabled=False):
            return F.conv2d(x, kernel, None, stride)

    with torch.autograd.graph.saved_tensors_hooks(forget, remember):
        out = norm(y, weight)
    return out


def pixels_in_a_row(x: Tensor) -> int:
    """Returns how many pixels the normalisation takes together as one row of numbers; 1 is the library's own way.

    With channels last in memory a pixel is so few numbers that the processor's vectors stay half empty; 8 pixels fill
    them.
    """
    channels = x.shape[1]
    fills_vectors = channels >= 32 and channels % 16 == 0
    if x.is_cuda or fills_vectors or x.dtype not in (torch.float32, torch.float64):
        return 1
    if x.numel() % (8 * channels) or not x.is_contiguous(memory_format=torch.channels_last):
        return 1
    return 8


class _RowwiseBatchNorm(torch.autograd.Function):
    """Batch normalisation by the statistics of the batch over rows of several pixels.

    The mean and variance of every place in a row are taken first; those of a channel follow from them:
    var = mean of the variances + variance of the means.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, pixels: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x, pixels)
        means, variances = (s.view(pixels, -1) for s in torch.batch_norm_update_stats(rows, None, None, 0.0))
        mean = means.mean(0)
        var = variances.mean(0) + (means - mean).square().mean(0)
        inverse = torch.rsqrt(var + eps)
        slope = inverse if scale is None else inverse * scale
        offset = -mean * slope if shift is None else shift - mean * slope
        y = torch.empty_like(x)
        torch.addcmul(offset.repeat(pixels), rows, slope.repeat(pixels), out=_rows(y, pixels))
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        ctx.pixels, ctx.eps = pixels, eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted: left to the library
            inputs = [t for t, needed in zip((x, scale, shift), ctx.needs_input_grad, strict=False) if needed]
            y = F.batch_norm(x, None, None, scale, shift, True, 0.0, ctx.eps)
            found = iter(torch.autograd.grad(y, inputs, gradient, create_graph=True))
            by_x, by_scale, by_shift = (next(found) if needed else None for needed in ctx.needs_input_grad[:3])
            return by_x, by_scale, by_shift, None, None
        n = ctx.pixels
        rows, row_gradients = _rows(x, n), _rows(gradient.contiguous(memory_format=torch.channels_last), n)
        # Over rows, with fixed statistics, the library gives sum(gradient * normalised) and sum(gradient).
        fixed = (mean.repeat(n), inverse.pow(-2).repeat(n))
        _, by_scales, by_shifts = torch.ops.aten.native_batch_norm_backward(
            row_gradients, rows, None, *fixed, *fixed, False, 0.0, [False, True, True]
        )
        by_scale, by_shift = by_scales.view(n, -1).sum(0), by_shifts.view(n, -1).sum(0)
        # d y / d x: slope * (gradient - mean(gradient) - normalised * mean(gradient * normalised))
        count = x.numel() // len(mean)
        slope = inverse if scale is None else inverse * scale
        by_normalised = -slope * inverse * by_scale / count
        constant = -slope * by_shift / count - by_normalised * mean
        by_x = torch.empty_like(x)
        torch.addcmul(constant.repeat(n), rows, by_normalised.repeat(n), out=_rows(by_x, n))
        _rows(by_x, n).addcmul_(row_gradients, slope.repeat(n))
        wants_scale, wants_shift = ctx.needs_input_grad[1:3]
        return by_x, by_scale if wants_scale else None, by_shift if wants_shift else None, None, None


def _rows(x: Tensor, pixels: int) -> Tensor:
    """Views pictures, (batch, channels, height, width), as rows of some pixels, (any, pixels * channels)."""
    return x.permute(0, 2, 3, 1).reshape(-1, pixels * x.shape[1])
