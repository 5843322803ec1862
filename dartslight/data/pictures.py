"""Pictures in memory: raw bytes and labels."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pictures:
    """Equally large pictures with their labels.

    Args:
        images: Raw pictures, uint8 (pictures, 3, height, width).
        labels: Class index of each picture, int64 (pictures,).
        classes: Names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)
