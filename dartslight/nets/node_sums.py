"""The compiled passes over pictures in node_sums.c: what a node's sum and its normalisations cost on a CPU.

Torch has a function for each product and each sum, and every one of them reads and writes all pictures; here a node's
terms are gone through once. The library is compiled when the package is installed (hatch_build.py). It uses the threads
of torch: both are linked with the same OpenMP. Where it is missing, `takes` says no and torch's functions do the work.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


def _load() -> ctypes.CDLL | None:
    """Returns the library for this kind of processor, or None where there is none."""
    path = Path(__file__).with_name(f"node_sums_{torch.backends.cpu.get_cpu_capability()}.so")
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:  # compiled for another system
        return None


_LIBRARY = _load()
_TYPES = {torch.float32: "float", torch.float64: "double"}


def takes(x: Tensor) -> bool:
    """Returns whether pictures, (batch, channels, height, width), lie in memory as the compiled passes read them."""
    return (
        _LIBRARY is not None
        and x.device.type == "cpu"
        and x.dtype in _TYPES
        and not torch.compiler.is_compiling()
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def moments(xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns mean and variance (of all pixels, not of a sample) of every channel, (terms, channels) each."""
    mean, variance = xs[0].new_empty((2, len(xs), xs[0].shape[1])).unbind(0)
    _call("moments", xs[0], len(xs), *_sizes(xs[0]), _pointers(xs), mean, variance)
    return mean, variance


def weighted(xs: Sequence[Tensor], slopes: Tensor, offset: Tensor) -> Tensor:
    """Returns offset + sum over terms of slope * x.

    Args:
        xs: The pictures of every term.
        slopes: (terms, channels).
        offset: (channels,).
    """
    total = torch.empty_like(xs[0])
    _call("weighted", total, len(xs), *_sizes(total), _pointers(xs), slopes, offset, total)
    return total


def products(xs: Sequence[Tensor], means: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums over pixels of gradient * (x - mean), (terms, channels), and of the gradient, (channels,).

    Args:
        xs: The pictures of every term.
        means: (terms, channels).
        gradient: Pictures of the same shape.
    """
    by_scale, by_shift = torch.empty_like(means), means.new_empty(means.shape[1])
    _call("products", gradient, len(xs), *_sizes(gradient), _pointers(xs), means, gradient, by_scale, by_shift)
    return by_scale, by_shift


def derivatives(
    xs: Sequence[Tensor],
    constants: Tensor,
    factors: Tensor,
    slopes: Tensor,
    gradient: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Returns constant + factor * x + slope * gradient for each term.

    Args:
        xs: The pictures of the first terms; for the others this is slope * gradient.
        constants: (number of xs, channels).
        factors: (number of xs, channels).
        slopes: (terms, channels).
        gradient: Pictures.
        wanted: Which terms are asked for; None is returned for the others.
    """
    found = [torch.empty_like(gradient) if own else None for own in wanted]
    sizes = (len(slopes), len(xs), *_sizes(gradient))
    _call("derivatives", gradient, *sizes, _pointers(xs), constants, factors, slopes, gradient, _pointers(found))
    return found


def _sizes(x: Tensor) -> tuple[int, int]:
    """Returns the numbers of pixels and of channels."""
    channels = x.shape[1]
    return x.numel() // channels, channels


def _pointers(xs: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(xs))(*[None if x is None else x.data_ptr() for x in xs])


def _call(name: str, like: Tensor, *arguments: "int | Tensor | ctypes.Array[ctypes.c_void_p]") -> None:
    """Calls a function of the library: whole numbers are long, tensors and arrays are pointers."""
    converted: list[object] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        else:
            converted.append(ctypes.c_long(argument) if isinstance(argument, int) else argument)
    getattr(_LIBRARY, f"{name}_{_TYPES[like.dtype]}")(*converted)
