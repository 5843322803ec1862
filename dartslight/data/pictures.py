"""Labelled pictures as one array of bytes, in memory or in a memory-mapped file."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
Channels = tuple[float, float, float]

_CHUNK = 1000  # pictures whose bytes are counted at once


@dataclass(frozen=True, eq=False, slots=True)
class Pictures:
    """Labelled pictures of one size.

    Args:
        images: The pictures as bytes, (n, 3, height, width); they are read fastest in channels-last memory order.
        labels: The class number of each picture, int64, (n,).
        classes: The names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    @classmethod
    def from_pixels(cls, pixels: Pixels, labels: npt.ArrayLike, classes: Sequence[str]) -> "Pictures":
        """Returns the pictures of an array with the channels last.

        Args:
            pixels: The pictures, (n, height, width, 3); it is used without a copy if it is contiguous.
            labels: The class number of each picture, (n,).
            classes: The names of the classes.
        """
        images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        return cls(images, torch.from_numpy(np.asarray(labels).astype(np.int64)), tuple(classes))

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.labels)


def square(picture: Image.Image, size: int) -> Image.Image:
    """Returns the largest centred square of a picture, resized: by the mean of the area when it shrinks.

    Args:
        picture: The picture.
        size: Height and width of the result in pixels.
    """
    side = min(picture.size)
    if side % size == 0:
        # The general way rounds after each direction, and so makes pictures brighter.
        left, top = ((length - side) // 2 for length in picture.size)
        return picture.reduce(side // size, box=(left, top, left + side, top + side))
    return ImageOps.fit(picture, (size, size), Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR)


def resized(pixels: Pixels, size: int | None) -> Pixels:
    """Returns all pictures of an array as `square` makes them.

    Args:
        pixels: The pictures, (n, height, width, 3).
        size: Height and width of the result in pixels; None leaves the pictures as they are.

    Returns:
        The pictures, (n, size, size, 3).
    """
    if size is None:
        return pixels
    return np.stack([np.asarray(square(Image.fromarray(picture), size)) for picture in pixels])


def channel_statistics(images: Tensor, indices: Tensor) -> tuple[Channels, Channels]:
    """Returns mean and standard deviation of each channel, where a full byte counts as 1.

    Args:
        images: Pictures as bytes, (n, 3, height, width).
        indices: The numbers of the pictures that count, (m,).

    Returns:
        Means and standard deviations; a channel in which all bytes are equal has the deviation 1, to divide by.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for chunk in torch.split(indices, _CHUNK):
        part = images[chunk]
        for channel in range(3):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = (shares * values).sum(dim=1)
    std = (shares * (values - mean[:, None]) ** 2).sum(dim=1).sqrt()
    std[(counts > 0).sum(dim=1) == 1] = 1.0
    r, g, b = mean.tolist()
    dr, dg, db = std.tolist()
    return (r, g, b), (dr, dg, db)
