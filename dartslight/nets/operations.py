"""The candidate operations, and what several of them share of one source.

An operation takes the `Source` it reads and its mixing weight and returns its weighted output, ``weight * op(x)``. It
applies the weight where that is cheapest: in the last batch normalisation, or to the values themselves. What edges from
one source have in common (the ReLU in front of every convolution, each pooling) is computed once for all of them.

Papers: DARTS (https://arxiv.org/abs/1806.09055), NAS-Bench-201 (https://arxiv.org/abs/2001.00326), noise in S4
(https://arxiv.org/abs/1909.09656). No convolution has a bias. To add an operation, write a class with ``forward(source,
weight)`` and enter it in `OPERATIONS`.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dartslight.errors import InputError
from dartslight.nets import node_sums
from dartslight.nets.depthwise import DepthwiseConv, same_depthwise
from dartslight.nets.weighted_sum import BatchNorm, Normalised, Scaled, Term, Weight, normalised, value


class Source:
    """The output of one node, with what several edges read of it computed on first use.

    Args:
        x: The node's output, (batch, channels, height, width).
    """

    __slots__ = ("_relu", "_split", "_values", "x")

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._relu: Tensor | None = None
        self._values: dict[nn.Module, Tensor] = {}
        self._split: tuple[Source, Source] | None = None

    @property
    def relu(self) -> Tensor:
        """The rectified output, computed once."""
        if self._relu is None:
            self._relu = F.relu(self.x)
        return self._relu

    def split(self, channels: int) -> "tuple[Source, Source]":
        """Returns the first so many channels and the others, cut once."""
        if self._split is None:
            parts = (self.x[:, :channels], self.x[:, channels:])
            first, rest = (Source(x.contiguous(memory_format=torch.channels_last)) for x in parts)
            self._split = first, rest
        return self._split

    def once(self, module: nn.Module) -> Tensor:
        """Returns a module's value at this output, computed once."""
        if module not in self._values:
            self._values[module] = module(self.x)
        return self._values[module]


@dataclass(frozen=True, slots=True)
class Setting:
    """What an operation must know of the place where it stands.

    Args:
        channels: Channels of its input and output, or of its output alone.
        stride: 1, or 2 where it halves the height and width.
        affine: Whether its batch normalisations have a learned scale and shift.
        track: Whether its batch normalisations keep running statistics.
        normalise_pools: Whether a batch normalisation follows a pooling.
        partial_channels: The operations of an edge see one in so many channels; the others pass by them (PC-DARTS).
        in_channels: Channels of its input where these are others (``mobile``), else None.
    """

    channels: int
    stride: int
    affine: bool
    track: bool
    normalise_pools: bool
    partial_channels: int = 1
    in_channels: int | None = None


class Operation(nn.Module):
    """A candidate operation, see the module's docstring."""

    shared = False
    """Whether all edges from one source with one stride may use one instance, because it learns nothing."""

    droppable = True
    """Whether drop path applies to the output."""

    def forward(self, source: Source, weight: Weight) -> Term:
        """Returns ``weight * op(source)``: computed, or as what the node's sum computes, or None where it is zero."""
        raise NotImplementedError


class Zero(Operation):
    """``none``: no connection."""

    shared = True

    def forward(self, source: Source, weight: Weight) -> None:
        """Returns None: nothing is added to the node."""
        return


class Noise(Operation):
    """``noise``: standard normal numbers in place of the input, a distractor that must never be chosen (S4).

    The numbers follow from torch's seed, which search and selection set anew for every step, and from the operation's
    place in the network. So all passes of one step see the same ones: variants are compared on equal terms, and the
    differences of the second-order gradient are those of the weights alone.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.place = 0

    def forward(self, source: Source, weight: Weight) -> Scaled:
        """Returns weighted noise of the output's shape."""
        x = source.x[:, :, :: self.stride, :: self.stride]
        generator = torch.Generator(x.device).manual_seed(torch.initial_seed() + self.place)
        return Scaled(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device), weight)


class Identity(Operation):
    """``skip_connect`` where the shape stays the same."""

    shared = True
    droppable = False

    def forward(self, source: Source, weight: Weight) -> Scaled:
        """Returns the weighted input."""
        return Scaled(source.x, weight)


