"""Depthwise convolutions with derivatives that are fast on a CPU.

The library's forward convolution is fast for every kernel; its derivatives are fast for kernels of 3x3 without dilation
only. So the derivatives are stated by what is fast: the one by the input as a convolution with the kernel turned round,
the one by the kernel as several of 3x3 without dilation. All of these are the same sums in another order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """A convolution that keeps channels apart; its output has the input's size, or half of it with stride 2.

    Args:
        channels: Channels of input and output.
        kernel: Side of the kernel in pixels, 3, 5 or 7.
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
        # With this stride and dilation only pixels of even row and column are read.
        self._reads_even = stride == dilation == 2

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution.

        Args:
            x: (batch, channels, height, width).
        """
        if x.is_cuda or torch.compiler.is_compiling():
            return super().forward(x)
        if self._reads_even:
            x = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
        elif self.stride[0] == 2:
            return super().forward(x)
        return same_depthwise(x, self.weight, 1 if self._reads_even else self.dilation[0])


def same_depthwise(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """Returns a depthwise convolution with stride 1 whose output has the size of its input.

    Args:
        x: (batch, channels, height, width), on a CPU.
        weight: (channels, 1, kernel, kernel).
        dilation: 1 or 2.
    """
    y: Tensor = _SameDepthwise.apply(x, weight, dilation)
    return y


class _SameDepthwise(torch.autograd.Function):
    """A depthwise convolution with stride 1 whose output has the size of its input.

    Its derivative consists of differentiable functions, so that it can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.dilation = dilation
        return _convolve(x, weight, dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_x = _convolve(gradient, weight.flip(2, 3), ctx.dilation) if ctx.needs_input_grad[0] else None
        by_weight = _by_weight(gradient, x, weight, ctx.dilation) if ctx.needs_input_grad[1] else None
        return by_x, by_weight, None


def _convolve(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, len(weight))


def _by_weight(gradient: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Returns the derivative by the kernel, (channels, 1, kernel, kernel)."""
    if dilation == 2:
        # Pixels of even and odd rows and columns do not meet: each of the four parts is a picture without dilation.
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            bottom_right = (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)
            gradient, x = F.pad(gradient, bottom_right), F.pad(x, bottom_right)
        gradient, x = _quarters(gradient), _quarters(x)
    kernel = weight.shape[-1]
    if kernel == 3:
        return _by_small_weight(gradient, x, weight, padding=1)
    # Four kernels of 3x3, which overlap in the middle row and column, make one of 5x5, and nine make one of 7x7.
    height, width, places = x.shape[-2] + 2, x.shape[-1] + 2, range(0, kernel - 2, 2)
    wide = F.pad(x, [kernel // 2] * 4)
    rows = []
    for i in places:
        parts = [
            _by_small_weight(gradient, wide[:, :, i : i + height, j : j + width], weight[:, :, :3, :3], padding=0)
            for j in places
        ]
        rows.append(torch.cat([parts[0], *(part[..., 1:] for part in parts[1:])], dim=3))
    return torch.cat([rows[0], *(row[:, :, 1:] for row in rows[1:])], dim=2)


def _quarters(x: Tensor) -> Tensor:
    """Returns the pixels of even and odd rows and columns as four pictures, (4 * batch, channels, h / 2, w / 2)."""
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def _by_small_weight(gradient: Tensor, x: Tensor, weight: Tensor, padding: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    pair = [padding, padding]
    by_weight: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], pair, [1, 1], False, [0, 0], len(weight), [False, True, False]
    )[1]
    return by_weight
