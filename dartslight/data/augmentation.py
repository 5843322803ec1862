"""Augmentation of a whole batch at once, every picture with draws of its own, on the device where the batch is."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, seed: int, padding: int, flip: bool) -> Tensor:
    """Crops each picture at random out of its zero-padded self and flips it left to right with probability 1/2.

    Args:
        images: Raw pictures, uint8 (batch, 3, height, width).
        seed: Determines every draw.
        padding: Pixels of padding on each side; 0 crops nothing.
        flip: Whether pictures are flipped.

    Returns:
        Raw pictures of the same shape, laid out with the channels last.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    tops = torch.randint(2 * padding + 1, (count,), generator=generator)
    lefts = torch.randint(2 * padding + 1, (count,), generator=generator)
    flips = torch.randint(2, (count,), generator=generator).bool() & flip
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1).contiguous()
    row = tops[:, None] + torch.arange(height)
    straight = torch.arange(width)
    column = lefts[:, None] + torch.where(flips[:, None], straight.flip(0), straight)
    wide = width + 2 * padding
    picture = torch.arange(count)[:, None, None] * (height + 2 * padding) * wide
    index = (picture + row[:, :, None] * wide + column[:, None, :]).to(images.device)
    return padded.view(-1, 3)[index.view(-1)].view(count, height, width, 3).permute(0, 3, 1, 2)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Returns ``(images / 255 - mean) / std``, float32, laid out with the channels last.

    Args:
        images: Raw pictures, uint8 (batch, 3, height, width).
        mean: Mean of each channel, in units of full brightness.
        std: Standard deviation of each channel, likewise.
    """
    scale = 1 / (255 * torch.tensor(std, device=images.device))
    shift = -torch.tensor(mean, device=images.device) / torch.tensor(std, device=images.device)
    pixels = images.permute(0, 2, 3, 1).contiguous().float()
    return torch.addcmul(shift, pixels, scale).permute(0, 3, 1, 2)


def cut_out(images: Tensor, seed: int, length: int) -> Tensor:
    """Sets a square around a random pixel of each normalised picture to 0, clipped at the border.

    Paper: DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552.

    Args:
        images: (batch, 3, height, width).
        seed: Determines every draw.
        length: Side of the square in pixels.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    outside = []
    for size in (height, width):
        centre = torch.randint(size, (count, 1), generator=generator)
        start = centre - length // 2
        place = torch.arange(size)
        outside.append((place < start) | (place >= start + length))
    keep = (outside[0][:, :, None] | outside[1][:, None, :]).to(images.device)
    return images * keep.unsqueeze(1)
