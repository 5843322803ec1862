"""Augmentation of whole batches with a draw of its own for every picture, on the device where the batch is.

All draws are made on the CPU and follow from the seed alone, so every device makes the same pictures.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dartslight.seeding import derived_seed

_CUTOUT = 11  # what a derived seed is for


def augment(images: Tensor, seed: int, padding: int, flip: bool) -> Tensor:
    """Shifts every picture by its own offset and mirrors every other one, on average.

    Args:
        images: Pictures as bytes, (n, 3, height, width).
        seed: Seed of the draws.
        padding: Largest shift in pixels, in either direction; what comes in from outside is black.
        flip: Whether a picture is mirrored left to right, with probability 0.5.

    Returns:
        Pictures of the same size as bytes, in channels-last memory order.
    """
    n, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    mirrored = torch.randint(0, 2, (n,), generator=generator) if flip else torch.zeros(n, dtype=torch.int64)
    pixels = images.permute(0, 2, 3, 1)
    wide, high = width + 2 * padding, height + 2 * padding
    padded = pixels.new_zeros((2 * n if flip else n, high, wide, 3))
    inside = padded[:, padding : padding + height, padding : padding + width]
    inside[:n] = pixels
    if flip:
        inside[n:] = pixels.flip(2)
    # A view of every run of pixels as long as a row. Whole runs are copied many times faster than single pixels.
    runs = padded.view(-1).unfold(0, 3 * width, 3)
    first = ((torch.arange(n) + n * mirrored) * high + top) * wide + left
    chosen = first[:, None] + wide * torch.arange(height)  # (n, height)
    return runs.index_select(0, chosen.flatten().to(images.device)).view(n, height, width, 3).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turns bytes into numbers of mean 0 and standard deviation 1.

    Args:
        images: Pictures as bytes, (n, 3, height, width).
        mean: Mean of each channel, where a full byte counts as 1.
        std: Standard deviation of each channel in the same unit.

    Returns:
        Pictures as float32, (n, 3, height, width), in channels-last memory order.
    """
    n, _, height, width = images.shape
    # The last dimension holds a whole row of pixels: over three channels alone, arithmetic would be slow.
    rows = images.permute(0, 2, 3, 1).reshape(n, height, width * 3).float()
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).repeat(width)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).repeat(width)
    return torch.addcmul(shift, rows, scale).view(n, height, width, 3).permute(0, 3, 1, 2)


def cut_out(images: Tensor, seed: int, size: int, probability: float = 1.0) -> Tensor:
    """Sets a square of a picture to 0, the mean colour of normalised pictures.

    Paper: https://arxiv.org/abs/1708.04552

    Args:
        images: Normalised pictures, (n, 3, height, width).
        seed: Seed of the draws; that of `augment` may be used again.
        size: Side of the square in pixels; its centre lies anywhere in the picture, and the border clips it.
        probability: Probability with which a picture loses a square.

    Returns:
        Pictures of the same shape and memory order.
    """
    n, _, height, width = images.shape
    generator = torch.Generator().manual_seed(derived_seed(seed, _CUTOUT))
    hidden = [_interval(n, length, size, generator) for length in (height, width)]
    holes = hidden[0][:, None, :, None] & hidden[1][:, None, None, :]  # (n, 1, height, width)
    if probability < 1:
        holes &= (torch.rand(n, generator=generator) < probability)[:, None, None, None]
    return images.masked_fill(holes.to(images.device), 0.0)


def _interval(n: int, length: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns, (n, length), which pixels of a side lie in a drawn interval."""
    start = torch.randint(0, length, (n, 1), generator=generator) - size // 2
    pixels = torch.arange(length)
    return (pixels >= start) & (pixels < start + size)