class _Pooled(nn.Module):
    """A 3x3 pooling that does not count its padding, and its normalisation if there is one."""

    def __init__(self, kind: str, setting: Setting) -> None:
        super().__init__()
        self.kind, self.stride = kind, setting.stride
        self.norm = (
            BatchNorm(setting.channels, affine=False, track_running_stats=setting.track)
            if setting.normalise_pools
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(x, 3, self.stride, padding=1) if self.kind == "max" else _average(x, self.stride)
        out: Tensor = self.norm(y)
        return out


def _average(x: Tensor, stride: int) -> Tensor:
    """Returns the means of windows of 3x3 pixels, which get smaller at the border."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    if stride == 1 and node_sums.takes(x):
        y: Tensor = _Averages.apply(x, False)
        return y
    # Sums as a depthwise convolution, divided by the sizes of the windows: several times faster on a CPU.
    channels, height, width = x.shape[1:]
    kernel, shares = _window_shares(channels, height, width, stride, x.dtype)
    sums = same_depthwise(x, kernel) if stride == 1 else F.conv2d(x, kernel, None, stride, padding=1, groups=channels)
    return sums * shares


class _Averages(torch.autograd.Function):
    """The means of windows of 3x3 pixels by a compiled pass, or their derivative, each the derivative of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: bool) -> Tensor:
        ctx.backward = backward
        return node_sums.averages(x, backward)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Averages.apply(gradient.contiguous(memory_format=torch.channels_last), not ctx.backward), None


