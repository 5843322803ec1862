"""Well-known data sets: digits that come with scikit-learn, and those that torchvision reads."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from dartslight.data.module import ImageData
from dartslight.data.pictures import Pictures
from dartslight.errors import InputError


class Digits(ImageData):
    """The 1,797 scanned digits of scikit-learn, shown as 16x16 pixels; every sixth is a test picture.

    Nothing is downloaded: the pictures come with the package.

    Args:
        padding: Pixels of zero padding out of which training pictures are cropped at random; 0 for no crop.
        flip: Whether training pictures are flipped left to right at random.
        kwargs: The options of every data set.
    """

    def __init__(self, padding: int = 2, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(padding=padding, flip=flip, **kwargs)

    def load(self, train: bool) -> Pictures:
        """Returns the training or the test pictures."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        gray = np.rint(bunch.images * (255 / 16)).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
        chosen = (np.arange(len(gray)) % 6 != 5) == train
        images = torch.from_numpy(gray[chosen]).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
        return Pictures(
            images, torch.from_numpy(bunch.target[chosen]).long(), tuple(str(c) for c in bunch.target_names)
        )


class _Torchvision(ImageData):
    """A data set that torchvision reads."""

    def __init__(self, root: str = "data", download: bool = False, size: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.download, self.size = root, download, size

    def load(self, train: bool) -> Pictures:
        """Returns the training or the test pictures.

        Raises:
            InputError: If the files are missing or damaged.
        """
        try:
            images, labels, classes = self._read(train)
        except RuntimeError as error:
            raise InputError(
                f"{type(self).__name__} is not whole in {str(Path(self.root).resolve())!r} "
                f"({' '.join(str(error).split())[:120]}); pass --data.download true, or another --data.root."
            ) from None
        pictures = torch.as_tensor(images)
        if self.size is not None:
            pictures = F.adaptive_avg_pool2d(pictures.float(), self.size).round().to(torch.uint8)
        return Pictures(pictures.contiguous(), torch.as_tensor(labels).long(), tuple(classes))

    def _read(self, train: bool) -> tuple[Any, Any, Any]:
        raise NotImplementedError


class CIFAR10(_Torchvision):
    """CIFAR-10.

    Args:
        root: Folder of the data set's files.
        download: Whether to download them when they are missing.
        size: Height and width in pixels to which pictures are reduced by area means; null leaves them.
        kwargs: The options of every data set.
    """

    mean = (0.49139968, 0.48215827, 0.44653124)
    std = (0.24703233, 0.24348505, 0.26158768)

    def _read(self, train: bool) -> tuple[Any, Any, Any]:
        data = torchvision.datasets.CIFAR10(self.root, train, download=self.download)
        return data.data.transpose(0, 3, 1, 2), data.targets, data.classes


class CIFAR100(_Torchvision):
    """CIFAR-100.

    Args:
        root: Folder of the data set's files.
        download: Whether to download them when they are missing.
        size: Height and width in pixels to which pictures are reduced by area means; null leaves them.
        kwargs: The options of every data set.
    """

    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def _read(self, train: bool) -> tuple[Any, Any, Any]:
        data = torchvision.datasets.CIFAR100(self.root, train, download=self.download)
        return data.data.transpose(0, 3, 1, 2), data.targets, data.classes


class SVHN(_Torchvision):
    """SVHN, without its extra pictures.

    Args:
        root: Folder of the data set's files.
        download: Whether to download them when they are missing.
        size: Height and width in pixels to which pictures are reduced by area means; null leaves them.
        kwargs: The options of every data set.
    """

    mean = (0.4377, 0.4438, 0.4728)
    std = (0.1980, 0.2010, 0.1970)

    def _read(self, train: bool) -> tuple[Any, Any, Any]:
        data = torchvision.datasets.SVHN(self.root, "train" if train else "test", download=self.download)
        return data.data, data.labels, [str(digit) for digit in range(10)]
