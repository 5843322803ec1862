"""The compiled passes over pictures in node_sums.c: what a node's sum and its normalisations cost on a CPU.

Torch has a function for each product and each sum, and every one of them reads and writes all pictures; here a node's
terms are gone through once. The library is compiled when the package is installed (hatch_build.py). It uses the threads
of torch: both are linked with the same OpenMP. Where it is missing, `takes` says no and torch's functions do the work.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

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


def moments(xs: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean, variance (of all pixels, not of a sample) and 1 / standard deviation, (terms, channels) each.

    Args:
        xs: The pictures of every term.
        eps: What is added to the variance for the standard deviation.
    """
    mean, variance, inverse = xs[0].new_empty((3, len(xs), xs[0].shape[1])).unbind(0)
    _function("moments", xs[0])(len(xs), *_sizes(xs[0]), eps, _pointers(xs), *map(_pointer, (mean, variance, inverse)))
    return mean, variance, inverse


def weighted(
    xs: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    mean: Tensor,
    inverse: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the sum of the terms, and the factor of every x in it, (terms, channels).

    The first terms are scale * (x - mean) * inverse + shift, the others scale * x.

    Args:
        xs: The pictures of every term.
        scales: The scale of every term, (channels,), or None for 1.
        shifts: The shift of every term, (channels,), or None for 0.
        mean: The means of the first terms, (terms with a normalisation, channels).
        inverse: Their 1 / standard deviation.
    """
    total, slopes = torch.empty_like(xs[0]), mean.new_empty((len(xs), mean.shape[1]))
    kept = [None if some is None else some.contiguous() for some in (*scales, *shifts)]
    numbers = _pointers(kept[: len(xs)]), _pointers(kept[len(xs) :])
    pointers = map(_pointer, (mean, inverse, slopes, total))
    _function("weighted", total)(len(xs), len(mean), *_sizes(total), _pointers(xs), *numbers, *pointers)
    return total, slopes


def derivatives(
    xs: Sequence[Tensor | None],
    mean: Tensor,
    inverse: Tensor,
    slopes: Tensor,
    gradient: Tensor,
    wanted: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor, Tensor]:
    """Returns the derivatives of `weighted` by each x, by the scales, (terms, channels), and by a shift, (channels,).

    Args:
        xs: The pictures of every term; None for terms without a normalisation the derivative by whose scale is not
            asked for, which is then undefined.
        mean: See `weighted`.
        inverse: See `weighted`.
        slopes: What `weighted` has returned.
        gradient: The derivative by the sum, of the pictures' shape.
        wanted: The derivatives by which x are asked for; None is returned for the others.
    """
    found = [torch.empty_like(gradient) if own else None for own in wanted]
    by_scale, by_shift = torch.empty_like(slopes), slopes.new_empty(slopes.shape[1])
    sums = (None, None) if all(x is None for x in xs) else (_pointer(by_scale), _pointer(by_shift))
    pointers = (_pointers(xs), *map(_pointer, (mean, inverse, slopes, gradient)), _pointers(found), *sums)
    _function("derivatives", gradient)(len(slopes), len(mean), *_sizes(gradient), *pointers)
    return found, by_scale, by_shift


def averages(x: Tensor, backward: bool) -> Tensor:
    """Returns the means of windows of 3x3 pixels, which get smaller at the border.

    Args:
        x: (batch, channels, height, width).
        backward: Whether x is a derivative by these means, and the one by the pictures is asked for.
    """
    out, (batch, channels, height, width) = torch.empty_like(x), x.shape
    _function("averages", x)(batch, height, width, channels, int(backward), _pointer(x), _pointer(out))
    return out


def _sizes(x: Tensor) -> tuple[int, int]:
    """Returns the numbers of pixels and of channels."""
    channels = x.shape[1]
    return x.numel() // channels, channels


def _pointer(x: Tensor) -> int:
    return x.data_ptr()


def _pointers(xs: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(xs))(*[None if x is None else x.data_ptr() for x in xs])


_N, _P = ctypes.c_long, ctypes.c_void_p
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "moments": (_N, _N, _N, ctypes.c_double, _P, _P, _P, _P),
    "weighted": (_N, _N, _N, _N, _P, _P, _P, _P, _P, _P, _P),
    "derivatives": (_N, _N, _N, _N, _P, _P, _P, _P, _P, _P, _P, _P),
    "averages": (_N, _N, _N, _N, ctypes.c_int, _P, _P),
}


@functools.cache
def _of_type(name: str, dtype: torch.dtype) -> Callable[..., None]:
    function = getattr(_LIBRARY, f"{name}_{_TYPES[dtype]}")
    function.argtypes, function.restype = _ARGUMENTS[name], None
    return cast("Callable[..., None]", function)


def _function(name: str, like: Tensor) -> Callable[..., None]:
    """Returns a function of the library for numbers of a tensor's type."""
    return _of_type(name, like.dtype)