@functools.lru_cache(maxsize=64)
def _window_shares(channels: int, height: int, width: int, stride: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns a kernel of ones, and for each window of 3x3 pixels the share that one pixel has in its mean.

    The shares have all channels: a product that repeats numbers along the innermost dimension of memory takes five
    times as long.
    """
    with torch.inference_mode(False), torch.no_grad():
        ones = torch.ones(1, 1, 3, 3, dtype=dtype)
        sizes = F.conv2d(torch.ones(1, 1, height, width, dtype=dtype), ones, None, stride, padding=1)
        shares = sizes.reciprocal().expand(1, channels, -1, -1)
        return ones.expand(channels, 1, 3, 3), shares.contiguous(memory_format=torch.channels_last)


class Pool(Operation):
    """``max_pool_3x3`` and ``avg_pool_3x3``; in the DARTS supernet a normalisation without scale and shift follows."""

    shared = True

    def __init__(self, kind: str, setting: Setting) -> None:
        super().__init__()
        self.pooled = _Pooled(kind, setting)

    def forward(self, source: Source, weight: Weight) -> Scaled:
        """Returns the weighted pooling, which all edges from the source share."""
        return Scaled(source.once(self.pooled), weight)


class Conv(Operation):
    """ReLU, convolution, batch normalisation: ``nor_conv_kxk``, and the 1x1 convolutions in front of a cell."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, affine: bool, track: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm(out_channels, affine=affine, track_running_stats=track)

    def forward(self, source: Source, weight: Weight) -> Normalised:
        """Returns the weighted output."""
        return normalised(self.conv, self.norm, source.relu, weight)


class FactorizedReduce(Operation):
    """``skip_connect`` with stride 2: two 1x1 convolutions, the second one pixel further, side by side."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool, track: bool) -> None:
        super().__init__()
        # The pixels are taken before the convolution: with a stride and fewer than 8 channels the derivative by a
        # kernel of 1x1 writes outside its memory on a CPU (torch 2.14.1).
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = BatchNorm(out_channels, affine=affine, track_running_stats=track)

    def forward(self, source: Source, weight: Weight) -> Normalised:
        """Returns the weighted output; odd heights and widths are padded by one pixel at the end."""
        x = source.relu
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, width % 2, 0, height % 2)) if width % 2 or height % 2 else x
        even, odd = (
            p.contiguous(memory_format=torch.channels_last) for p in (x[:, :, ::2, ::2], padded[:, :, 1::2, 1::2])
        )
        return Normalised(torch.cat([self.even(even), self.odd(odd)], dim=1), self.norm, weight)


class Bypass(Operation):
    """The channels that pass by the operations of an edge (PC-DARTS), max-pooled to half the size with stride 2."""

    shared = True
    droppable = False

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.pooled = nn.MaxPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, source: Source, weight: Weight) -> Scaled:
        """Returns the weighted channels."""
        return Scaled(source.once(self.pooled), weight)


class Offset(Operation):
    """The weight itself, added to every number: how operations that were not sampled get a derivative (GDAS).

    The weight is 0, so where no derivative by it is wanted there is nothing to add.
    """

    shared = True
    droppable = False

    def forward(self, source: Source, weight: Weight) -> Tensor | None:
        """Returns the weight in a shape that meets pictures'."""
        if weight is None or not weight.requires_grad:
            return None
        return weight if weight.dim() == 4 else weight.view(1, -1, 1, 1)


_Stage = tuple[DepthwiseConv, nn.Conv2d, BatchNorm]


class SeparableConv(Operation):
    """ReLU, depthwise convolution, pointwise convolution, normalisation, once or twice in a row.

    ``sep_conv_kxk`` is this twice with dilation 1, ``dil_conv_kxk`` once with dilation 2; the first has the stride.
    """

    def __init__(self, kernel: int, dilation: int, repeats: int, setting: Setting) -> None:
        super().__init__()
        channels = setting.channels
        self.depthwise = nn.ModuleList(
            DepthwiseConv(channels, kernel, setting.stride if i == 0 else 1, dilation) for i in range(repeats)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(repeats))
        self.norm = nn.ModuleList(
            BatchNorm(channels, affine=setting.affine, track_running_stats=setting.track) for _ in range(repeats)
        )

    def forward(self, source: Source, weight: Weight) -> Normalised:
        """Returns the weighted output."""
        y = source.relu
        *inner, last = cast("Iterable[_Stage]", zip(self.depthwise, self.pointwise, self.norm, strict=True))
        for depthwise, pointwise, norm in inner:
            y = F.relu(value(normalised(pointwise, norm, depthwise(y), None)), inplace=True)
        depthwise, pointwise, norm = last
        return normalised(pointwise, norm, depthwise(y), weight)


class Bottleneck(Operation):
    """``mb_conv_kxk_eE``: to E times the channels, a depthwise convolution, and back, each normalised (MobileNetV2).

    Where the shape stays the same the input is added. Drop path leaves it alone, since nothing stands beside it.
    """

    droppable = False

    def __init__(self, kernel: int, expansion: int, setting: Setting) -> None:
        super().__init__()
        before, after = setting.in_channels or setting.channels, setting.channels
        wide = expansion * before
        self.has_shortcut = before == after and setting.stride == 1
        self.expand = nn.Conv2d(before, wide, 1, bias=False)
        self.depthwise = DepthwiseConv(wide, kernel, setting.stride, 1)
        self.project = nn.Conv2d(wide, after, 1, bias=False)
        self.norms = nn.ModuleList(mobile_norm(c, setting.track, setting.affine) for c in (wide, wide, after))

    def forward(self, source: Source, weight: Weight) -> Term:
        """Returns the weighted output."""
        expanded, filtered, projected = self.norms
        y = F.relu6(value(normalised(self.expand, expanded, source.x, None)))
        y = F.relu6(value(Normalised(self.depthwise(y), filtered, None)))
        if not self.has_shortcut:
            return normalised(self.project, projected, y, weight)
        return Scaled(source.x + value(normalised(self.project, projected, y, None)), weight)


def mobile_norm(channels: int, track: bool, affine: bool = True) -> BatchNorm:
    """Returns a normalisation of a mobile network, whose variances are kept from 0 by more than elsewhere (UNAS)."""
    return BatchNorm(channels, eps=1e-3, affine=affine, track_running_stats=track)


def skip(setting: Setting) -> Operation:
    """Returns ``skip_connect``: the input as it is, or halved in size."""
    if setting.stride == 1:
        return Identity()
    return FactorizedReduce(setting.channels, setting.channels, setting.affine, setting.track)


def _bottleneck(kernel: int, expansion: int) -> Callable[[Setting], Operation]:
    return lambda s: Bottleneck(kernel, expansion, s)


def _conv(kernel: int) -> Callable[[Setting], Operation]:
    return lambda s: Conv(s.channels, s.channels, kernel, s.stride, s.affine, s.track)


OPERATIONS: dict[str, Callable[[Setting], Operation]] = {
    "none": lambda s: Zero(),
    "noise": lambda s: Noise(s.stride),
    "max_pool_3x3": lambda s: Pool("max", s),
    "avg_pool_3x3": lambda s: Pool("avg", s),
    "skip_connect": skip,
    "sep_conv_3x3": lambda s: SeparableConv(3, 1, 2, s),
    "sep_conv_5x5": lambda s: SeparableConv(5, 1, 2, s),
    "sep_conv_7x7": lambda s: SeparableConv(7, 1, 2, s),
    "dil_conv_3x3": lambda s: SeparableConv(3, 2, 1, s),
    "dil_conv_5x5": lambda s: SeparableConv(5, 2, 1, s),
    "nor_conv_1x1": _conv(1),
    "nor_conv_3x3": _conv(3),
    **{f"mb_conv_{k}x{k}_e{e}": _bottleneck(k, e) for k in (3, 5, 7) for e in (3, 6)},
}
"""Every operation by name: what builds it in a given place."""


def make_operation(name: str, setting: Setting) -> Operation:
    """Returns a new operation.

    Raises:
        InputError: If there is no operation of that name.
    """
    if name not in OPERATIONS:
        raise InputError(f"There is no operation {name!r}; the known ones are {', '.join(OPERATIONS)}.")
    return OPERATIONS[name](setting)
