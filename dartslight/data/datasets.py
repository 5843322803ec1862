"""Well-known data sets: digits that come with scikit-learn, and the ones that torchvision reads."""

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision import datasets

from dartslight.data.module import ImageData, check_at_least
from dartslight.data.pictures import Pictures, Pixels, resized
from dartslight.errors import InputError

_TEST_SHARE = 6  # one of so many digits is a test picture


class Digits(ImageData):
    """The 1,797 handwritten digits of scikit-learn, at once and without a download; one in six is a test picture.

    The 8x8 pictures are doubled to 16x16 pixels.

    Args:
        padding: Pixels by which training pictures are shifted at most; 0 for no random crop.
        flip: Whether training pictures are mirrored left to right, each with probability 0.5.
        size: Height and width in pixels to which the pictures are resized; null leaves 16.
        base: The options of all data sets.
    """

    def __init__(self, padding: int = 2, flip: bool = False, size: int | None = None, **base: Any) -> None:
        super().__init__(padding=padding, flip=flip, **base)
        check_at_least(1, size=size)
        self.size = size

    def load(self, train: bool) -> Pictures:
        """Returns the training pictures or the test pictures."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        gray = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16
        pixels = np.repeat(gray.repeat(2, axis=1).repeat(2, axis=2)[..., None], 3, axis=3)
        # The same test pictures in every run, so that runs with different seeds can be compared.
        order = torch.randperm(len(gray), generator=torch.Generator().manual_seed(0)).numpy()
        border = len(gray) // _TEST_SHARE
        chosen = np.sort(order[border:] if train else order[:border])
        classes = [str(name) for name in digits.target_names]
        return Pictures.from_pixels(resized(pixels[chosen], self.size), digits.target[chosen], classes)


class _Torchvision(ImageData):
    """A data set that torchvision reads.

    Args:
        root: Folder that holds the files of the data set.
        download: Whether files that are missing are downloaded into it.
        size: Height and width in pixels to which the pictures are resized; null leaves 32.
        base: The options of all data sets.
    """

    def __init__(self, root: str = "data", download: bool = False, size: int | None = None, **base: Any) -> None:
        super().__init__(**base)
        check_at_least(1, size=size)
        self.root, self.download, self.size = root, download, size

    def prepare_data(self) -> None:
        """Lets one process download the files before all of them read."""
        if self.download:
            self.load(train=self.trainer is None or not self.trainer.testing)

    def load(self, train: bool) -> Pictures:
        """Returns the training pictures or the test pictures.

        Args:
            train: Whether the training pictures are wanted.

        Raises:
            InputError: If the files are missing or damaged, or the download fails.
        """
        name = type(self).__name__
        try:
            pixels, labels, classes = self._read(train)
        except (RuntimeError, OSError) as error:
            if self.download:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"{name} cannot be downloaded into {self.root!r} ({reason}); try again, or put its files there."
                ) from None
            raise InputError(
                f"{name} is not in {self.root!r}, or is damaged there; pass --data.download true to fetch it, or the "
                "folder that holds it as --data.root."
            ) from None
        return Pictures.from_pixels(resized(pixels, self.size), labels, classes)

    @abstractmethod
    def _read(self, train: bool) -> tuple[Pixels, npt.ArrayLike, list[str]]:
        """Returns pictures (n, height, width, 3), their class numbers, and the names of the classes."""


class CIFAR10(_Torchvision):
    """CIFAR-10: 50,000 training and 10,000 test pictures of 10 classes, 32x32 pixels.

    Args:
        root: Folder that holds the files of the data set.
        download: Whether files that are missing are downloaded into it.
        size: Height and width in pixels to which the pictures are resized; null leaves 32.
        base: The options of all data sets.
    """

    mean = (0.49139968, 0.48215827, 0.44653124)
    std = (0.24703233, 0.24348505, 0.26158768)

    def __init__(self, root: str = "data", download: bool = False, size: int | None = None, **base: Any) -> None:
        super().__init__(root, download, size, **base)

    def _read(self, train: bool) -> tuple[Pixels, npt.ArrayLike, list[str]]:
        read = datasets.CIFAR10(self.root, train, download=self.download)
        return read.data, read.targets, read.classes


class CIFAR100(_Torchvision):
    """CIFAR-100: 50,000 training and 10,000 test pictures of 100 classes, 32x32 pixels.

    Args:
        root: Folder that holds the files of the data set.
        download: Whether files that are missing are downloaded into it.
        size: Height and width in pixels to which the pictures are resized; null leaves 32.
        base: The options of all data sets.
    """

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def __init__(self, root: str = "data", download: bool = False, size: int | None = None, **base: Any) -> None:
        super().__init__(root, download, size, **base)

    def _read(self, train: bool) -> tuple[Pixels, npt.ArrayLike, list[str]]:
        read = datasets.CIFAR100(self.root, train, download=self.download)
        return read.data, read.targets, read.classes


class SVHN(_Torchvision):
    """SVHN without its extra part: 73,257 training and 26,032 test pictures of 10 digits, 32x32 pixels.

    Args:
        root: Folder that holds the files of the data set.
        download: Whether files that are missing are downloaded into it.
        size: Height and width in pixels to which the pictures are resized; null leaves 32.
        base: The options of all data sets.
    """

    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def __init__(self, root: str = "data", download: bool = False, size: int | None = None, **base: Any) -> None:
        super().__init__(root, download, size, **base)

    def _read(self, train: bool) -> tuple[Pixels, npt.ArrayLike, list[str]]:
        read = datasets.SVHN(self.root, "train" if train else "test", download=self.download)
        return read.data.transpose(0, 2, 3, 1), read.labels, [str(digit) for digit in range(10)]
