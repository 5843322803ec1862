"""Pictures: data sets behind one DataModule, augmentation on the device, sampling that can go on anywhere."""

from dartslight.data.datasets import CIFAR10, CIFAR100, SVHN, Digits
from dartslight.data.folder import ImageFolder
from dartslight.data.module import ImageData
from dartslight.data.pictures import Pictures
from dartslight.data.sampling import Batch

__all__ = ["CIFAR10", "CIFAR100", "SVHN", "Batch", "Digits", "ImageData", "ImageFolder", "Pictures"]
